"""`prep plan`: what every stage that would run will take; and, once it ran, what it took."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.cli.build import opened
from pipeline.cli.output import Result, Table
from pipeline.workflow.artifact_store import Workspace
from pipeline.workflow.graph import PIPELINE, STAGES
from pipeline.workflow.runner import Runner
from stages.core.errors import InputError
from stages.planning.cost_model import Prediction, predict, total
from stages.planning.suggestions import GPU, Change, changes, dominant
from stages.planning.throughput import GPUS, PUBLISHED, gpu_named

HERE = "this machine"


def plan(options: Mapping[str, Any], until: str, gpu: str | None, gpus: int) -> Result:
    """Predict the stages up to `until` that would run, on this machine or on GPUs; keep the prediction."""
    from stages.planning import hardware, workload

    kind = gpu_named(gpu) if gpu else None
    if gpus > 1 and kind is None:
        raise InputError(f"--gpus {gpus}: of which kind? Name it with --gpu, as in --gpu h100.")
    with opened(options, "pairs") as (runner, _):
        folder = runner.bring("pairs").folder
        stages = standing(runner, until)
        stale = [name for name, runs in stages.items() if runs]
        before = compared(events(runner.workspace))
        predictions: list[Prediction] = []
        turns: list[Change] = []
        if stale:
            params: Any = runner.params
            imported = hardware.importing()  # before anything else needs these libraries
            inputs = {name: folder / f"{name}.parquet" for name in ("queries", "corpus", "qrels", "answers")}
            counts = workload.read(params["encode"], params["train"].base, inputs, runner.workspace.vectors)
            if kind:
                made = hardware.on_gpus(kind, gpus, counts, params)
            else:
                made = hardware.measure(stale, counts, params, imported, runner.progress)
            predictions = predict(stale, counts, params, made)
            alone = kind is None and counts.encodings[0].recipe.device == "cpu"
            helped = hardware.on_gpus(GPUS[GPU], 1, counts, params, made) if alone else None
            turns = changes(predictions, counts, params, made, helped)
            where = f"{gpus} x {kind.name}" if kind else HERE
            rows = {one.stage: one._asdict() for one in predictions}
            runner.workspace.event(event="planned", machine=where, stages=rows, seconds=total(predictions))
    return shown(list(stages), predictions, turns, before, f"{gpus} x {kind.name}" if kind else None)


def standing(runner: Runner, until: str) -> dict[str, bool]:
    """The stages that `until` needs, itself included, in order: which of them would run. Runs none of them."""
    wanted = {until}
    for stage in reversed(PIPELINE):
        if stage.name in wanted:
            wanted |= set(stage.upstream(runner.params[stage.name]))
    return {one.stage: one.state != "fresh" for one in runner.standings() if one.stage in wanted}


def events(workspace: Workspace) -> list[dict[str, Any]]:
    """What happened in a workspace, first to last; a line that a kill cut short is passed over."""
    try:
        lines = (workspace.root / "events.jsonl").read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


_GOES_ON = ("verify", "train")
"""Stages that go on after an interruption, of which a plan does not look how far they came."""


def compared(happened: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The last prediction for this machine of which a stage ran before the next one, with what those stages took.

    {"time", "machine", "stages": [{"stage", "predicted", "happened", "ratio" (happened / predicted), "interrupted",
    "memory_predicted", "memory_happened"}]}, of each stage its first run since; None where none of them ran. A stage
    that was interrupted before may have gone on from there: what it took then is not all, so it has no ratio.
    """
    planned: Mapping[str, Any] | None = None
    ran: dict[str, Mapping[str, Any]] = {}
    starts: Counter[Any] = Counter()
    found = None
    for event in happened:
        kind = event.get("event")
        if kind == "planned" and event["machine"] == HERE:
            planned, ran = event, {}
            starts = Counter({run: times for run, times in starts.items() if run[0] in _GOES_ON})
        elif kind == "start":
            starts[event.get("stage"), event.get("key")] += 1
        elif kind == "done" and planned and event["stage"] in planned["stages"]:
            interrupted = starts.pop((event["stage"], event.get("key")), 0) > 1
            ran.setdefault(event["stage"], {**event, "interrupted": interrupted})
            found = planned, ran
    if found is None:
        return None
    prediction, ran = found
    return {
        "time": prediction["time"],
        "machine": prediction["machine"],
        "stages": [_against(prediction["stages"][name], ran[name]) for name in prediction["stages"] if name in ran],
    }


