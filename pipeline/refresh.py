"""A refresh: everything brought up to date, the new reranker held against the published one, and one atomic swap."""

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.graph import GATE, PIPELINE, PUBLISHED
from pipeline.runner import Runner
from pipeline.store import MANIFEST, Artifact, Workspace, digest_of, folder_digests, read_manifest, sync, write_durably
from stages.errors import GateRefused

PUBLICATION = "publication.json"


@dataclass(frozen=True)
class Outcome:
    """What a refresh did: "published" or "unchanged", where, which stages ran, and what the gate said."""

    status: str
    publication: str
    ran: list[str]
    gate: dict[str, Any] | None
    moved: int


def refresh(runner: Runner, keep: int, force: bool) -> Outcome:
    """The whole road once; raises `GateRefused` and leaves `current` as it is where the new reranker is not fit.

    `keep` publications stay, the new one included. `force` publishes a reranker that is worse than the published one
    or can't be compared; never one that collapsed.
    """
    workspace = runner.workspace
    artifacts = {stage.name: runner.bring(stage.name) for stage in PIPELINE}
    keys = {name: artifact.key for name, artifact in artifacts.items()}
    published = current_publication(workspace)
    linked = all((workspace.current / Path(path).name).exists() for path in (*PUBLISHED, "report.html"))
    if published and published["artifacts"] == keys and linked:
        return Outcome("unchanged", str(workspace.current.readlink()), runner.ran, None, 0)
    verdict = gate(runner, artifacts, published, force) if published else None
    if verdict and verdict["verdict"] == "worse" and not force:
        workspace.event(event="refused", gate=verdict)
        raise GateRefused(
            f"the new reranker is worse than the published one: {verdict['measure']} {verdict['new']:.4f} against "
            f"{verdict['old']:.4f}, difference {verdict['difference']:+.4f} "
            f"[{verdict['low']:+.4f}, {verdict['high']:+.4f}] on {verdict['queries']} test queries. "
            "`current` is untouched; --force publishes it all the same."
        )
    moved = moved_queries(workspace, published, artifacts["pairs"])
    name = publish(workspace, artifacts)
    workspace.event(event="published", publication=name, gate=verdict, moved=moved)
    collect(workspace, keep)
    return Outcome("published", f"published/{name}", runner.ran, verdict, moved)


def gate(
    runner: Runner, artifacts: dict[str, Artifact], published: dict[str, Any], force: bool
) -> dict[str, Any] | None:
    """Both rerankers on the new test split; None where it is the same reranker. Raises `GateRefused` if it can't be."""
    key = published["artifacts"]["train"]
    if key == artifacts["train"].key:
        return None
    old = runner.workspace.find("train", key)
    if old is None and force:
        return None
    if old is None:
        raise GateRefused(
            f"the published reranker (runs/train/{key}) is missing or damaged, so the new one can't be compared with "
            "it. `current` is untouched; --force publishes the new one without a comparison."
        )
    if old.digest("reranker") == artifacts["train"].digest("reranker"):
        return None
    params = runner.params[GATE.name]
    found = runner.run(GATE, params, artifacts, {"old": old.folder / "reranker"}, {"old": old.digest("reranker")})
    verdict: dict[str, Any] = json.loads((found.folder / "gate.json").read_text())
    return verdict


def current_publication(workspace: Workspace) -> dict[str, Any] | None:
    """What `current` points to: {"artifacts": {stage: key}}, or None before the first publication."""
    try:
        publication: dict[str, Any] = json.loads((workspace.current / PUBLICATION).read_text())
    except (OSError, ValueError):
        return None
    return publication


def moved_queries(workspace: Workspace, published: dict[str, Any] | None, pairs: Artifact) -> int:
    """How many queries changed their split since the current publication (where rows joined two components)."""
    if published is None:
        return 0
    old = workspace.folder("pairs", published["artifacts"]["pairs"]) / "queries.parquet"
    if not old.is_file():
        return 0
    import polars as pl

    from stages.pairs.split import moved

    return int(moved(pl.read_parquet(old), pl.read_parquet(pairs.folder / "queries.parquet")))


