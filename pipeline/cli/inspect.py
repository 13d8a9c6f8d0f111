"""The commands that look and change nothing: status, show, calibrate and audit."""

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.cli.output import CommandResult, ResultTable
from pipeline.cli.session import load_artifacts, open_read_only
from pipeline.cli.summaries import describe_fit_lines
from pipeline.workflow.artifact_store import MANIFEST_FILE, Artifact, Workspace
from pipeline.workflow.publish import RERANKER, list_published_outputs, read_latest_publication, read_refusal
from pipeline.workflow.runner import Runner
from stages.core.errors import InputError, QualityGateError
from stages.evaluation.conclusions import Verdict, describe_publication

MAX_TABLE_TEXT_CHARS = 160


def report_status(options: Mapping[str, Any]) -> CommandResult:
    """The state of every step, and what is published; takes no lock and runs nothing."""
    runner, _ = open_read_only(options)
    workspace = runner.workspace
    rows, stages = [], []
    statuses = runner.get_status()
    for status in statuses:
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
    data["encoder_fit"], lines = _read_encoder_fit({one.stage: one.artifact for one in statuses})
    parts += lines
    published = read_latest_publication(workspace)
    if published is None:
        parts.append("nothing is published yet: run `prep refresh`")
    else:
        modified_at = _get_modified_time(workspace.current)
        keys = published["artifacts"]
        broken = [step for step, key in keys.items() if workspace.find_artifact(step, key) is None]
        verdict = _read_verdict(workspace)
        data["published"] = {
            "name": workspace.current.resolve().name,
            "ranking": published["ranking"],
            "verdict": verdict,
            "made": modified_at,
            "broken": [f"runs/{step}/{keys[step]}" for step in broken],
        }
        parts.append(f"published in {workspace.current}, {format_age(modified_at)} ago")
        if verdict:
            parts.append(describe_publication(verdict, published["ranking"]))
            why = [*verdict["reasons"], *verdict["advice"]] if published["ranking"] != RERANKER else []
            parts += [f"  {line}" for line in why]
        for step in broken:
            names = [
                path.split("/", 1)[1]
                for path in list_published_outputs(published["ranking"])
                if path.startswith(f"{step}/")
            ]
            what = ", ".join(names) or f"the result of {step}"
            parts.append(f"damaged or missing: {what}; the next `prep refresh` makes it again")
    if data["refused"]:
        parts += [f"not published: {data['refused']['reason']}", "  `prep evaluate` shows the figures of what is new"]
    return CommandResult(data, parts)


def _read_verdict(workspace: Workspace) -> Verdict | None:
    """The verdict in the published metrics.json; None if it can't be read, or if an older version wrote it."""
    try:
        metrics = json.loads((workspace.current / "metrics.json").read_text(encoding="utf-8"))
        found: Verdict = metrics["verdict"]["test"]
    except (OSError, ValueError, KeyError):
        return None
    return found


