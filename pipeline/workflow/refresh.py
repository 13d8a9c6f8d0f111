"""A refresh: everything brought up to date, the new reranker held against the published one, then published."""

import json
from dataclasses import dataclass
from typing import Any

from pipeline.workflow.artifact_store import Artifact, Workspace, read_manifest
from pipeline.workflow.graph import GATE, PIPELINE
from pipeline.workflow.publish import collect, is_whole, latest_publication, publish, refuse
from pipeline.workflow.runner import Runner
from stages.core.errors import GateRefused


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
    try:
        outcome = _publish_if_fit(runner, force)
    except GateRefused as refusal:
        refuse(workspace, {name: artifact.key for name, artifact in runner.done.items()}, str(refusal))
        workspace.event(event="refused", why=str(refusal))
        collect(workspace, keep, everything=False)
        raise
    if outcome.status == "published":
        workspace.event(event="published", publication=outcome.publication, gate=outcome.gate, moved=outcome.moved)
        collect(workspace, keep, everything=False)
    return outcome


def _publish_if_fit(runner: Runner, force: bool) -> Outcome:
    workspace = runner.workspace
    artifacts = {stage.name: runner.bring(stage.name) for stage in PIPELINE}
    published = latest_publication(workspace)
    if published and published["artifacts"] == {n: a.key for n, a in artifacts.items()} and is_whole(workspace):
        return Outcome("unchanged", str(workspace.current.readlink()), runner.ran, None, 0)
    verdict = gate(runner, artifacts, published, force) if published else None
    if verdict and verdict["verdict"] == "worse" and not force:
        raise GateRefused(
            f"the new reranker is worse than the published one: {verdict['measure']} {verdict['new']:.4f} against "
            f"{verdict['old']:.4f}, difference {verdict['difference']:+.4f} "
            f"[{verdict['low']:+.4f}, {verdict['high']:+.4f}] on {verdict['queries']} test queries. "
            "`current` is untouched; --force publishes it all the same."
        )
    moved = moved_queries(workspace, published, artifacts["pairs"])
    return Outcome("published", f"published/{publish(workspace, artifacts)}", runner.ran, verdict, moved)


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
    pairs = runner.workspace.find("pairs", published["artifacts"]["pairs"]) or artifacts["pairs"]
    found = runner.run(
        GATE,
        runner.params[GATE.name],
        artifacts,
        {"old": old.folder / "reranker", "old_queries": pairs.folder / "queries.parquet"},
        {"old": old.digest("reranker"), "old_queries": pairs.digest("queries.parquet")},
    )
    verdict: dict[str, Any] = json.loads((found.folder / "gate.json").read_text(encoding="utf-8"))
    return verdict


def moved_queries(workspace: Workspace, published: dict[str, Any] | None, pairs: Artifact) -> int:
    """How many queries stand on another side of the split than in the current publication."""
    if published is None or read_manifest(workspace.folder("pairs", published["artifacts"]["pairs"])) is None:
        return 0
    import polars as pl

    from stages.pairs.split import moved

    old = workspace.folder("pairs", published["artifacts"]["pairs"])
    return int(moved(pl.read_parquet(old / "queries.parquet"), pl.read_parquet(pairs.folder / "queries.parquet")))
