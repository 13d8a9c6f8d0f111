"""The commands that look at the pipeline's state and at single queries: status and show."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.cli.output import CommandResult, ResultTable
from pipeline.cli.session import load_artifacts, open_read_only
from pipeline.workflow.artifact_store import MANIFEST_FILE
from pipeline.workflow.graph import PUBLISHED_OUTPUTS
from pipeline.workflow.publish import read_latest_publication, read_refusal

MAX_TABLE_TEXT_CHARS = 160


def report_status(options: Mapping[str, Any]) -> CommandResult:
    """The state of every step, and what is published; takes no lock and runs nothing."""
    runner, _ = open_read_only(options)
    workspace = runner.workspace
    rows, stages = [], []
    for status in runner.get_status():
        folder = status.artifact.folder if status.artifact else None
        modified_at = _get_modified_time(folder / MANIFEST_FILE) if folder else None
        rows.append([status.stage, status.state, format_age(modified_at), "; ".join(status.reasons)])
        stages.append(
            {
                "stage": status.stage,
                "state": status.state,
                "made": modified_at,
                "why": list(status.reasons),
                "folder": str(folder) if folder else None,
            }
        )
    parts: list[str | ResultTable] = [ResultTable(f"{workspace.root}", ["step", "state", "age", "why"], rows)]
    data: dict[str, Any] = {"stages": stages, "published": None, "refused": read_refusal(workspace)}
    published = read_latest_publication(workspace)
    if published is None:
        parts.append("nothing is published yet: run `prep refresh`")
    else:
        modified_at = _get_modified_time(workspace.current)
        keys = published["artifacts"]
        broken = [step for step, key in keys.items() if workspace.find_artifact(step, key) is None]
        data["published"] = {
            "name": workspace.current.resolve().name,
            "made": modified_at,
            "broken": [f"runs/{step}/{keys[step]}" for step in broken],
        }
        parts.append(f"published in {workspace.current}, {format_age(modified_at)} ago")
        for step in broken:
            names = [path.split("/", 1)[1] for path in PUBLISHED_OUTPUTS if path.startswith(f"{step}/")]
            what = ", ".join(names) or f"the result of {step}"
            parts.append(f"damaged or missing: {what}; the next `prep refresh` makes it again")
    if data["refused"]:
        parts += [f"not published: {data['refused']['reason']}", "  `prep evaluate` shows the figures of what is new"]
    return CommandResult(data, parts)


def _get_modified_time(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:  # deleted by a gc at this moment
        return None


def format_age(modified_at: float | None) -> str:
    """A time span in the largest unit that fits: "3 h"."""
    if modified_at is None:
        return "-"
    seconds = max(0.0, time.time() - modified_at)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


_QUERY_TABLES = {
    "queries": "pairs",
    "corpus": "pairs",
    "qrels_scored": "search",
    "features": "features",
    "verifier_scores": "verify",
    "verdicts": "mask",
}
"""The tables that show a query, and the steps that write them."""


def show_query(options: Mapping[str, Any], query: str, top: int) -> CommandResult:
    """One query with its positives and its candidates, and why each is a negative or not."""
    from stages.mining.explain import MaskSummary, describe_query, load_query_view

    loaded = load_artifacts(options, ("pairs", "search", "features", "verify", "mask"), wanted="sample")
    artifacts = loaded.artifacts
    inputs = {stem: artifacts[step].folder / f"{stem}.parquet" for stem, step in _QUERY_TABLES.items()}
    if "sample" in artifacts:
        inputs["mined"] = artifacts["sample"].folder / "mined.jsonl"
    mask_summary, mask_params = artifacts["mask"].summary, artifacts["mask"].manifest["parameters"]
    policy = MaskSummary(
        mask_summary["rule"],
        mask_summary["threshold"],
        tuple(mask_params["rank_window"]),
        mask_params["max_false_negatives"],
        artifacts["sample"].summary["expected_false_negative_rate"] if "sample" in artifacts else None,
        mask_summary["estimate"]["unreliable_reason"] if mask_summary["rule"] != mask_params["mask"] else None,
    )
    found, frame, negatives = load_query_view(query, inputs, policy.rule)
    documents = frame.to_dicts()
    positives = [row for row in documents if row["verdict"] == "positive"]
    others = [row for row in documents if row["verdict"] != "positive"]
    rows = [
        [
            *(format_rank(row), f"{row['score']:.3f}", row["verdict"], row["mined"] or ""),
            *(row["explanation"], row["doc_id"], truncate_text(row["text"], 100)),
        ]
        for row in [*positives, *others[:top]]
    ]
    header = ["rank", "score", "verdict", "mined", "why", "document", "text"]
    n_more = len(others) - top
    return CommandResult(
        {
            **found,
            "mask": asdict(policy),
            "negatives": negatives,
            "documents": [*positives, *others[:top]],
            "notice": loaded.notice,
        },
        [
            *loaded.notices,
            f"{found['query_id']} ({found['split']}): {found['query']}",
            *describe_query(found, frame, negatives, policy),
            ResultTable("", header, rows),
            *([f"{n_more:,} more candidates: --top {len(others)} shows all"] if n_more > 0 else []),
        ],
    )


def format_rank(row: Mapping[str, Any]) -> str:
    """The rank of a row, "-" if it was not retrieved."""
    return "-" if row["rank"] is None else str(row["rank"])


def truncate_text(text: str, max_chars: int = MAX_TABLE_TEXT_CHARS) -> str:
    """The first characters of a text, with an ellipsis if any are cut off."""
    return text if len(text) <= max_chars else text[: max_chars - 1].rstrip() + "…"
