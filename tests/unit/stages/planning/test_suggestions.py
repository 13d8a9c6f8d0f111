"""What dominates a plan, and what the flags would change, by hand."""

from dataclasses import replace
from typing import Any

import pytest

from stages.planning.cost_model import Prediction, predict
from stages.planning.machine import Machine
from stages.planning.suggestions import SMALL, changes, dominant
from stages.planning.throughput import Rate
from stages.planning.workload import Table


def test_the_longest_stage_dominates_and_nothing_does_where_nothing_runs() -> None:
    made = [Prediction(name, "", seconds, 0, 0, "") for name, seconds in (("a", 1.0), ("b", 3.0), ("c", None))]
    longest = dominant(made)
    assert longest and longest.stage == "b"
    assert dominant([]) is None
    assert dominant([made[2]]) is None


def test_flags_of_the_encoder_are_predicted_by_the_same_arithmetic(
    table: Table, settings: dict[str, Any], machine: Machine
) -> None:
    model = replace(machine.encoders[0], rates={"float32": Rate((1.0,), (0.1,)), "bfloat16": Rate((1.0,), (0.05,))})
    machine = replace(machine, encoders=[model])
    made = predict(["encode"], table, settings, machine)
    assert made[0].seconds == pytest.approx(5 + 296)
    found = {change.setting: change.seconds for change in changes(made, table, settings, machine)}
    # of 10, 30 and 400 tokens are read 10, 30, 128; and 10, 30, 64; or all 256 at half the price
    assert found == pytest.approx({"max_length = 64": 109, "dtype = bfloat16": 153, "max_length = 128": 173})
    assert list(found) == ["max_length = 64", "dtype = bfloat16", "max_length = 128"]


def test_what_saves_little_is_not_named(table: Table, settings: dict[str, Any], machine: Machine) -> None:
    slow = replace(machine, encoders=[replace(machine.encoders[0], start=10_000.0)])
    assert changes(predict(["encode"], table, settings, slow), table, settings, slow) == []


def test_a_flag_that_would_make_an_up_to_date_stage_stale_is_not_named(
    table: Table, settings: dict[str, Any], machine: Machine
) -> None:
    machine = replace(machine, yard=1_000.0)
    alone = predict(["mask"], table, settings, machine)
    assert changes(alone, table, settings, machine) == []
    table = replace(table, documents=1_000)
    both = predict(["search", "mask"], table, settings, machine)
    (found,) = changes(both, table, settings, machine)
    assert (found.setting, found.stage) == ("top_k = 100", "search")


def test_no_depth_is_named_that_leaves_too_few_negatives(
    table: Table, settings: dict[str, Any], machine: Machine
) -> None:
    machine, table = replace(machine, yard=1_000.0), replace(table, queries=100_000)

    def flags(depth: int) -> list[str]:
        made = {**settings, "search": settings["search"].model_copy(update={"top_k": depth})}
        return [
            found.setting for found in changes(predict(["search", "mask"], table, made, machine), table, made, machine)
        ]

    assert flags(16) == ["top_k = 8"]
    assert flags(14) == []  # 7 negatives are asked for, and the positives are among the candidates


def test_nothing_is_advised_that_makes_all_vectors_anew(
    table: Table, settings: dict[str, Any], machine: Machine
) -> None:
    slow = replace(machine, encoders=[replace(machine.encoders[0], rates={"float32": Rate((1.0,), (0.1,))})])
    assert changes(predict(["encode"], table, settings, slow), table, settings, slow, machine)
    begun = replace(table, encodings=[replace(table.encodings[0], begun=True)])
    assert changes(predict(["encode"], begun, settings, slow), begun, settings, slow, machine) == []


def test_the_estimate_is_left_out_only_where_nothing_goes_by_it(
    table: Table, settings: dict[str, Any], machine: Machine
) -> None:
    machine = replace(machine, yard=1_000.0)

    def flags(**changed: Any) -> list[str]:
        made = {**settings, "mask": settings["mask"].model_copy(update=changed)}
        return [found.setting for found in changes(predict(["features"], table, made, machine), table, made, machine)]

    assert flags() == flags(mask="perc", relabel="weight") == []
    assert flags(mask="perc") == ["estimate_false_negatives = false"]


def test_training_names_the_three_that_save_most(table: Table, settings: dict[str, Any], machine: Machine) -> None:
    slow = replace(machine, step=replace(machine.step, rate=Rate((1.0,), (10.0,)), update=0.0))
    made = predict(["train"], table, settings, slow)
    # 60 groups x 8 pairs x 3 epochs (one of the retriever's scores). Half of the questions or of the negatives: half,
    # or (1 + 3) / 8, of the pairs; an epoch or the lesson less: two thirds; 128 tokens for 256: (100 + 128) / 356
    flags = [change.setting for change in changes(made, table, settings, slow)]
    assert set(flags[:2]) == {"max_queries = 30", "num_negatives = 3"}
    assert flags[2] == "max_length = 128"


def test_a_gpu_and_a_smaller_model_change_the_machine_for_the_stage_that_dominates(
    table: Table, settings: dict[str, Any], machine: Machine
) -> None:
    model = replace(machine.encoders[0], rates={"float32": Rate((1.0,), (1.0,))})
    made = predict(["encode", "search"], table, settings, slow := replace(machine, encoders=[model]))
    search = made[1].seconds or 0.0
    gpu = replace(machine, encoders=[replace(model, rates={"float32": Rate((1.0,), (0.01,))})])
    found = {change.setting: change for change in changes(made, table, settings, slow, gpu)}
    assert found["device = cuda"].seconds == pytest.approx(5 + 29.6 + search)
    assert "published rate x 0.3" in found["device = cuda"].note
    assert not any(flag.startswith("model") for flag in found)  # this one computes less than the default does

    layers = SMALL._replace(layers=24, parameters=4 * SMALL.parameters)
    large = replace(slow, encoders=[replace(model, shape=layers)])
    (smaller,) = [change for change in changes(made, table, settings, large) if change.setting.startswith("model")]
    # four times the layers and parameters: a quarter of the 2,960 s
    assert smaller.seconds == pytest.approx(5 + 740 + search)
