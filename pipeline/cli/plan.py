"""`prep plan`: what every stage that would run will take; and, once it ran, what it took."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.cli.build import open_session
from pipeline.cli.output import CommandResult, ResultTable
from pipeline.workflow.artifact_store import Workspace
from pipeline.workflow.graph import PIPELINE, STAGES_BY_NAME
from pipeline.workflow.runner import Runner
from stages.core.errors import InputError
from stages.core.run_params import RunParams
from stages.planning.cost_model import Prediction, predict, total
from stages.planning.suggestions import GPU, Change, changes, dominant
from stages.planning.throughput import GPUS, PUBLISHED, gpu_named

THIS_MACHINE = "this machine"


def plan_stages(options: Mapping[str, Any], until: str, gpu: str | None, n_gpus: int) -> CommandResult:
    """Predict the stages up to `until` that would run, on this machine or on GPUs; keep the prediction."""
    from stages.planning import hardware, workload

    gpu_model = gpu_named(gpu) if gpu else None
    if n_gpus > 1 and gpu_model is None:
        raise InputError(f"--gpus {n_gpus}: of which kind? Name it with --gpu, as in --gpu h100.")
    with open_session(options, remembers=True) as (runner, _):
        folder = runner.build("pairs").folder
        stages = find_required_stages(runner, until)
        stale = [name for name, runs in stages.items() if runs]
        last_comparison = match_prediction_to_runs(read_events(runner.workspace))
        predictions: list[Prediction] = []
        what_ifs: list[Change] = []
        if stale:
            params: Any = runner.params
            import_seconds = hardware.importing()  # before anything else needs these libraries
            inputs = {name: folder / f"{name}.parquet" for name in ("queries", "corpus", "qrels", "answers")}
            workload_counts = workload.read(params["encode"], params["train"].base, inputs, runner.workspace.vectors)
            if gpu_model:
                machine = hardware.on_gpus(gpu_model, n_gpus, workload_counts, params)
            else:
                machine = hardware.measure(stale, workload_counts, params, import_seconds, runner.progress)
            predictions = predict(stale, workload_counts, params, machine)
            is_cpu_only = gpu_model is None and workload_counts.encodings[0].recipe.device == "cpu"
            gpu_machine = hardware.on_gpus(GPUS[GPU], 1, workload_counts, params, machine) if is_cpu_only else None
            what_ifs = changes(predictions, workload_counts, params, machine, gpu_machine)
            machine_name = f"{n_gpus} x {gpu_model.name}" if gpu_model else THIS_MACHINE
            rows = {one.stage: one._asdict() for one in predictions}
            runner.workspace.log_event(event="planned", machine=machine_name, stages=rows, seconds=total(predictions))
    return format_plan(
        list(stages), predictions, what_ifs, last_comparison, f"{n_gpus} x {gpu_model.name}" if gpu_model else None
    )


def find_required_stages(runner: Runner, until: str) -> dict[str, bool]:
    """The stages that `until` needs, itself included, in order: which of them would run. Runs none of them."""
    wanted = {until}
    for stage in reversed(PIPELINE):
        if stage.name in wanted:
            wanted |= set(stage.list_upstream_stages(runner.params[stage.name]))
    return {one.stage: one.state != "fresh" for one in runner.get_status() if one.stage in wanted}


def read_events(workspace: Workspace) -> list[dict[str, Any]]:
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


_RESUMABLE_STAGES = ("verify", "train")
"""Stages that go on after an interruption, of which a plan does not look how far they came."""


def match_prediction_to_runs(events: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The last prediction for this machine of which a stage ran before the next one, with what those stages took.

    {"time", "machine", "stages": [{"stage", "predicted", "happened", "ratio" (happened / predicted), "interrupted",
    "memory_predicted", "memory_happened"}]}, of each stage its first run since; None where none of them ran. A stage
    that was interrupted before may have gone on from there: what it took then is not all, so it has no ratio.
    """
    planned: Mapping[str, Any] | None = None
    ran: dict[str, Mapping[str, Any]] = {}
    starts: Counter[Any] = Counter()
    found = None
    for event in events:
        kind = event.get("event")
        if kind == "planned" and event["machine"] == THIS_MACHINE:
            planned, ran = event, {}
            starts = Counter({run: times for run, times in starts.items() if run[0] in _RESUMABLE_STAGES})
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
        "stages": [
            _compare_stage(prediction["stages"][name], ran[name]) for name in prediction["stages"] if name in ran
        ],
    }


