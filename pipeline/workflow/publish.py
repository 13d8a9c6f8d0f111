"""Publications: sets of artifacts that readers use through `current`."""

import json
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.workflow.artifact_store import Artifact, Workspace, digest_json
from pipeline.workflow.graph import PUBLISHED_OUTPUTS, STAGES
from stages.core.files import file_digest, fsync_path, write_durably

PUBLICATION_FILE = "publication.json"
REPORT_FILE = "report.html"
RERANKER = "reranker"
"""The ranking of a publication that holds a reranker; that of any other is the embedder's."""
REFUSAL_FILE = "refusal.json"
"""What the last refresh refused to publish, and why. Its artifacts are kept, so that the next one need not make them
again."""


def read_publication(folder: Path) -> dict[str, Any] | None:
    """{"artifacts": {step: key}, "report_digest": digest, "ranking": "reranker" or "embedder"}; None if `folder` holds
    no whole publication."""
    try:
        found = json.loads((folder / PUBLICATION_FILE).read_text(encoding="utf-8"))
        # a publication of an older version may lack a step: only those that the next one is compared with are needed
        compared = {path.split("/")[0] for stage in STAGES for path in stage.published_inputs.values()}
        whole = found["artifacts"].keys() >= compared and isinstance(found["report_digest"], str)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return {"ranking": RERANKER, **found} if whole else None


def list_published_outputs(ranking: str) -> tuple[str, ...]:
    """The outputs that readers find in a publication: no reranker if the ranking is the embedder's."""
    return tuple(path for path in PUBLISHED_OUTPUTS if ranking == RERANKER or path != "train/reranker")


def list_publications(workspace: Workspace) -> list[Path]:
    """The folders of all whole publications, oldest first."""
    return sorted(path for path in workspace.published.glob("[!.]*") if read_publication(path))


def read_latest_publication(workspace: Workspace) -> dict[str, Any] | None:
    """What `current` points to, or the newest publication if `current` is lost; None before the first."""
    found = read_publication(workspace.current)
    if found is None:
        found = next((read_publication(path) for path in reversed(list_publications(workspace))), None)
    return found


def find_published_artifacts(workspace: Workspace) -> dict[str, Artifact]:
    """Step -> its artifact in the current publication, those that are whole; nothing before the first publication."""
    published = read_latest_publication(workspace) or {"artifacts": {}}
    found = {name: workspace.find_artifact(name, key) for name, key in published["artifacts"].items()}
    return {name: artifact for name, artifact in found.items() if artifact}


def is_current_complete(workspace: Workspace) -> bool:
    """Whether readers find everything through `current` that a publication holds."""
    published = read_publication(workspace.current)
    if published is None:
        return False
    paths = list_published_outputs(published["ranking"])
    if not all((workspace.current / Path(path).name).exists() for path in paths):
        return False
    report = workspace.current / REPORT_FILE
    return report.is_file() and file_digest(report) == published["report_digest"]


def publish(workspace: Workspace, artifacts: Mapping[str, Artifact], report_html: str, ranking: str = RERANKER) -> str:
    """Make a publication of these artifacts and swap `current` to it in one atomic step; returns its name.

    With the embedder's `ranking` it has no reranker/; the artifact is kept, so that the next refresh finds it.

    A publication holds links into runs/, so it costs no disk space and a repaired artifact repairs it. A publication
    that a killed run finished but did not swap in is used as it is.
    """
    workspace.published.mkdir(exist_ok=True)
    keys = {name: artifact.key for name, artifact in artifacts.items()}
    short_digest = digest_json({"artifacts": keys, "ranking": ranking})[:8]
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
        for path in list_published_outputs(ranking):
            stage, file = path.split("/", 1)
            (partial / Path(file).name).symlink_to(Path("../../runs") / stage / keys[stage] / file)
        write_durably(partial / REPORT_FILE, report_html)
        publication = {"artifacts": keys, "report_digest": file_digest(partial / REPORT_FILE), "ranking": ranking}
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
    """Write down what was not published and why: `prep status` shows it, and its artifacts are kept."""
    write_durably(workspace.root / REFUSAL_FILE, json.dumps({"artifacts": dict(keys), "reason": reason}, indent=1))


def read_refusal(workspace: Workspace) -> dict[str, Any] | None:
    """What the last refresh refused to publish: {"artifacts": {step: key}, "reason"}, or None."""
    try:
        found: dict[str, Any] = json.loads((workspace.root / REFUSAL_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found.get("artifacts"), dict) else None