def _against(predicted: Mapping[str, Any], done: Mapping[str, Any]) -> dict[str, Any]:
    expected, took = predicted["seconds"], done["seconds"]
    return {
        "stage": done["stage"],
        "predicted": expected,
        "happened": took,
        "ratio": round(took / expected, 3) if expected and not done["interrupted"] else None,
        "interrupted": done["interrupted"],
        "memory_predicted": predicted["memory"],
        "memory_happened": done.get("memory"),
    }


def compare(options: Mapping[str, Any]) -> Result:
    """What the last prediction said, and what then happened; runs nothing."""
    found = compared(events(Workspace(options["workspace"])))
    if found is None:
        return Result({"compared": None}, ["nothing that was predicted has run yet: `prep plan`, then `prep refresh`"])
    return Result({"compared": found}, [_comparison(found)])


def shown(
    stages: Sequence[str],
    predictions: Sequence[Prediction],
    turns: Sequence[Change],
    before: dict[str, Any] | None,
    elsewhere: str | None,
) -> Result:
    """The plan for a person and for a script."""
    whole, longest = total(predictions), dominant(predictions)
    by_name = {one.stage: one for one in predictions}
    data: dict[str, Any] = {
        "stages": [one._asdict() for one in predictions],
        "up_to_date": [stage for stage in stages if stage not in by_name],
        "seconds": whole,
        "dominates": longest and longest.stage,
        "changes": [change._asdict() for change in turns],
        "compared": before,
    }
    rows = []
    for stage in stages:
        one = by_name.get(stage)
        rows.append([stage, *(["up to date", "0 s", "", "", ""] if one is None else _cells(one))])
    title = f"plan for {elsewhere or HERE}"
    parts: list[str | Table] = [Table(title, ["stage", "work", "time", "peak memory", "disk", "from"], rows)]
    if predictions:
        disk = sum(one.disk for one in predictions)
        memory = max(one.memory for one in predictions)
        parts.append(f"in all {span(whole)}, {memory / 1e9:.1f} GB of memory at the peak, {size(disk)} of disk")
        if longest:
            parts.append(f"{longest.stage} dominates: {(longest.seconds or 0) / whole:.0%} of it")
        for change in turns:
            section = STAGES[change.stage].section
            note = f" ({change.note})" if change.note else ""
            parts.append(f"  {change.flag} of [{section}] would make it {span(change.seconds)}{note}")
    else:
        parts.append("nothing to do: everything is up to date")
    unknown = [one for one in predictions if one.seconds is None]
    parts += [f"not in it: the time of {one.stage}, which nobody can know beforehand ({one.work})" for one in unknown]
    if elsewhere:
        parts.append(f"nothing was measured on such a machine: {PUBLISHED}, an efficiency that is assumed")
    if before:
        parts.append(_comparison(before))
    return Result(data, parts)


def _cells(one: Prediction) -> list[str]:
    time = "?" if one.seconds is None else span(one.seconds)
    return [one.work, time, f"{one.memory / 1e9:.1f} GB", size(one.disk), one.source]


def _comparison(found: Mapping[str, Any]) -> Table:
    rows = [
        [
            row["stage"],
            "?" if row["predicted"] is None else span(row["predicted"]),
            span(row["happened"]),
            "interrupted" if row["interrupted"] else "" if row["ratio"] is None else f"{row['ratio']:.2f}",
            f"{row['memory_predicted'] / 1e9:.1f} GB",
            "" if row["memory_happened"] is None else f"{row['memory_happened'] / 1e9:.1f} GB",
        ]
        for row in found["stages"]
    ]
    header = ["stage", "predicted", "happened", "happened / predicted", "memory predicted", "memory happened"]
    return Table(f"the plan of {found['time']} for {found['machine']}, and what happened", header, rows)


def span(seconds: float) -> str:
    """A time as people say it: 4.2 s, 12 min, 3.1 h."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """Bytes as people say them: 25 MB, 1.2 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
