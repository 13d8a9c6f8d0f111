"""What the commands do that make something, each a function from its options to a printable result."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.cli.output import Result, Table
from pipeline.cli.progress import progress_for
from pipeline.executors.factory import engine_for
from pipeline.workflow.artifact_store import Artifact, Workspace, write_durably
from pipeline.workflow.config import Settings, commented_toml, load_settings, remember
from pipeline.workflow.graph import PIPELINE, STAGES
from pipeline.workflow.remote_files import POINTER, at_hand, fetched, mirror, shown
from pipeline.workflow.remote_tables import spooled
from pipeline.workflow.runner import Runner
from stages.core.errors import InputError
from stages.training import distributed

_COMMON = ("workspace", "config", "as_json", "verbose", "quiet", "engine", "ray_address")


def write_config(path: Path, force: bool) -> Result:
    """Write the commented settings file."""
    if path.exists() and not force:
        raise InputError(f"{path} is there already. --force overwrites it.")
    try:
        write_durably(path, commented_toml())
    except OSError as error:
        raise InputError(f"{path} can't be written: {error.strerror}") from error
    return Result({"written": str(path)}, [f"wrote {path}: set `tables` under [pairs], then run `prep refresh`"])


@contextmanager
def opened(options: Mapping[str, Any], section: str | None, fetch: bool = True) -> Iterator[tuple[Runner, Settings]]:
    """A runner on the locked workspace under the settings of this command; remembers its flags where no file holds
    them. Tables behind URLs are fetched."""
    workspace = Workspace(options["workspace"])
    given = {name: v for name, v in options.items() if name not in _COMMON and v is not None and v != ()}
    progress = progress_for(options["quiet"], options["verbose"])
    try:
        with workspace.locked(), engine_for(options, progress) as engine:
            given = spooled(workspace, given)
            settings, from_file = load_settings(options["config"], workspace, section, given)
            if held := settings.passing() if from_file else settings.remembered():
                progress.say(held)
            settings.here = (fetched if fetch else at_hand)(workspace, settings.sections.get("pairs", {}))
            params: Any = settings.params()
            if section in ("train", "evaluate", "refresh"):  # and again before it trains, which may be hours later
                distributed.check(params["train"].device)
            yield Runner(workspace, params, progress, engine), settings
            if section and not from_file:
                remember(workspace, section, given)
    finally:
        progress.close()


def bring(target: str, options: Mapping[str, Any]) -> Result:
    """Bring a command's stage up to date and say what came out of it."""
    section = STAGES[target].section
    with opened(options, section) as (runner, _):
        runner.bring(target)
    shown = [stage.name for stage in PIPELINE if stage.name in runner.done and stage.section == section]
    parts: list[str | Table] = []
    for name in shown:
        parts += summary_parts(name, runner.done[name], accepted(runner))
    if not runner.ran:
        parts.append("nothing to do: everything is up to date")
    parts += [f"wrote {runner.done[name].folder}" for name in shown if name in runner.ran]
    return Result(
        {
            "ran": runner.ran,
            "artifacts": {name: str(artifact.folder) for name, artifact in runner.done.items()},
            "summary": {name: artifact.summary for name, artifact in runner.done.items()},
        },
        parts,
    )


def refresh(options: Mapping[str, Any], force: bool) -> Result:
    """The whole road, published."""
    from pipeline.workflow.refresh import refresh as run

    with opened(options, "refresh") as (runner, settings):
        wanted = settings.refresh()
        outcome = run(runner, wanted.keep, force)
        copied, trouble = False, None
        try:
            copied = bool(wanted.publish_to) and mirror(runner.workspace, str(wanted.publish_to))
        except InputError as error:
            trouble = error  # raised below: the flags are remembered first, so that the next refresh tries again
    if trouble:
        raise InputError(f"{outcome.status} here as {outcome.publication}, but not there: {trouble}") from trouble
    parts: list[str | Table] = []
    for stage in PIPELINE:
        parts += summary_parts(stage.name, runner.done[stage.name], accepted(runner))
    current = options["workspace"] / "current"
    if outcome.moved:
        parts.append(f"{outcome.moved:,} questions changed their split, because rows were added or changed")
    if outcome.gate:
        parts.append(gate_line(outcome.gate))
    if outcome.status == "unchanged":
        parts.append(f"nothing to do: {current} is up to date ({outcome.publication})")
    else:
        parts += [
            f"published {outcome.publication}; {current} points to it",
            f"  look next:  {current}/mined.jsonl    the training file, with scores and ids",
            f"              {current}/report.html    the whole refresh on one page, for a browser",
            f"              {current}/metrics.json   every figure above, and more",
            f"              {current}/reranker       load it with sentence_transformers.CrossEncoder",
            "              prep show QUESTION            why each candidate is a negative, or is not",
        ]
    if copied:
        parts.append(f"copied {outcome.publication} to {shown(str(wanted.publish_to))}; {POINTER} there names it")
    return Result(
        {
            "status": outcome.status,
            "publication": outcome.publication,
            "copied": copied,
            "ran": outcome.ran,
            "gate": outcome.gate,
            "moved": outcome.moved,
            "summary": {name: artifact.summary for name, artifact in runner.done.items()},
        },
        parts,
    )


