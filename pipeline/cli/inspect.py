"""What the commands do that only look: status, show, calibrate and audit."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.cli.build import open_session
from pipeline.cli.output import CommandResult, ResultTable
from pipeline.cli.progress import make_progress
from pipeline.workflow.artifact_store import MANIFEST_FILE, Artifact, Workspace
from pipeline.workflow.config import load_settings
from pipeline.workflow.remote_files import find_cached_files
from pipeline.workflow.runner import Runner
from stages.core.errors import InputError, QualityGateError, WorkspaceBusyError


def report_status(options: Mapping[str, Any]) -> CommandResult:
    """How everything stands; takes no lock and runs nothing."""
    from pipeline.workflow.publish import read_latest_publication, read_refusal

    workspace = Workspace(options["workspace"])
    workspace.require_current_layout()
    settings, _ = load_settings(options["config"], workspace, options["given"])
    settings.local_paths = find_cached_files(workspace, settings.sections.get("pairs", {}))
    runner = Runner(workspace, settings.validate_params(), make_progress(True, False))
    rows, stages = [], []
    for stage_status in runner.get_status():
        folder = stage_status.artifact.folder if stage_status.artifact else None
        modified_at = _get_modified_time(folder / MANIFEST_FILE) if folder else None
        rows.append([stage_status.stage, stage_status.state, format_age(modified_at), "; ".join(stage_status.reasons)])
        stages.append(
            {
                "stage": stage_status.stage,
                "state": stage_status.state,
                "made": modified_at,
                "why": list(stage_status.reasons),
            }
            | {"folder": str(folder) if folder else None}
        )
    parts: list[str | ResultTable] = [ResultTable(f"{workspace.root}", ["stage", "state", "age", "why"], rows)]
    data: dict[str, Any] = {"stages": stages, "published": None, "refused": read_refusal(workspace)}
    published = read_latest_publication(workspace)
    if published is None:
        parts.append("nothing is published yet: `prep refresh` does it")
    else:
        modified_at = _get_modified_time(workspace.current)
        keys = published["artifacts"].items()
        broken = [f"runs/{stage}/{key}" for stage, key in keys if workspace.find_artifact(stage, key) is None]
        data["published"] = {"name": workspace.current.resolve().name, "made": modified_at, "broken": broken}
        parts.append(f"published: {workspace.current.resolve().name}, {format_age(modified_at)} old")
        parts += [f"damaged or missing: {path}; the next `prep refresh` makes it again" for path in broken]
    if data["refused"]:
        parts.append(f"not published: {data['refused']['reason']}")
        parts.append(
            f"  its figures: "
            f"{workspace.get_artifact_folder('evaluate', data['refused']['artifacts'].get('evaluate', '-'))}"
        )
    return CommandResult(data, parts)


def _get_modified_time(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:  # dropped by a gc at this moment
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


def show_query(options: Mapping[str, Any], query: str, top: int) -> CommandResult:
    """One query with its positives and its judged candidates."""
    from stages.mining.explain import MaskSummary, describe_query, load_query_view

    files = {
        "queries": "pairs",
        "corpus": "pairs",
        "qrels_scored": "search",
        "features": "features",
        "verifier_scores": "verify",
    }
    artifacts = load_mask_artifacts(options)
    inputs = {
        stem: artifacts[stage].folder / f"{stem}.parquet" for stem, stage in {**files, "verdicts": "mask"}.items()
    }
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
            *(_format_rank(row), f"{row['score']:.3f}", row["verdict"], row["mined"] or ""),
            *(row["explanation"], row["doc_id"], _shorten(row["text"], 100)),
        ]
        for row in [*positives, *others[:top]]
    ]
    header = ["rank", "score", "verdict", "mined", "why", "document", "text"]
    left = len(others) - top
    return CommandResult(
        {**found, "mask": asdict(policy), "negatives": negatives, "documents": [*positives, *others[:top]]},
        [
            f"{found['query_id']} ({found['split']}): {found['query']}",
            *describe_query(found, frame, negatives, policy),
            ResultTable("", header, rows),
            *([f"{left:,} more candidates: --top {len(others)} shows all"] if left > 0 else []),
        ],
    )


def load_mask_artifacts(options: Mapping[str, Any]) -> dict[str, Artifact]:
    """Those of the stages up to mask, and of compose where something can be composed: as they stand where they are up
    to date, which needs no lock; else brought up to date; else, where another run is at that, those published."""
    from pipeline.workflow.publish import read_latest_publication

    workspace = Workspace(options["workspace"])
    workspace.require_current_layout()
    settings, _ = load_settings(options["config"], workspace, options["given"])
    settings.local_paths = find_cached_files(workspace, settings.sections.get("pairs", {}))
    runner = Runner(workspace, settings.validate_params(), make_progress(True, False))
    fresh = {s.stage: s.artifact for s in runner.get_status() if s.state == "fresh" and s.artifact}
    needed = {"pairs", "search", "features", "verify", "mask"}
    if {*needed, "sample"} <= fresh.keys():
        return fresh
    try:
        with open_session(options) as (runner, _):
            runner.build("mask")
            try:
                runner.build("sample")
            except InputError as error:  # that nothing is left to compose is what a person may want to look into
                runner.progress.log(f"mined.jsonl is not written: {error}")
    except WorkspaceBusyError:
        published = read_latest_publication(workspace)
        held = {
            stage: workspace.find_artifact(stage, key)
            for stage, key in (published or {"artifacts": {}})["artifacts"].items()
        }
        whole = {stage: artifact for stage, artifact in held.items() if artifact}
        if not needed <= whole.keys():
            raise
        return whole
    return runner.artifacts


def _format_rank(row: Mapping[str, Any]) -> str:
    return "-" if row["rank"] is None else str(row["rank"])


def _shorten(text: str, max_chars: int = 160) -> str:
    return text if len(text) <= max_chars else text[: max_chars - 1].rstrip() + "…"


def calibrate_mask(options: Mapping[str, Any]) -> CommandResult:
    """What each budget of false negatives, and each fixed rule, would give on this table's candidates."""
    from stages.bench.calibration import compute_tradeoffs
    from stages.mining.explain import describe_estimate

    with open_session(options) as (runner, _):  # on the mask alone, so that nothing else takes it for a setting
        params: Any = runner.params["mask"]
        learned = params.model_copy(update={"mask": "learned", "threshold": None, "relabel": "no"})
        runner = Runner(runner.workspace, {**runner.params, "mask": learned}, runner.progress, runner.executor)
        runner.build("mask")
        folders = {name: artifact.folder for name, artifact in runner.artifacts.items()}
        mask_summary = runner.artifacts["mask"].summary
        if mask_summary["rule"] != "learned":
            raise InputError(
                f"the learned mask can't be trusted on this table: {mask_summary['estimate']['unreliable_reason']}"
            )
        files = {"queries": "pairs", "qrels_scored": "search", "verdicts": "mask", "holdout_candidates": "features"}
        found = compute_tradeoffs({name: folders[stage] / f"{name}.parquet" for name, stage in files.items()}, learned)
    header = ["expected", "95 %", "hardness", "fill", "found"]
    budgets = [[f"{row['max_false_negatives']:.1%}", *_format_calibration_row(row)] for row in found["budgets"]]
    rules = [[row["rule"], *_format_calibration_row(row)] for row in found["rules"]]
    return CommandResult(
        {**found, "estimate": mask_summary["estimate"]},
        [
            f"{found['queries']:,} of {found['of']:,} train questions; false negatives expected among what is written "
            "(95 %: the luck of the questions, not of the model), and found where positives were hidden:",
            ResultTable("learned mask, by the share that you accept", ["max_false_negatives", *header], budgets),
            ResultTable("fixed rules, on the same candidates", ["rule", *header], rules),
            *describe_estimate(mask_summary["estimate"]),
        ],
    )


