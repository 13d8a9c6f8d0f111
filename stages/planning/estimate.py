"""What each step will take: its work at the rate of this machine; and which settings would change the total."""

from collections.abc import Sequence
from typing import NamedTuple

from stages.core.memory import peak_rss, reset_peak_rss
from stages.planning.rates import LAST_RUN, Rates
from stages.planning.step_work import Settings, StepWork, count_work
from stages.planning.workload import Workload

MIN_SAVING, MAX_WHAT_IFS = 0.1, 3
"""The smallest share of the total time that a suggested change must save, and the most suggestions."""


class StepEstimate(NamedTuple):
    """What one step will take; `seconds` is None if nobody can know."""

    step: str
    work: StepWork
    seconds: float | None
    memory_bytes: float
    rate_source: str


def estimate_steps(steps: Sequence[str], workload: Workload, settings: Settings, rates: Rates) -> list[StepEstimate]:
    """What each of `steps` takes, in one process: memory that a model took stays taken."""
    reset_peak_rss()
    process_bytes, estimates = float(peak_rss()), []
    for step in steps:
        work, rate = count_work(step, workload, settings), rates.get(step)
        amount, added_bytes = work.n_units * (work.unit_cost or 0.0), work.memory_bytes
        seconds, source = None if work.n_units else 0.0, ""
        if rate and amount:
            seconds, source = rate.fixed_seconds + rate.seconds * amount / rate.amount, rate.source
            process_bytes = max(process_bytes, rate.memory_bytes)
            if source == LAST_RUN:  # its memory has what its own work added
                added_bytes *= max(0.0, 1 - rate.amount / amount)
        estimates.append(StepEstimate(step, work, seconds, process_bytes + added_bytes, source))
    return estimates


def sum_seconds(estimates: Sequence[StepEstimate]) -> float:
    """The seconds of all steps whose time is known."""
    return sum(one.seconds or 0.0 for one in estimates)


def find_what_ifs(
    steps: Sequence[str], workload: Workload, settings: Settings, rates: Rates
) -> list[tuple[str, float]]:
    """Settings that make the slowest step do less, with the seconds of all steps: at most three, best first.

    Each saves at least a tenth of the total: [("train.epochs=1", 250.0)].
    """
    estimates = estimate_steps(steps, workload, settings, rates)
    total, slowest = sum_seconds(estimates), max(estimates, key=lambda one: one.seconds or 0.0).step
    found = []
    for step, key, value in _list_smaller_values(slowest, workload, settings):
        if step in steps and (value or key == "distill_epochs"):
            changed = {**settings, step: settings[step].model_copy(update={key: value})}
            seconds = sum_seconds(estimate_steps(steps, workload, changed, rates))
            found += [(f"{step}.{key}={value}", seconds)] * (total - seconds > MIN_SAVING * total)
    return sorted(found, key=lambda one: one[1])[:MAX_WHAT_IFS]


def _list_smaller_values(slowest: str, workload: Workload, settings: Settings) -> list[tuple[str, str, int]]:
    """(step, key, value) of settings that the time of a step depends on, halved."""
    params = settings[slowest]
    match slowest:
        case "encode":  # with another length all existing vectors would be computed again
            is_first = not workload.spec.server and not any(new.has_search for new in workload.new_texts)
            return [("encode", "max_length", (params.max_length or workload.encoder_size.max_length) // 2)] * is_first
        case "train":
            n_queries = workload.count_split("train", params.max_queries)
            halved = [("train", key, getattr(params, key) // 2) for key in ("epochs", "max_length", "num_negatives")]
            return [*halved, ("train", "distill_epochs", 0), ("train", "max_queries", n_queries // 2)]
        case "evaluate":
            n_queries = workload.count_split("test", params.max_queries)
            return [("evaluate", "top_k", params.top_k // 2), ("evaluate", "max_queries", n_queries // 2)]
    top_k = settings["search"].top_k // 2
    return [("search", "top_k", top_k)] * (top_k > settings["sample"].num_negatives)