def _compare_stage(predicted: Mapping[str, Any], done: Mapping[str, Any]) -> dict[str, Any]:
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


def compare_last_prediction(options: Mapping[str, Any]) -> CommandResult:
    """What the last prediction said, and what then happened; runs nothing."""
    found = match_prediction_to_runs(read_events(Workspace(options["workspace"])))
    if found is None:
        return CommandResult(
            {"compared": None}, ["nothing that was predicted has run yet: `prep plan`, then `prep refresh`"]
        )
    return CommandResult({"compared": found}, [_make_comparison_table(found)])


def format_plan(
    stages: Sequence[str],
    predictions: Sequence[Prediction],
    what_ifs: Sequence[Change],
    last_comparison: dict[str, Any] | None,
    gpu_label: str | None,
) -> CommandResult:
    """The plan for a person and for a script."""
    total_seconds, longest = total(predictions), dominant(predictions)
    by_name = {one.stage: one for one in predictions}
    data: dict[str, Any] = {
        "stages": [one._asdict() for one in predictions],
        "up_to_date": [stage for stage in stages if stage not in by_name],
        "seconds": total_seconds,
        "dominates": longest and longest.stage,
        "changes": [change._asdict() for change in what_ifs],
        "compared": last_comparison,
    }
    rows = []
    for stage in stages:
        one = by_name.get(stage)
        rows.append([stage, *(["up to date", "0 s", "", "", ""] if one is None else _format_prediction_row(one))])
    title = f"plan for {gpu_label or THIS_MACHINE}"
    parts: list[str | ResultTable] = [
        ResultTable(title, ["stage", "work", "time", "peak memory", "disk", "from"], rows)
    ]
    if predictions:
        disk = sum(one.disk for one in predictions)
        memory = max(one.memory for one in predictions)
        parts.append(
            f"in all {format_duration(total_seconds)}, {memory / 1e9:.1f} GB of memory at the peak, "
            f"{format_bytes(disk)} of disk"
        )
        if longest:
            parts.append(f"{longest.stage} dominates: {(longest.seconds or 0) / total_seconds:.0%} of it")
        for change in what_ifs:
            key = change.setting.partition(" ")[0]
            section = "run" if key in RunParams.model_fields else STAGES_BY_NAME[change.stage].section
            note = f" ({change.note})" if change.note else ""
            parts.append(f"  [{section}] {change.setting} would make it {format_duration(change.seconds)}{note}")
    else:
        parts.append("nothing to do: everything is up to date")
    unknown = [one for one in predictions if one.seconds is None]
    parts += [f"not in it: the time of {one.stage}, which nobody can know beforehand ({one.work})" for one in unknown]
    if gpu_label:
        parts.append(f"nothing was measured on such a machine: {PUBLISHED}, an efficiency that is assumed")
    if last_comparison:
        parts.append(_make_comparison_table(last_comparison))
    return CommandResult(data, parts)


def _format_prediction_row(one: Prediction) -> list[str]:
    time = "?" if one.seconds is None else format_duration(one.seconds)
    return [one.work, time, f"{one.memory / 1e9:.1f} GB", format_bytes(one.disk), one.source]


def _make_comparison_table(found: Mapping[str, Any]) -> ResultTable:
    rows = [
        [
            row["stage"],
            "?" if row["predicted"] is None else format_duration(row["predicted"]),
            format_duration(row["happened"]),
            "interrupted" if row["interrupted"] else "" if row["ratio"] is None else f"{row['ratio']:.2f}",
            f"{row['memory_predicted'] / 1e9:.1f} GB",
            "" if row["memory_happened"] is None else f"{row['memory_happened'] / 1e9:.1f} GB",
        ]
        for row in found["stages"]
    ]
    header = ["stage", "predicted", "happened", "happened / predicted", "memory predicted", "memory happened"]
    return ResultTable(f"the plan of {found['time']} for {found['machine']}, and what happened", header, rows)


def format_duration(seconds: float) -> str:
    """A time as people say it: 4.2 s, 12 min, 3.1 h."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def format_bytes(n_bytes: float) -> str:
    """Bytes as people say them: 25 MB, 1.2 GB."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"
