"""What the commands do that make something, each a function from its options to a printable result."""

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.cli.config_template import render_commented_toml
from pipeline.cli.output import CommandResult, ResultTable
from pipeline.cli.progress import make_progress
from pipeline.executors.factory import open_executor
from pipeline.workflow.artifact_store import Artifact, Workspace
from pipeline.workflow.config import PipelineSettings, load_settings, remember_settings
from pipeline.workflow.graph import PIPELINE
from pipeline.workflow.remote_files import POINTER_FILE, fetch_files, find_cached_files, redact_url, upload_publication
from pipeline.workflow.remote_tables import replace_stdin_tables
from pipeline.workflow.runner import Runner
from stages.core.errors import InputError
from stages.core.files import write_durably
from stages.training import distributed


def write_config(path: Path, force: bool) -> CommandResult:
    """Write the commented settings file."""
    if path.exists() and not force:
        raise InputError(f"{path} is there already. --force overwrites it.")
    try:
        write_durably(path, render_commented_toml())
    except OSError as error:
        raise InputError(f"{path} can't be written: {error.strerror}") from error
    return CommandResult({"written": str(path)}, [f"wrote {path}: set `tables` under [pairs], then run `prep refresh`"])


@contextmanager
def open_session(
    options: Mapping[str, Any], *, trains: bool = False, remembers: bool = False, fetch: bool = True
) -> Iterator[tuple[Runner, PipelineSettings]]:
    """A runner on the locked workspace under the settings of this command. Tables behind URLs are fetched.

    `trains`: the command may train, so it refuses to run in several copies. `remembers`: what it was given is kept for
    later commands if no file holds the settings.
    """
    if trains:
        distributed.check_launcher()
    workspace = Workspace(options["workspace"])
    progress = make_progress(options["quiet"], options["verbose"])
    try:
        with workspace.lock(), open_executor(options.get("executor", "local"), progress) as executor:
            given = replace_stdin_tables(workspace, options["given"])
            settings, from_file = load_settings(options["config"], workspace, given)
            if notice := settings.describe_given() if from_file else settings.describe_remembered():
                progress.log(notice)
            settings.local_paths = (fetch_files if fetch else find_cached_files)(
                workspace, settings.sections.get("pairs", {})
            )
            params: Any = settings.validate_params()
            yield Runner(workspace, params, progress, executor), settings
            if remembers and not from_file:
                remember_settings(workspace, given)
    finally:
        progress.close()


def build_stage(target: str, sections: Collection[str], options: Mapping[str, Any]) -> CommandResult:
    """Bring a stage up to date; report it and those before it whose settings stand in `sections`."""
    with open_session(options, trains=target in ("train", "evaluate"), remembers=True) as (runner, _):
        runner.build(target)
    stage_names = [stage.name for stage in PIPELINE if stage.name in runner.artifacts and stage.section in sections]
    parts: list[str | ResultTable] = []
    for name in stage_names:
        parts += format_summary(name, runner.artifacts[name], get_accepted_share(runner))
    if not runner.executed_stages:
        parts.append("nothing to do: everything is up to date")
    parts += [f"wrote {runner.artifacts[name].folder}" for name in stage_names if name in runner.executed_stages]
    return CommandResult(
        {
            "ran": runner.executed_stages,
            "artifacts": {name: str(artifact.folder) for name, artifact in runner.artifacts.items()},
            "summary": {name: artifact.summary for name, artifact in runner.artifacts.items()},
        },
        parts,
    )


def run_refresh(options: Mapping[str, Any], force: bool) -> CommandResult:
    """The whole road, published."""
    from pipeline.report.page import render_report
    from pipeline.workflow.refresh import refresh

    with open_session(options, trains=True, remembers=True) as (runner, settings):
        refresh_params = settings.validate_refresh_params()
        refreshed = refresh(runner, refresh_params.keep, force, render_report)
        is_uploaded, upload_error = False, None
        try:
            is_uploaded = bool(refresh_params.publish_to) and upload_publication(
                runner.workspace, str(refresh_params.publish_to)
            )
        except InputError as error:
            upload_error = error  # raised below: the flags are remembered first, so that the next refresh tries again
    if upload_error:
        raise InputError(
            f"{refreshed.status} here as {refreshed.publication}, but not there: {upload_error}"
        ) from upload_error
    parts: list[str | ResultTable] = []
    for stage in PIPELINE:
        parts += format_summary(stage.name, runner.artifacts[stage.name], get_accepted_share(runner))
    current = options["workspace"] / "current"
    if refreshed.n_moved_queries:
        parts.append(f"{refreshed.n_moved_queries:,} questions changed their split, because rows were added or changed")
    if refreshed.gate_verdict:
        parts.append(format_gate_verdict(refreshed.gate_verdict))
    if refreshed.status == "unchanged":
        parts.append(f"nothing to do: {current} is up to date ({refreshed.publication})")
    else:
        parts += [
            f"published {refreshed.publication}; {current} points to it",
            f"  look next:  {current}/mined.jsonl    the training file, with scores and ids",
            f"              {current}/report.html    the whole refresh on one page, for a browser",
            f"              {current}/metrics.json   every figure above, and more",
            f"              {current}/reranker       load it with sentence_transformers.CrossEncoder",
            "              prep show QUESTION            why each candidate is a negative, or is not",
        ]
    if is_uploaded:
        parts.append(
            f"copied {refreshed.publication} to {redact_url(str(refresh_params.publish_to))}; {POINTER_FILE} there "
            f"names it"
        )
    return CommandResult(
        {
            "status": refreshed.status,
            "publication": refreshed.publication,
            "copied": is_uploaded,
            "ran": refreshed.executed_stages,
            "gate": refreshed.gate_verdict,
            "moved": refreshed.n_moved_queries,
            "summary": {name: artifact.summary for name, artifact in runner.artifacts.items()},
        },
        parts,
    )