def gate_line(verdict: Mapping[str, Any]) -> str:
    """The gate's finding in one line."""
    if verdict["difference"] is None:
        return "against the published reranker: there is no test question to compare on"
    sure = "" if verdict["low"] is None else f" [{verdict['low']:+.4f}, {verdict['high']:+.4f}]"
    change = f"{verdict['old']:.4f} -> {verdict['new']:.4f}, difference {verdict['difference']:+.4f}{sure}"
    return f"against the published reranker: {verdict['measure']} {change}: {verdict['verdict']}"


def accepted(runner: Runner) -> float | None:
    """The share of false negatives that the learned mask accepted; None where another rule was used."""
    mask = runner.done.get("mask")
    estimate = mask and mask.summary.get("estimate")
    return estimate["accepted"] if estimate else None


def summary_parts(stage: str, artifact: Artifact, accepted: float | None = None) -> list[str | Table]:
    """What a stage reported, for a person; `accepted`: of the learned mask."""
    summary = artifact.summary
    if stage == "pairs":
        from stages.pairs.stage import funnel_lines

        return ["", *funnel_lines(summary)]
    if stage == "mask":
        from stages.mining.estimator import validation

        rows = [
            [verdict, reason, f"{n:,}"]
            for verdict, reasons in summary["verdicts"].items()
            for reason, n in reasons.items()
        ]
        table = Table(f"mask: {summary['rule']}", ["verdict", "reason", "candidates"], rows)
        return [table, *validation.lines(summary.get("estimate"))]
    if stage == "evaluate":
        from pipeline.report.quality import advice, finding
        from stages.evaluation.stage import metrics_table

        metrics = json.loads((artifact.folder / "metrics.json").read_text())
        lists = metrics["lists"]["test"]
        title = f"test: {lists['queries']:,} questions, the retriever's best {metrics['parameters']['top_k']} reranked"
        header, *rows = metrics_table(metrics) or [["test: no questions"]]
        return [Table(title, header, rows), f"{finding(metrics)}.", *advice(metrics)]
    shown = {name: value for name, value in summary.items() if value is not None}
    false = shown.pop("false_negatives", None)
    line = f"{stage}: " + ", ".join(f"{name.replace('_', ' ')} {_number(v)}" for name, v in shown.items())
    expected = [] if false is None else [expectation(false, summary["negatives"], summary["weighted"], accepted)]
    return [line, *expected]


def expectation(false: float, negatives: int, weighted: int, accepted: float | None) -> str:
    """How many of the negatives written are false, as expected; `weighted` of them stand there with a weight."""
    told = f"false ones expected among the {negatives:,} negatives: {false:.2%}"
    if not weighted and accepted is not None and false > 1.02 * accepted:
        return (
            f"{told}, more than the {accepted:.1%} accepted: the mask reckoned with the hardest that it lets through, "
            "and others stand in their place (near-duplicates are thinned; hub_cap, same, sampling, quota_sources)"
        )
    if not weighted:
        return told
    return (
        f"{told}; {weighted:,} of them the mask would have set aside: relabel = weight keeps them, with a weight "
        "(neg_weights), beyond the share of false ones that is accepted"
    )


def _number(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {_number(v)}" for name, v in value.items()) + ")"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def gc(options: Mapping[str, Any], keep: int | None) -> Result:
    """Drop what no publication uses."""
    from pipeline.workflow.publish import collect

    with opened(options, None, fetch=False) as (runner, settings):
        dropped = collect(runner.workspace, keep or settings.refresh().keep)
    counts = ", ".join(f"{dropped[name]} {name}" for name in ("publications", "artifacts", "encoders"))
    return Result(dropped, [f"dropped {counts}: {dropped['bytes'] / 1e6:,.1f} MB"])
