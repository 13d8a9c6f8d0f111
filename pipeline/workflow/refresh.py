"""A refresh: every step is brought up to date, the new reranker is compared with what is published, then published."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.workflow.artifact_store import Artifact, Workspace, read_manifest
from pipeline.workflow.garbage_collection import collect_garbage
from pipeline.workflow.graph import PIPELINE
from pipeline.workflow.publish import (
    RERANKER,
    is_current_complete,
    publish,
    read_latest_publication,
    record_refusal,
)
from pipeline.workflow.runner import Runner
from stages.core.errors import QualityGateError
from stages.statistics.bootstrap import format_interval

ReportRenderer = Callable[[Mapping[str, Artifact], str], str]
"""Artifact of each step and the ranking that is published -> the HTML of the report; called only if something is."""


@dataclass(frozen=True)
class RefreshResult:
    """What a refresh did: "published" or "unchanged", where, which ranking, what ran, and what the gate found."""

    status: str
    publication: str
    ranking: str
    """"reranker" or "embedder": a reranker that ranks worse than the embedder is left out."""
    executed_stages: list[str]
    gate_verdict: dict[str, Any] | None
    n_moved_queries: int


def refresh(runner: Runner, keep: int, force: bool, render_report: ReportRenderer) -> RefreshResult:
    """Every step once, then publish. If the new reranker is worse than the published one, raises `QualityGateError` and
    leaves `current` as it is. If it is worse than the embedder, publishes all but the reranker.

    `keep` publications stay, the new one included. `force` publishes a reranker that is worse than the published one
    or than the embedder, or can't be compared; never one that collapsed.
    """
    workspace = runner.workspace
    try:
        outcome = _publish_if_accepted(runner, force, render_report)
    except QualityGateError as refusal:
        record_refusal(workspace, {name: artifact.key for name, artifact in runner.artifacts.items()}, str(refusal))
        workspace.log_event(event="refused", reason=str(refusal))
        collect_garbage(workspace, keep, include_side_stores=False)
        raise
    if outcome.status == "published":
        workspace.log_event(
            event="published",
            publication=outcome.publication,
            ranking=outcome.ranking,
            gate=outcome.gate_verdict,
            n_moved_queries=outcome.n_moved_queries,
        )
        collect_garbage(workspace, keep, include_side_stores=False)
    return outcome


def _publish_if_accepted(runner: Runner, force: bool, render_report: ReportRenderer) -> RefreshResult:
    workspace = runner.workspace
    artifacts = {stage.name: runner.build(stage.name) for stage in PIPELINE}
    published = read_latest_publication(workspace)
    ranking = RERANKER if force else choose_ranking(artifacts["evaluate"])
    if (
        published
        and published["artifacts"] == {n: a.key for n, a in artifacts.items()}
        and published["ranking"] in (ranking, RERANKER)  # one that was forced once stays
        and is_current_complete(workspace)
    ):
        current = str(workspace.current.readlink())
        return RefreshResult("unchanged", current, published["ranking"], runner.executed_stages, None, 0)
    verdict = run_gate(runner, artifacts, published, force) if published else None
    if verdict and verdict["verdict"] == "worse" and not force:
        raise QualityGateError(
            f"the new reranker is worse than the published one: {verdict['metric']} {verdict['new_mean']:.4f} against "
            f"{verdict['published_mean']:.4f}, difference {verdict['difference']:+.4f} "
            f"{format_interval(verdict['low'], verdict['high'], '+.4f')} on {verdict['n_queries']} test queries. "
            "`current` is untouched; --force publishes it all the same."
        )
    n_moved_queries = count_moved_queries(workspace, published, artifacts["pairs"])
    publication = f"published/{publish(workspace, artifacts, render_report(artifacts, ranking), ranking)}"
    return RefreshResult("published", publication, ranking, runner.executed_stages, verdict, n_moved_queries)


def choose_ranking(evaluation: Artifact) -> str:
    """The ranking that the verdict on the test split publishes: "reranker", or "embedder" if the reranker is worse."""
    metrics = json.loads((evaluation.folder / "metrics.json").read_text(encoding="utf-8"))
    return str(metrics["verdict"]["test"]["published"])


def run_gate(
    runner: Runner, artifacts: dict[str, Artifact], published: dict[str, Any], force: bool
) -> dict[str, Any] | None:
    """The gate's verdict on both rerankers; None if they are the same, if none is published, or if `force` is given and
    the published one is missing. Raises `QualityGateError` if it is missing without `force`."""
    if published["ranking"] != RERANKER:
        return None
    key = published["artifacts"]["train"]
    if key == artifacts["train"].key:
        return None
    old = runner.workspace.find_artifact("train", key)
    if old is None and force:
        return None
    if old is None:
        raise QualityGateError(
            "the published reranker (current/reranker) is missing or damaged, so the new one can't be compared with "
            "it. `current` is untouched; --force publishes the new one without a comparison."
        )
    if old.digest_output("reranker") == artifacts["train"].digest_output("reranker"):
        return None
    pairs = runner.workspace.find_artifact("pairs", published["artifacts"]["pairs"]) or artifacts["pairs"]
    gate_artifact = runner.build("gate", {"train": old, "pairs": pairs})
    verdict: dict[str, Any] = json.loads((gate_artifact.folder / "gate.json").read_text(encoding="utf-8"))
    return verdict


def count_moved_queries(workspace: Workspace, published: dict[str, Any] | None, pairs: Artifact) -> int:
    """How many queries are in another split than in the current publication."""
    if (
        published is None
        or read_manifest(workspace.get_artifact_folder("pairs", published["artifacts"]["pairs"])) is None
    ):
        return 0
    import polars as pl

    from stages.pairs.split import count_split_changes

    old = workspace.get_artifact_folder("pairs", published["artifacts"]["pairs"])
    return int(
        count_split_changes(pl.read_parquet(old / "queries.parquet"), pl.read_parquet(pairs.folder / "queries.parquet"))
    )
