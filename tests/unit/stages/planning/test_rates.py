"""Rates from past runs."""

from typing import Any

import pytest

from stages.planning.rates import LAST_RUN, PROBE, PastRun, count_past_amount, find_rate, measure
from stages.planning.workload import Workload
from tests.unit.stages.planning.conftest import change

Settings = dict[str, Any]


def make_run(step: str, seconds: float, work: dict[str, int], **parameters: Any) -> PastRun:
    """A run on a table of 40 documents."""
    manifests = {
        "pairs": {"parameters": {}, "summary": {"documents": 40}},
        step: {"parameters": parameters, "summary": {}},
    }
    return PastRun(step, seconds, 1_000, work, manifests)


def test_a_rate_is_seconds_per_unit_of_work(workload: Workload, settings: Settings) -> None:
    found = find_rate("mask", [make_run("mask", 8.0, {"queries": 10, "tokens": 0})], workload, settings)
    # 10 queries of 40 candidates each: there were no more documents then
    assert found == (8.0, 400, LAST_RUN, 0.0, 1_000)


def test_loading_a_model_does_not_grow_with_the_work(workload: Workload, settings: Settings) -> None:
    found = find_rate("encode", [make_run("encode", 25.0, {"texts": 3, "tokens": 500})], workload, settings)
    assert found == (20.0, 500, LAST_RUN, 5.0, 1_000)
    short = find_rate("encode", [make_run("encode", 3.0, {"texts": 3, "tokens": 500})], workload, settings)
    assert short == (1.5, 500, LAST_RUN, 1.5, 1_000)


def test_the_largest_of_the_last_five_runs_counts(workload: Workload, settings: Settings) -> None:
    n_tokens = [9_000, 100, 700, 600, 500, 400]
    runs = [make_run("encode", 10.0 + n, {"tokens": n}) for n in n_tokens]
    found = find_rate("encode", runs, workload, settings)
    assert found
    assert (found.seconds, found.amount) == (705.0, 700)


def test_without_a_run_or_without_work_there_is_no_rate(workload: Workload, settings: Settings) -> None:
    assert find_rate("encode", [], workload, settings) is None
    assert find_rate("encode", [make_run("encode", 1.0, {"texts": 0})], workload, settings) is None


def test_the_amount_of_a_run_follows_from_its_own_settings(workload: Workload, settings: Settings) -> None:
    run = make_run(
        "train", 60.0, {"steps": 5}, batch_size=2, max_length=200, num_negatives=1, max_dev_queries=1, dev_top_k=0
    )
    # 5 steps x 2 groups x 2 pairs of 150 tokens, each at the cost of three
    assert count_past_amount(run, workload, settings) == 5 * 2 * 2 * 150 * 3


def test_pairs_of_a_run_were_cut_as_the_model_was_trained_then(workload: Workload, settings: Settings) -> None:
    run = make_run("evaluate", 60.0, {"pairs": 7})
    run.manifests["train"] = {"parameters": {"max_length": 100}}  # type: ignore[index]
    assert count_past_amount(run, workload, change(settings, "train", max_length=400)) == 7 * 100


def test_a_search_that_was_continued_gives_no_rate(workload: Workload, settings: Settings) -> None:
    run = make_run("search", 1.0, {"searches": 100})
    run.manifests["search"]["summary"]["topk_cache"] = {"dense": {"n_merged_queries": 99}}
    assert count_past_amount(run, workload, settings) == 0
    run.manifests["search"]["summary"]["topk_cache"] = {"dense": {"n_merged_queries": 0}}
    assert count_past_amount(run, workload, settings) > 0


def test_a_measurement_warms_up_first_and_takes_the_median(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 10.0, 10.9, 20.0, 20.2, 30.0, 30.3, 40.0, 40.4])
    monkeypatch.setattr("stages.planning.rates.time.monotonic", lambda: next(times))
    found = measure(lambda: lambda: 50.0)
    # a second to load, 0.9 s to warm up, then 0.2, 0.3 and 0.4 s
    assert (found.seconds, found.amount, found.fixed_seconds) == (pytest.approx(0.3), 50.0, 1.0)
    assert found.source == PROBE


def test_a_measurement_that_takes_long_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 10.0, 15.0])
    monkeypatch.setattr("stages.planning.rates.time.monotonic", lambda: next(times))
    assert measure(lambda: lambda: 50.0).seconds == 5.0