def _format_calibration_row(row: Mapping[str, Any]) -> list[str]:
    again = row["holdout_validation"]
    found = f"{again['observed']:.2%} ({again['n_held_out']:,})" if again else "not checked"
    if row["expected"] is None:
        return ["", "", "", "0.0%", found]
    from stages.evaluation.bootstrap import format_interval

    interval = format_interval(row["low"], row["high"], ".2%")
    return [f"{row['expected']:.2%}", interval, f"{row['hardness']:.3f}", f"{row['fill']:.1%}", found]


def audit_positives(
    options: Mapping[str, Any], top: int, out: Path | None, max_share: float | None, force: bool = False
) -> CommandResult:
    """The positives that deserve a look; all of them into `out`, where it is given."""
    from stages.mining.audit import checks as stage
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
            raise InputError(
                f"--out {out} is there already, and may hold what somebody decided. --force overwrites it."
            )
    files = {
        "queries": "pairs",
        "corpus": "pairs",
        "label_overrides": "pairs",
        "qrels_scored": "search",
        "verdicts": "mask",
    }
    with open_session(options) as (runner, _):
        runner.build("mask")
        inputs = {name: runner.artifacts[at].folder / f"{name}.parquet" for name, at in files.items()}
        inputs["encoder"] = runner.artifacts["encode"].folder / "encoder.json"
        given: Any = runner.params["sample"]
        found, n_positives = stage.find_label_issues(inputs, runner.workspace.vectors, given.num_negatives)
        table = build_review_table(found, inputs)
    summary = count_findings(table, n_positives)
    if out:
        write_findings(table, out)
    by_finding = ", ".join(f"{name} {n:,}" for name, n in summary["counts"].items())
    summary_line = (
        f"{summary['n_flagged']:,} of {n_positives:,} positives ({summary['share']:.2%}) deserve a look: {by_finding}"
    )
    if max_share is not None and summary["share"] > max_share:
        raise QualityGateError(
            f"{summary_line}. Accepted are {max_share:.2%} (--max-share); `prep audit --out FILE` lists them."
        )
    parts: list[str | ResultTable] = [summary_line]
    if summary["share"] > stage.MAX_PLAUSIBLE_SHARE:
        parts.append("so many say more of the retriever, which may not fit this language or field, than of the labels")
    header = ["question", "positive", "rank", "score", "why"]
    for name, n in summary["counts"].items():
        rows = [
            [
                _shorten(row["query"]),
                _shorten(row["text"]),
                _format_rank(row),
                f"{row['score']:.3f}",
                row["explanation"],
            ]
            for row in select_worst(table, name, top)
        ]
        if rows:
            title = f"{name}: the first {len(rows)} of {n:,}, worst first"
            parts.append(ResultTable(title, header, rows))
    if out:
        marked = ": fill in its label, positive or negative, and name it as `label_overrides` under [pairs]"
        parts.append(f"wrote {out}{'' if out.suffix.lower() == '.parquet' else marked}")
    return CommandResult({**summary, "findings": table.to_dicts()}, parts)
