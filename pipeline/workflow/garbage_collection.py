"""Garbage collection: what no kept publication uses is deleted, or only listed."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.workflow.artifact_store import MANIFEST_FILE, Workspace
from pipeline.workflow.graph import PIPELINE, STAGES, STAGES_BY_NAME
from pipeline.workflow.publish import PUBLICATION_FILE, list_publications, read_publication, read_refusal
from pipeline.workflow.remote_files import find_stale_files
from pipeline.workflow.stage import Store


@dataclass(frozen=True)
class Garbage:
    """Files and folders that no kept publication uses, by kind."""

    publications: list[Path]
    artifacts: list[Path]
    encoders: list[Path]
    """Folders of vectors."""
    others: list[Path]
    """Logs, spooled input and unfinished work."""

    @property
    def paths(self) -> list[Path]:
        """All of them; publications come first, so that none points to an artifact that is deleted already."""
        return [*self.publications, *self.artifacts, *self.encoders, *self.others]

    def count(self) -> dict[str, int]:
        """{"publications", "artifacts", "encoders", "bytes"}."""
        n_bytes = sum(map(_measure_disk_usage, self.paths))
        counts = {"publications": len(self.publications), "artifacts": len(self.artifacts)}
        return counts | {"encoders": len(self.encoders), "bytes": n_bytes}


def collect_garbage(workspace: Workspace, keep: int, include_side_stores: bool = True) -> dict[str, int]:
    """Delete what `find_garbage` finds; returns the counts. The workspace must be locked."""
    garbage = find_garbage(workspace, keep, include_side_stores)
    counts = garbage.count()
    for path in garbage.paths:
        _delete(path)
    workspace.log_event(event="gc", **counts)
    return counts


def find_garbage(workspace: Workspace, keep: int, include_side_stores: bool = True) -> Garbage:
    """Publications beyond the newest `keep`, and the artifacts that neither a kept publication nor the last refused
    refresh uses; with `include_side_stores` also vectors, logs, spooled input and unfinished work of no use to them.
    """
    current = workspace.current.readlink().name if workspace.current.is_symlink() else ""
    found = list_publications(workspace)
    kept = set(found[-keep:]) | {path for path in found if path.name == current}
    used = _list_used_artifacts(workspace, kept, keep)
    artifacts = [path for path in workspace.runs.glob("*/[!.]*") if (path.parent.name, path.name) not in used]
    if not include_side_stores:  # what `prep bench` keeps in runs/ is no step's
        artifacts = [path for path in artifacts if path.parent.name in STAGES_BY_NAME]
    encoders = {key for stage, key in used for key in list_encoder_keys(workspace.get_artifact_folder(stage, key))}
    vectors = [path for path in workspace.vectors.glob("[!.]*") if path.name not in encoders]
    return Garbage(
        [path for path in workspace.published.glob("[!.]*") if path not in kept],
        artifacts,
        vectors if include_side_stores else [],
        list(_list_unused_files(workspace, used)) if include_side_stores else [],
    )


def _list_used_artifacts(workspace: Workspace, kept: set[Path], keep: int) -> set[tuple[str, str]]:
    """(step, key) of the artifacts that the kept publications and the last refusal name."""
    named = [publication["artifacts"] for path in kept if (publication := read_publication(path))]
    if refusal := read_refusal(workspace):
        named.append(refusal["artifacts"])
    used = {(stage, key) for artifacts in named for stage, key in artifacts.items()}
    if not named:  # nothing is published yet: the newest artifact of each step is work in progress
        used = {(stage.name, one.key) for stage in PIPELINE for one in workspace.list_artifacts(stage.name)[:1]}
    for stage in STAGES:
        if stage.published_inputs:  # a comparison with a publication, which no publication names
            used |= {(stage.name, one.key) for one in workspace.list_artifacts(stage.name)[:keep]}
    return used


def list_encoder_keys(folder: Path) -> list[str]:
    """The folders of vectors that an artifact of encode uses; of any other step none."""
    stage = STAGES_BY_NAME.get(folder.parent.name)
    if stage is None or Store.VECTORS not in stage.writes:
        return []
    try:
        first = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
        return [str(part["encoder_key"]) for part in (first, *first.get("extra_encoders", []))]
    except (OSError, ValueError, KeyError):
        return []


def _list_unused_files(workspace: Workspace, used: set[tuple[str, str]]) -> Iterator[Path]:
    resumable = set()
    for stage in STAGES:
        unfinished = [path for path in workspace.scratch.glob(f"{stage.name}-*") if not _is_finished(workspace, path)]
        if stage.is_resumable and unfinished:  # the next run goes on from it, which may save hours
            resumable.add(max(unfinished, key=lambda path: path.stat().st_mtime))
    yield from (path for path in workspace.scratch.glob("*") if path not in resumable)
    yield from (path for path in workspace.logs.glob("*/*") if (path.parent.name, path.name) not in used)
    settings = workspace.root / "settings.json"
    remembered = settings.read_text(encoding="utf-8") if settings.is_file() else ""
    yield from (path for path in (workspace.root / "inputs").glob("stdin-*") if path.name not in remembered)
    yield from find_stale_files(workspace)


def _is_finished(workspace: Workspace, scratch: Path) -> bool:
    return workspace.get_artifact_folder(*scratch.name.split("-", 1)).exists()


def _measure_disk_usage(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink())


def _delete(path: Path) -> None:
    """Delete an artifact or a publication; its manifest goes first, so that a half-deleted one never counts."""
    if path.is_file():
        path.unlink()
        return
    for name in (MANIFEST_FILE, PUBLICATION_FILE):
        (path / name).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)
