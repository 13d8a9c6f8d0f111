"""Publications: sets of artifacts that readers use through `current`, and what is dropped when none uses it."""

import json
import shutil
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.workflow.artifact_store import MANIFEST_FILE, Artifact, Workspace, digest_json
from pipeline.workflow.graph import PIPELINE, PUBLISHED_OUTPUTS, STAGES, STAGES_BY_NAME
from pipeline.workflow.remote_files import find_stale_files
from stages.core.files import file_digest, fsync_path, write_durably

PUBLICATION_FILE = "publication.json"
REPORT_FILE = "report.html"
REFUSAL_FILE = "refusal.json"
"""What the last refresh would not publish, and why: it is kept, so that the next one need not make it again."""


def read_publication(folder: Path) -> dict[str, Any] | None:
    """{"artifacts": {stage: key}, "report_digest": digest}, or None where there is no whole publication in
    `get_artifact_folder`."""
    try:
        found = json.loads((folder / PUBLICATION_FILE).read_text(encoding="utf-8"))
        whole = found["artifacts"].keys() == {stage.name for stage in PIPELINE} and isinstance(
            found["report_digest"], str
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return found if whole else None


def list_publications(workspace: Workspace) -> list[Path]:
    """The folders of all whole publications, oldest first."""
    return sorted(path for path in workspace.published.glob("[!.]*") if read_publication(path))


def read_latest_publication(workspace: Workspace) -> dict[str, Any] | None:
    """What `current` points to, or the newest publication where `current` is lost; None before the first."""
    found = read_publication(workspace.current)
    if found is None:
        found = next((read_publication(path) for path in reversed(list_publications(workspace))), None)
    return found


def is_current_complete(workspace: Workspace) -> bool:
    """Whether readers find everything through `current` that a publication holds."""
    published = read_publication(workspace.current)
    if published is None or not all((workspace.current / Path(path).name).exists() for path in PUBLISHED_OUTPUTS):
        return False
    report = workspace.current / REPORT_FILE
    return report.is_file() and file_digest(report) == published["report_digest"]


def publish(workspace: Workspace, artifacts: Mapping[str, Artifact], report_html: str) -> str:
    """Make a publication of these artifacts and swap `current` to it in one atomic step; returns its name.

    A publication holds links into runs/, so it costs nothing and a repaired artifact repairs it. One that a killed
    run had finished, but not yet swapped in, is used as it is.
    """
    workspace.published.mkdir(exist_ok=True)
    keys = {name: artifact.key for name, artifact in artifacts.items()}
    short_digest = digest_json(keys)[:8]
    current = workspace.current.readlink().name if workspace.current.is_symlink() else ""
    unfinished = [
        path.name for path in list_publications(workspace) if path.name > current and path.name.endswith(short_digest)
    ]
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    name = max(unfinished, default=f"{now}-{short_digest}")
    target = workspace.published / name
    if not target.exists():
        partial = workspace.published / f".tmp-{name}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for path in PUBLISHED_OUTPUTS:
            stage, file = path.split("/", 1)
            (partial / Path(file).name).symlink_to(Path("../../runs") / stage / keys[stage] / file)
        write_durably(partial / REPORT_FILE, report_html)
        publication = {"artifacts": keys, "report_digest": file_digest(partial / REPORT_FILE)}
        write_durably(partial / PUBLICATION_FILE, json.dumps(publication, indent=1, sort_keys=True))
        partial.rename(target)
        fsync_path(workspace.published)
    next_link = workspace.root / ".current-next"
    next_link.unlink(missing_ok=True)
    next_link.symlink_to(Path("published") / name)
    next_link.replace(workspace.current)
    fsync_path(workspace.root)
    (workspace.root / REFUSAL_FILE).unlink(missing_ok=True)
    return name


def record_refusal(workspace: Workspace, keys: Mapping[str, str], reason: str) -> None:
    """Note what was not published and why, for `prep status`, and so that it is kept until something better comes."""
    write_durably(workspace.root / REFUSAL_FILE, json.dumps({"artifacts": dict(keys), "reason": reason}, indent=1))


def read_refusal(workspace: Workspace) -> dict[str, Any] | None:
    """What the last refresh refused to publish: {"artifacts": {stage: key}, "reason"}, or None."""
    try:
        found: dict[str, Any] = json.loads((workspace.root / REFUSAL_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found.get("artifacts"), dict) else None


def collect_garbage(workspace: Workspace, keep: int, include_side_stores: bool = True) -> dict[str, int]:
    """Drop publications beyond the newest `keep`, and the artifacts that neither the kept ones nor the last refused
    refresh use; with `include_side_stores` also vectors, logs, spooled input and half-done work that they do not use.

    Returns what was dropped: {"publications", "artifacts", "encoders", "bytes"}.
    """
    current = workspace.current.readlink().name if workspace.current.is_symlink() else ""
    found = list_publications(workspace)
    kept = set(found[-keep:]) | {path for path in found if path.name == current}
    retained = [publication["artifacts"] for path in kept if (publication := read_publication(path))]
    if refusal := read_refusal(workspace):
        retained.append(refusal["artifacts"])
    used = {(stage, key) for artifacts in retained for stage, key in artifacts.items()}
    if not retained:  # nothing is published yet: the newest artifact of each stage is work in progress, not litter
        used = {(stage.name, a.key) for stage in PIPELINE for a in workspace.list_artifacts(stage.name)[:1]}
    for stage in STAGES:
        if stage.published_inputs:  # a comparison with a publication, which no publication names
            used |= {(stage.name, a.key) for a in workspace.list_artifacts(stage.name)[:keep]}
    encoders = {
        name
        for stage, key in used
        if stage == "encode"
        for name in list_encoder_keys(workspace.get_artifact_folder(stage, key))
    }
    unused = {
        "publications": [path for path in workspace.published.glob("[!.]*") if path not in kept],
        "artifacts": [
            p
            for p in workspace.runs.glob("*/[!.]*")
            if (p.parent.name, p.name) not in used and (include_side_stores or p.parent.name in STAGES_BY_NAME)
        ],
        "encoders": [p for p in workspace.vectors.glob("[!.]*") if include_side_stores and p.name not in encoders],
    }
    leftovers = list(_list_unused_files(workspace, used)) if include_side_stores else []
    freed = 0
    for path in [*unused["publications"], *unused["artifacts"], *unused["encoders"], *leftovers]:
        freed += _measure_disk_usage(path)
        _delete(path)
    dropped = {name: len(paths) for name, paths in unused.items()} | {"bytes": freed}
    workspace.log_event(event="gc", **dropped)
    return dropped


def list_encoder_keys(folder: Path) -> list[str]:
    """The vector folders that an encode artifact uses."""
    try:
        first = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
        return [str(part["encoder_key"]) for part in (first, *first.get("extra_encoders", []))]
    except (OSError, ValueError, KeyError):
        return []


def _list_unused_files(workspace: Workspace, used: set[tuple[str, str]]) -> Iterable[Path]:
    unfinished_trainings = [
        p
        for p in workspace.scratch.glob("train-*")
        if not workspace.get_artifact_folder(*p.name.split("-", 1)).exists()
    ]
    unfinished = sorted(unfinished_trainings, key=lambda path: path.stat().st_mtime)
    # the last training that was stopped goes on from its checkpoint, which may be hours of work
    yield from (path for path in workspace.scratch.glob("*") if path not in unfinished[-1:])
    yield from (p for p in workspace.logs.glob("*/*") if (p.parent.name, p.name) not in used)
    settings = workspace.root / "settings.json"
    remembered = settings.read_text(encoding="utf-8") if settings.is_file() else ""
    yield from (p for p in (workspace.root / "inputs").glob("stdin-*") if p.name not in remembered)
    yield from find_stale_files(workspace)


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
