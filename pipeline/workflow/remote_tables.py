"""Standard input as a file: spooled into the workspace under its digest, so that a stage reads files only."""

import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.workflow.artifact_store import Workspace
from pipeline.workflow.config import GivenSetting
from stages.core.errors import InputError
from stages.core.files import file_digest


def replace_stdin_tables(workspace: Workspace, given: Sequence[GivenSetting]) -> list[GivenSetting]:
    """`given` with a "-" among the tables replaced by a file with the content of standard input."""
    return [
        setting._replace(value=[str(spool_stdin(workspace)) if table == "-" else table for table in setting.value])
        if (setting.section, setting.name) == ("pairs", "tables") and "-" in setting.value
        else setting
        for setting in given
    ]


def spool_stdin(workspace: Workspace) -> Path:
    """Copy standard input to inputs/stdin-<digest>, with the suffix of its format."""
    folder = workspace.root / "inputs"
    folder.mkdir(exist_ok=True)
    partial = folder / ".tmp-stdin"
    with partial.open("wb") as file:
        while block := sys.stdin.buffer.read(1 << 20):
            file.write(block)
    with partial.open("rb") as file:
        head = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
    if not head:
        partial.unlink()
        raise InputError("standard input is empty: pipe a table into `prep build-pairs -`")
    suffix = ".jsonl" if head.startswith(b"{") else ".json" if head.startswith(b"[") else ".csv"
    return partial.replace(folder / f"stdin-{file_digest(partial)}{suffix}")