def _read_encoder_fit(artifacts: Mapping[str, Artifact | None]) -> tuple[dict[str, Any] | None, list[str]]:
    """What search, or encode before there is a search, says of the encoder, as data and in lines."""
    last = artifacts["search"] or artifacts["encode"]
    if not last or "encoder_fit" not in last.summary:  # an older version wrote none
        return None, []
    return last.summary["encoder_fit"], describe_fit_lines(last.summary["encoder_fit"], last.summary["model"])


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
    mask = MaskSummary(
        mask_summary["rule"],
        mask_summary["threshold"],
        tuple(mask_params["rank_window"]),
        mask_params["max_false_negatives"],
        artifacts["sample"].summary["expected_false_negative_rate"] if "sample" in artifacts else None,
        mask_summary["estimate"]["unreliable_reason"] if mask_summary["rule"] != mask_params["mask"] else None,
    )
    found, frame, negatives = load_query_view(query, inputs, mask.rule)
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
            "mask": asdict(mask),
            "negatives": negatives,
            "documents": [*positives, *others[:top]],
            "notice": loaded.notice,
        },
        [
            *loaded.notices,
            f"{found['query_id']} ({found['split']}): {found['query']}",
            *describe_query(found, frame, negatives, mask),
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


def calibrate_mask(options: Mapping[str, Any]) -> CommandResult:
    """What each accepted rate of false negatives, and each fixed rule, would give on this table's candidates."""
    from stages.bench.calibration import compute_tradeoffs
    from stages.mining.explain import describe_estimate

    loaded = load_artifacts(options, ("pairs", "search", "features", "verify"))
    params: Any = loaded.runner.params["mask"]
    learned = params.model_copy(update={"mask": "learned", "threshold": None, "relabel": "no"})
    runner = Runner(loaded.runner.workspace, {**loaded.runner.params, "mask": learned}, loaded.runner.progress)
    upstream = loaded.artifacts
    with tempfile.TemporaryDirectory(prefix="prep-calibrate-") as scratch:
        if mask := runner.find("mask", upstream):
            folder, mask_summary = mask.folder, mask.summary
        else:
            folder = Path(scratch)
            mask_summary = runner.run_uncommitted("mask", upstream, folder)
        if mask_summary["rule"] != "learned":
            raise InputError(
                f"the learned mask is not reliable on this table: {mask_summary['estimate']['unreliable_reason']}"
            )
        files = {"queries": "pairs", "qrels_scored": "search", "holdout_candidates": "features"}
        inputs = {name: upstream[step].folder / f"{name}.parquet" for name, step in files.items()}
        found = compute_tradeoffs({**inputs, "verdicts": folder / "verdicts.parquet"}, learned)
    header = ["expected", "95 %", "hardness", "fill", "found"]
    budgets = [[f"{row['max_false_negatives']:.1%}", *_format_tradeoff(row)] for row in found["budgets"]]
    rules = [[row["rule"], *_format_tradeoff(row)] for row in found["rules"]]
    return CommandResult(
        {**found, "estimate": mask_summary["estimate"], "notice": loaded.notice},
        [
            *loaded.notices,
            f"{found['queries']:,} of {found['of']:,} train queries. expected: false negatives among the negatives "
            "that are written, with the 95 % interval over the queries (the model's own error is not in it). found: "
            "false negatives among those written where positives were held out.",
            ResultTable("learned mask, by the accepted rate", ["max_false_negatives", *header], budgets),
            ResultTable("fixed rules, on the same candidates", ["rule", *header], rules),
            *describe_estimate(mask_summary["estimate"]),
        ],
    )


def _format_tradeoff(row: Mapping[str, Any]) -> list[str]:
    from stages.statistics.bootstrap import format_interval

    validation = row["holdout_validation"]
    found = f"{validation['observed']:.2%} ({validation['n_held_out']:,})" if validation else "not checked"
    if row["expected"] is None:
        return ["", "", "", "0.0%", found]
    interval = format_interval(row["low"], row["high"], ".2%")
    return [f"{row['expected']:.2%}", interval, f"{row['hardness']:.3f}", f"{row['fill']:.1%}", found]


_AUDITED_TABLES = {
    "queries": "pairs",
    "corpus": "pairs",
    "label_overrides": "pairs",
    "qrels_scored": "search",
    "verdicts": "mask",
}
"""The tables that an audit reads, and the steps that write them."""


def audit_positives(
    options: Mapping[str, Any], top: int, out: Path | None, max_share: float | None, force: bool = False
) -> CommandResult:
    """The positives that may be wrong; all of them are written into `out` if it is given."""
    from stages.mining.audit.checks import MAX_PLAUSIBLE_SHARE, find_label_issues
    from stages.mining.audit.export import (
        build_review_table,
        check_extension,
        count_findings,
        select_worst,
        write_findings,
    )

    if out:
        check_extension(out)
        if out.exists() and not force:
            raise InputError(f"--out {out} exists, and may hold somebody's decisions. --force overwrites it.")
    loaded = load_artifacts(options, ("pairs", "encode", "search", "mask"))
    inputs = {name: loaded.artifacts[step].folder / f"{name}.parquet" for name, step in _AUDITED_TABLES.items()}
    encode_folder = loaded.artifacts["encode"].folder
    inputs |= {"encoder": encode_folder / "encoder.json", "text_hashes": encode_folder / "text_hashes.npy"}
    params: Any = loaded.runner.params["sample"]
    findings, n_positives = find_label_issues(inputs, loaded.runner.workspace.vectors, params.num_negatives)
    table = build_review_table(findings, inputs)
    summary = count_findings(table, n_positives)
    if out:
        write_findings(table, out)
    by_finding = ", ".join(f"{name} {count:,}" for name, count in summary["counts"].items())
    summary_line = (
        f"{summary['n_flagged']:,} of {n_positives:,} positives ({summary['share']:.2%}) deserve a look: {by_finding}"
    )
    if max_share is not None and summary["share"] > max_share:
        raise QualityGateError(
            f"{summary_line}. At most {max_share:.2%} are accepted (--max-share); `prep audit --out FILE` lists them."
        )
    parts: list[str | ResultTable] = [*loaded.notices, summary_line]
    if summary["share"] > MAX_PLAUSIBLE_SHARE:
        parts.append("with so many findings the encoder is the likelier cause: it may not fit this language or domain")
    header = ["query", "positive", "rank", "score", "why"]
    for name, count in summary["counts"].items():
        rows = [
            [
                *(truncate_text(row["query"]), truncate_text(row["text"]), format_rank(row), f"{row['score']:.3f}"),
                row["explanation"],
            ]
            for row in select_worst(table, name, top)
        ]
        if rows:
            parts.append(ResultTable(f"{name}: the first {len(rows)} of {count:,}, worst first", header, rows))
    if out:
        next_step = ": fill in its label, positive or negative, and name it as `label_overrides` under [pairs]"
        parts.append(f"wrote {out}{'' if out.suffix.lower() == '.parquet' else next_step}")
    return CommandResult({**summary, "findings": table.to_dicts(), "notice": loaded.notice}, parts)
