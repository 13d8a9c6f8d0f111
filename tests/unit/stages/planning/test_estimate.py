"""Times and memory from work and rates, and what other settings would save."""

from dataclasses import replace
from typing import Any

import pytest

from stages.planning.estimate import StepEstimate, estimate_steps, find_what_ifs, sum_seconds
from stages.planning.rates import CONSTANT, LAST_RUN, PROBE, Rate
from stages.planning.step_work import count_work
from stages.planning.workload import NewTexts, Workload
from tests.unit.stages.planning.conftest import change

Settings = dict[str, Any]
GB = 1_000_000_000


def estimate(step: str, workload: Workload, settings: Settings, rate: Rate | None) -> StepEstimate:
    (found,) = estimate_steps([step], workload, settings, {step: rate} if rate else {})
    return found


def test_seconds_are_the_fixed_ones_and_those_of_the_amount(workload: Workload, settings: Settings) -> None:
    # 1,880 tokens; 100 tokens take 2 s after 5 s
    found = estimate("encode", workload, settings, Rate(2.0, 100, PROBE, 5.0))
    assert (found.seconds, found.rate_source) == (5 + 37.6, PROBE)


def test_nothing_to_do_takes_no_time_and_loads_no_model(workload: Workload, settings: Settings) -> None:
    done = replace(workload, new_texts=[NewTexts(0, 0, True)])
    found = estimate("encode", done, settings, Rate(2.0, 100, PROBE, 5.0, 9_000 * GB))
    assert (found.seconds, found.rate_source) == (0, "")
    assert found.memory_bytes < 9_000 * GB


def test_without_a_rate_or_a_cost_the_time_is_unknown(workload: Workload, settings: Settings) -> None:
    assert estimate("encode", workload, settings, None).seconds is None
    asked = change(settings, "verify", llm_judge="http://x", llm_judge_model="m")
    estimates = estimate_steps(["verify", "mask"], workload, asked, {"mask": Rate(1.0, 5_000, CONSTANT)})
    assert [one.seconds for one in estimates] == [None, 1.0]
    assert sum_seconds(estimates) == 1.0


def test_memory_of_a_model_stays_taken(workload: Workload, settings: Settings) -> None:
    rates = {"encode": Rate(1.0, 1, PROBE, 0, 500 * GB), "mask": Rate(1.0, 1, CONSTANT)}
    encode, mask = estimate_steps(["encode", "mask"], workload, settings, rates)
    assert encode.memory_bytes == 500 * GB + 200 * 150
    assert mask.memory_bytes == 500 * GB + 180 * 5_000


def test_the_memory_of_a_run_grows_with_its_work(workload: Workload, settings: Settings) -> None:
    # 5,000 candidates at 180 bytes; the run had 4,000 of them, or 9,000
    assert estimate("mask", workload, settings, Rate(1.0, 4_000, LAST_RUN, 0, 500 * GB)).memory_bytes == pytest.approx(
        500 * GB + 180 * 1_000
    )
    assert estimate("mask", workload, settings, Rate(1.0, 9_000, LAST_RUN, 0, 500 * GB)).memory_bytes == 500 * GB


def test_alternatives_of_a_training_are_sorted_and_at_most_three(workload: Workload, settings: Settings) -> None:
    single = change(settings, "train", max_dev_queries=1, dev_top_k=0)  # no evaluation between
    rates = {"train": Rate(1.0, 1, PROBE), "evaluate": Rate(1e-9, 1, PROBE)}
    total = sum_seconds(estimate_steps(["train", "evaluate"], workload, single, rates))
    found = find_what_ifs(["train", "evaluate"], workload, single, rates)
    # half the queries: 4 of 8 steps; half the negatives (3 of 7): half the pairs; 128 of 256 tokens: 114 of 178;
    # an epoch less of three saves a third
    assert [setting for setting, _ in found] == [
        "train.num_negatives=3",
        "train.max_queries=30",
        "train.max_length=128",
    ]
    assert [seconds / total for _, seconds in found] == pytest.approx([4 / 8, 4 / 8, 114 / 178], abs=0.001)


@pytest.mark.parametrize(
    ("other_seconds", "names"),
    [
        (9.0, []),  # half of 10 s is 9 % of 55 s
        (7.0, ["evaluate.top_k=5", "evaluate.max_queries=10"]),  # and 11 % of 45 s
    ],
)
def test_a_change_that_saves_less_than_a_tenth_is_not_named(
    other_seconds: float, names: list[str], workload: Workload, settings: Settings
) -> None:
    settings = change(settings, "evaluate", top_k=10)
    steps = ["encode", "features", "mask", "sample", "train", "evaluate"]
    seconds = dict.fromkeys(steps, other_seconds) | {"evaluate": 10.0}
    works = {step: count_work(step, workload, settings) for step in steps}
    rates = {step: Rate(seconds[step], work.n_units * (work.unit_cost or 0), PROBE) for step, work in works.items()}
    assert [name for name, _ in find_what_ifs(steps, workload, settings, rates)] == names


def test_half_of_one_is_no_value(workload: Workload, settings: Settings) -> None:
    least = change(settings, "train", epochs=1, num_negatives=1, max_queries=1, max_length=100)
    names = [name for name, _ in find_what_ifs(["train"], workload, least, {"train": Rate(1.0, 1, PROBE)})]
    assert names == ["train.max_length=50", "train.distill_epochs=0"]


def test_another_length_is_named_for_a_first_encoding_only(workload: Workload, settings: Settings) -> None:
    rates = {"encode": Rate(1.0, 1, PROBE)}
    assert find_what_ifs(["encode"], workload, settings, rates) == [("encode.max_length=128", 20 * 20 + 10 * 84)]
    again = replace(workload, new_texts=[NewTexts(20, 10, has_search=True)])
    assert find_what_ifs(["encode"], again, settings, rates) == []


def test_fewer_candidates_are_named_if_the_search_is_to_run(workload: Workload, settings: Settings) -> None:
    rates = {"search": Rate(1e-9, 1, PROBE), "mask": Rate(1.0, 1, CONSTANT)}
    asked = change(settings, "search", top_k=40)
    assert [name for name, _ in find_what_ifs(["search", "mask"], workload, asked, rates)] == ["search.top_k=20"]
    assert find_what_ifs(["mask"], workload, asked, rates) == []
    # seven negatives are to be found
    assert find_what_ifs(["search", "mask"], workload, change(settings, "search", top_k=14), rates) == []