def format_gate_verdict(verdict: Mapping[str, Any]) -> str:
    """The gate's finding in one line."""
    if verdict["difference"] is None:
        return "against the published reranker: there is no test question to compare on"
    from stages.evaluation.bootstrap import format_interval

    interval = "" if verdict["low"] is None else f" {format_interval(verdict['low'], verdict['high'], '+.4f')}"
    means = f"{verdict['published_mean']:.4f} -> {verdict['new_mean']:.4f}"
    change = f"{means}, difference {verdict['difference']:+.4f}{interval}"
    return f"against the published reranker: {verdict['metric']} {change}: {verdict['verdict']}"


def get_accepted_share(runner: Runner) -> float | None:
    """The share of false negatives that the learned mask accepted; None where another rule was used."""
    mask = runner.artifacts.get("mask")
    estimate = mask and mask.summary.get("estimate")
    return estimate["max_false_negatives"] if estimate else None


def format_summary(stage: str, artifact: Artifact, accepted_share: float | None = None) -> list[str | ResultTable]:
    """What a stage reported, for a person; `get_accepted_share`: of the learned mask."""
    summary = artifact.summary
    if stage == "pairs":
        from stages.pairs.funnel import format_funnel

        return ["", *format_funnel(summary)]
    if stage == "mask":
        from stages.mining.explain import describe_estimate

        rows = [
            [verdict, reason, f"{n:,}"]
            for verdict, reasons in summary["verdicts"].items()
            for reason, n in reasons.items()
        ]
        table = ResultTable(f"mask: {summary['rule']}", ["verdict", "reason", "candidates"], rows)
        return [table, *describe_estimate(summary.get("estimate"))]
    if stage == "evaluate":
        from stages.evaluation.conclusions import describe_result, list_advice
        from stages.evaluation.tables import format_metrics_table

        metrics = json.loads((artifact.folder / "metrics.json").read_text())
        lists = metrics["candidate_lists"]["test"]
        title = (
            f"test: {lists['n_queries']:,} questions, the retriever's best {metrics['parameters']['top_k']} reranked"
        )
        header, *rows = format_metrics_table(metrics) or [["test: no questions"]]
        return [ResultTable(title, header, rows), f"{describe_result(metrics)}.", *list_advice(metrics)]
    values = {name: value for name, value in summary.items() if value is not None}
    false_negative_share = values.pop("expected_false_negative_rate", None)
    line = f"{stage}: " + ", ".join(f"{name.replace('_', ' ')} {_format_value(v)}" for name, v in values.items())
    expected = (
        []
        if false_negative_share is None
        else [
            format_expected_false_negatives(
                false_negative_share, summary["negatives"], summary["n_weighted_negatives"], accepted_share
            )
        ]
    )
    return [line, *expected]


def format_expected_false_negatives(
    false_negative_share: float, n_negatives: int, n_weighted: int, accepted_share: float | None
) -> str:
    """How many of the negatives written are false, as expected; `n_weighted` of them stand there with a weight."""
    told = f"false ones expected among the {n_negatives:,} negatives: {false_negative_share:.2%}"
    if not n_weighted and accepted_share is not None and false_negative_share > 1.02 * accepted_share:
        return (
            f"{told}, more than the {accepted_share:.1%} accepted: the mask reckoned with the hardest that it lets "
            f"through, "
            "and others stand in their place (near-duplicates are thinned; hub_cap, prefer_category, sampling, "
            "source_quotas)"
        )
    if not n_weighted:
        return told
    return (
        f"{told}; {n_weighted:,} of them the mask would have set aside: relabel = weight keeps them, with a weight "
        "(neg_weights), beyond the share of false ones that is accepted"
    )


def _format_value(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {_format_value(v)}" for name, v in value.items()) + ")"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def run_gc(options: Mapping[str, Any], keep: int | None) -> CommandResult:
    """Drop what no publication uses."""
    from pipeline.workflow.garbage_collection import collect_garbage

    with open_session(options, fetch=False) as (runner, settings):
        dropped = collect_garbage(runner.workspace, keep or settings.validate_refresh_params().keep)
    counts = ", ".join(f"{dropped[name]} {name}" for name in ("publications", "artifacts", "encoders"))
    return CommandResult(dropped, [f"dropped {counts}: {dropped['bytes'] / 1e6:,.1f} MB"])
