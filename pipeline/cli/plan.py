"""`prep plan`: what each step that would run takes on this machine, and which settings would change it."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.cli.output import CommandResult, ResultTable, format_bytes, format_duration
from pipeline.cli.session import open_session
from pipeline.workflow.graph import PIPELINE, STAGES_BY_NAME, list_required_stages
from pipeline.workflow.run_history import read_past_runs, select_similar_runs
from stages.planning.estimate import StepEstimate, estimate_steps, find_what_ifs, sum_seconds
from stages.planning.rates import AMOUNT_SETTINGS, CONSTANT_RATES, PastRun, find_rate, probe_rates
from stages.planning.workload import count_workload


def plan_steps(options: Mapping[str, Any], until: str | None) -> CommandResult:
    """Estimate the steps up to `until` (None: all of a refresh) that would run; builds the pairs, whose tables are
    counted, and nothing else."""
    with open_session(options, remembers=True) as (runner, _):
        pairs, params = runner.build("pairs"), runner.params
        steps = list_required_stages(until, params) if until else [stage.name for stage in PIPELINE]
        stale = [status.stage for status in runner.get_status() if status.stage in steps and status.state != "fresh"]
        now = {step: runner.collect_settings(STAGES_BY_NAME[step], may_ask=False) for step in steps}
        runs = read_past_runs(runner.workspace, {step: runner.describe_machine(params[step]) for step in steps})
        last_runs = {run.step: run for step in steps for run in select_similar_runs(step, runs, now)}
        if not stale:
            return format_plan(steps, [], [], last_runs)
        inputs = {name: pairs.folder / f"{name}.parquet" for name in ("queries", "corpus")}
        workload = count_workload(params, pairs.summary, inputs, runner.workspace.vectors)
        similar_runs = {step: select_similar_runs(step, runs, now, AMOUNT_SETTINGS) for step in stale}
        known = {step: rate for step in stale if (rate := find_rate(step, similar_runs[step], workload, params))}
        probed = probe_rates([step for step in stale if step not in known], workload, params, runner.progress)
        rates = {**CONSTANT_RATES, **probed, **known}
        what_ifs = find_what_ifs(stale, workload, params, rates)
        return format_plan(steps, estimate_steps(stale, workload, params, rates), what_ifs, last_runs)


def format_plan(
    steps: Sequence[str],
    estimates: Sequence[StepEstimate],
    what_ifs: Sequence[tuple[str, float]],
    last_runs: Mapping[str, PastRun],
) -> CommandResult:
    """The plan for a person and for a script; steps without an estimate are up to date."""
    seconds, by_step = sum_seconds(estimates), {one.step: one for one in estimates}
    slowest = max((one for one in estimates if one.seconds), key=lambda one: one.seconds or 0.0, default=None)
    rows, records = [], []
    for step in steps:
        one, last = by_step.get(step), last_runs.get(step)
        if one and last and abs(last.work.get(one.work.unit, 0) - one.work.n_units) > 0.1 * one.work.n_units:
            last = None  # it had something else to do
        cells = ["up to date", "", "", "", ""]
        if one:
            time = "unknown" if one.seconds is None else format_duration(one.seconds)
            sizes = [format_bytes(one.memory_bytes), format_bytes(one.work.disk_bytes)]
            cells = [one.work.description, time, *sizes, one.rate_source]
            record = one.work._asdict() | one._asdict() | {"last_run_seconds": last and last.seconds}
            records.append({key: value for key, value in record.items() if key != "work"})
        rows.append([step, *cells, format_duration(last.seconds) if last else ""])
    data = {
        "steps": records,
        "up_to_date": [step for step in steps if step not in by_step],
        "seconds": seconds,
        "slowest_step": slowest and slowest.step,
        "what_ifs": [{"setting": setting, "seconds": changed} for setting, changed in what_ifs],
    }
    header = ["step", "work", "time", "memory", "disk", "rate from", "last run"]
    parts: list[str | ResultTable] = [ResultTable("", header, rows)]
    if not estimates:
        return CommandResult(data, [*parts, "nothing to do: everything is up to date"])
    memory, disk = max(one.memory_bytes for one in estimates), sum(one.work.disk_bytes for one in estimates)
    total = f"in all {format_duration(seconds)}, at most {format_bytes(memory)} of memory, {format_bytes(disk)} of disk"
    parts.append(total + "".join(f"; {one.step} is not counted" for one in estimates if one.seconds is None))
    if slowest:
        parts.append(f"{slowest.step} takes {(slowest.seconds or 0) / seconds:.0%} of the time")
    parts += [f"  --set {setting}: {format_duration(changed)} in all" for setting, changed in what_ifs]
    return CommandResult(data, parts)
