"""The commands that check the mask and the labels: calibrate and audit. They change nothing."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.cli.inspect import format_rank, truncate_text
from pipeline.cli.output import CommandResult, ResultTable
from pipeline.cli.session import load_artifacts
from pipeline.workflow.runner import Runner
from stages.core.errors import InputError, QualityGateError


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
                f"the learned mask can't be trusted on this table: {mask_summary['estimate']['unreliable_reason']}"
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
    from stages.evaluation.bootstrap import format_interval

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
    inputs["encoder"] = loaded.artifacts["encode"].folder / "encoder.json"
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
        parts.append(
            "so many findings point to the retriever, which may not fit this language or domain, not to labels"
        )
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