def publish(workspace: Workspace, artifacts: Mapping[str, Artifact]) -> str:
    """Make a publication of these artifacts and swap `current` to it in one atomic step; returns its name.

    A publication holds links into runs/, so it costs nothing and a repaired artifact repairs it. One that a killed
    run had finished, but not yet swapped in, is used as it is.
    """
    from pipeline.report.page import page

    workspace.published.mkdir(exist_ok=True)
    keys = {name: artifact.key for name, artifact in artifacts.items()}
    short = digest_of(keys)[:8]
    current = workspace.current.readlink().name if workspace.current.is_symlink() else ""
    whole = (path.parent.name for path in workspace.published.glob(f"*-{short}/{PUBLICATION}"))
    unfinished = [name for name in whole if name > current]
    name = max(unfinished, default=f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{short}")
    target = workspace.published / name
    if not target.exists():
        partial = workspace.published / f".tmp-{name}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for path in PUBLISHED:
            stage, file = path.split("/", 1)
            (partial / Path(file).name).symlink_to(Path("../../runs") / stage / keys[stage] / file)
        write_durably(partial / "report.html", page(artifacts))
        write_durably(partial / PUBLICATION, json.dumps({"artifacts": keys}, indent=1, sort_keys=True))
        partial.rename(target)
        sync(workspace.published)
    swap = workspace.root / f".current-{os.getpid()}"
    swap.unlink(missing_ok=True)
    swap.symlink_to(Path("published") / name)
    swap.replace(workspace.current)
    sync(workspace.root)
    return name


def collect(workspace: Workspace, keep: int) -> dict[str, int]:
    """Drop publications beyond the newest `keep`, and every artifact, vector and log that none of the kept ones uses.

    Returns what was dropped: {"publications", "artifacts", "encoders", "bytes"}.
    """
    current = workspace.current.readlink().name if workspace.current.is_symlink() else ""
    publications = sorted(path for path in workspace.published.glob("[!.]*") if (path / PUBLICATION).is_file())
    kept = set(publications[-keep:]) | {p for p in publications if p.name == current}
    used: set[tuple[str, str]] = set()
    for path in kept:
        used |= set(json.loads((path / PUBLICATION).read_text())["artifacts"].items())
    if not kept:  # nothing published yet: the newest artifact of each stage is work in progress, not litter
        used = {(stage.name, a.key) for stage in PIPELINE for a in workspace.artifacts(stage.name)[:1]}
    used |= {(GATE.name, a.key) for a in workspace.artifacts(GATE.name)[:keep]}  # spares a refused refresh its scoring
    encoders = {encoder_of(workspace.folder("encode", key)) for stage, key in used if stage == "encode"}
    doomed = {"publications": [path for path in publications if path not in kept]}
    doomed["artifacts"] = [p for p in workspace.runs.glob("*/[!.]*") if (p.parent.name, p.name) not in used]
    doomed["encoders"] = [path for path in workspace.vectors.glob("[!.]*") if path.name not in encoders]
    leftovers = [
        *workspace.scratch.glob("*"),
        *(p for p in workspace.logs.glob("*/*") if (p.parent.name, p.name) not in used),
    ]
    freed = 0
    for path in [*doomed["publications"], *doomed["artifacts"], *doomed["encoders"], *leftovers]:
        freed += sum(p.stat().st_size for p in path.rglob("*") if p.is_file() and not p.is_symlink())
        drop(path)
    dropped = {name: len(paths) for name, paths in doomed.items()} | {"bytes": freed}
    workspace.event(event="gc", **dropped)
    return dropped


def drop(folder: Path) -> None:
    """Delete an artifact or a publication; its manifest goes first, so that a half-deleted one never counts."""
    for name in (MANIFEST, PUBLICATION):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def encoder_of(folder: Path) -> str:
    """The vector folder that an encode artifact uses."""
    try:
        return str(json.loads((folder / "encoding.json").read_text())["encoder"])
    except (OSError, ValueError, KeyError):
        return ""


def broken_publications(workspace: Workspace) -> list[str]:
    """Files of `current` whose artifacts no longer hash to their manifests: for `prep status`."""
    published = current_publication(workspace)
    broken: list[str] = []
    for stage, key in (published or {"artifacts": {}})["artifacts"].items():
        folder = workspace.folder(stage, key)
        manifest = read_manifest(folder)
        if manifest is None or folder_digests(folder) != manifest["files"]:
            broken.append(f"runs/{stage}/{key}")
    return broken
