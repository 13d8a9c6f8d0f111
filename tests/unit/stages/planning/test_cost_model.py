"""The arithmetic of a plan, by hand. (The yardstick takes no time in these, unless a test says so.)"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from stages.planning import constants
from stages.planning.cost_model import Prediction, predict, total
from stages.planning.machine import Machine
from stages.planning.throughput import Rate
from stages.planning.workload import Table

Settings = dict[str, Any]


def one(stage: str, table: Table, settings: Settings, machine: Machine) -> Prediction:
    (found,) = predict([stage], table, settings, machine)
    return found


def turned(settings: Settings, stage: str, **changes: Any) -> Settings:
    return {**settings, stage: settings[stage].model_copy(update=changes)}


def test_encode_is_the_tokens_of_new_texts_cut_at_the_limit(table: Table, settings: Settings, machine: Machine) -> None:
    found = one("encode", table, settings, machine)
    # 10 texts each of 10, 30 and 256 (400, cut) tokens: 2,960 ms, after 5 s of loading
    assert found.seconds == pytest.approx(5 + 2.96)
    assert found.work == "20 queries + 10 documents, 2,960 tokens"
    assert found.disk == 30 * (16 + 4 * 8)
    assert found.source == "measured"


def test_a_shorter_limit_cuts_the_tokens(table: Table, settings: Settings, machine: Machine) -> None:
    found = one("encode", table, turned(settings, "encode", max_length=20), machine)
    assert found.seconds == pytest.approx(5 + 0.1 + 0.2 + 0.2)


def test_with_every_vector_there_no_model_is_loaded(table: Table, settings: Settings, machine: Machine) -> None:
    nothing = replace(table.encodings[0], new={"query": 0, "document": 0})
    found = one("encode", replace(table, encodings=[nothing]), settings, machine)
    assert (found.seconds, found.work, found.disk) == (0, "no new text", 0)


def test_search_sweeps_everything_and_keeps_a_little_more_than_the_depth(
    table: Table, settings: Settings, machine: Machine
) -> None:
    found = one("search", table, turned(settings, "search", top_k=16), machine)
    # 100 x 50 x 8 products, and of each query 16 + 8 + 2 that are scored again
    assert found.seconds == pytest.approx(40_000e-6 + 2_600e-5)
    assert found.work == "100 x 50 x 8, 1,600 candidates"


def test_a_search_that_goes_on_pays_for_what_is_new(table: Table, settings: Settings, machine: Machine) -> None:
    table = replace(table, encodings=[replace(table.encodings[0], went_on=True)])
    found = one("search", table, turned(settings, "search", top_k=16), machine)
    # 20 new queries x 50 documents and 80 old ones x 10 new documents, of 8 dimensions
    assert found.seconds == pytest.approx((1_000 + 800) * 8 * 1e-6 + 20 * 26 * 1e-5)
    assert found.work.endswith("goes on from the last search")


def test_training_is_pairs_updates_dev_figures_and_checkpoints(
    table: Table, settings: Settings, machine: Machine
) -> None:
    short = turned(settings, "train", epochs=2, num_negatives=3, batch_size=8, max_length=200, max_queries=50)
    short = turned(short, "train", max_dev_queries=10, dev_top_k=5)
    found = one("train", table, short, machine)
    # 50 groups of 4 pairs, 3 epochs (one of the retriever's scores), pairs of 100 and 200 tokens: 150 in the mean
    steps, dev, checkpoints = 3 * 7, 3 * 10 * 5, 3
    expected = 4 + 600 * 150 * 0.01 + steps * 0.5 + dev * 150 * 0.002
    assert found.seconds == pytest.approx(expected + checkpoints * 12 * 2_000 / constants.DISK)
    assert found.work == "50 groups x 4 pairs x 3 epochs, 90.0 k tokens"
    assert found.disk == 4 * 2_000


def test_a_cross_encoder_needs_no_first_lesson(table: Table, settings: Settings, machine: Machine) -> None:
    found = one("train", table, settings, replace(machine, fresh_head=False))
    assert "x 2 epochs" in found.work
    taught = one("train", table, turned(settings, "train", distill_epochs=2), machine)
    assert "x 4 epochs" in taught.work


def test_evaluation_scores_both_splits_by_two_rerankers(table: Table, settings: Settings, machine: Machine) -> None:
    found = one("evaluate", table, turned(settings, "evaluate", top_k=5, max_queries=12), machine)
    # 12 + 12 questions x 5 documents, twice; pairs of 100 and 256 (300, cut by [train]) tokens: 178 in the mean
    assert found.seconds == pytest.approx(2 * 3 + 240 * 178 * 0.002)


def test_stages_without_a_model_go_by_the_yardstick(table: Table, settings: Settings, machine: Machine) -> None:
    machine = replace(machine, yard=2.0)
    found = 100 * 50  # 200 are asked for, and there are 50 documents
    assert one("mask", table, settings, machine).seconds == pytest.approx(2 * constants.MASK * found)
    evidence = one("features", table, settings, machine)
    owners = 60 / 50
    yards = (
        constants.BEGIN
        + found * (constants.FLAG + constants.ESTIMATE + constants.OWNER * owners)
        + 10_000 * constants.BM25_CHARACTER
    )
    assert evidence.seconds == pytest.approx(2 * yards)
    plain = one("features", table, turned(settings, "features", estimate_false_negatives=False), machine)
    assert plain.seconds == pytest.approx(2 * (constants.BEGIN + constants.FLAG * found))


def test_nobody_knows_how_long_a_judge_takes(table: Table, settings: Settings, machine: Machine) -> None:
    found = predict(
        ["verify", "mask"], table, turned(settings, "verify", llm_judge="http://x", llm_judge_model="m"), machine
    )
    assert found[0].seconds is None
    assert total(found) == found[1].seconds


def test_nobody_knows_how_long_an_index_takes(table: Table, settings: Settings, machine: Machine) -> None:
    found = one("search", table, turned(settings, "search", faiss_index="IVF16,Flat"), machine)
    assert found.seconds is None
    assert found.work.endswith("by the index IVF16,Flat")
    assert one("search", table, turned(settings, "search", faiss_index="exact"), machine).seconds


def test_a_teacher_reads_what_is_in_doubt_and_the_positives(table: Table, settings: Settings, machine: Machine) -> None:
    asked = turned(settings, "verify", verifier="t", verifier_budget=40, verifier_max_length=200)
    assert one("verify", table, asked, machine).seconds == pytest.approx(3 + (40 + 60) * 150 * 0.002)
    large = replace(machine.score, rates={"": Rate((1.0,), (0.02,))}, start=9.0)
    assert one("verify", table, asked, replace(machine, teacher=large)).seconds == pytest.approx(9 + 300)


def test_a_table_that_teaches_itself_is_trained_on_first(table: Table, settings: Settings, machine: Machine) -> None:
    asked = turned(settings, "verify", verifier="self", verifier_budget=40, verifier_max_length=200, folds=3)
    # each fold learns from 400 of the 600 questions, 8 pairs each, in a lesson and an epoch
    trained = 3 * (4 + 6_400 * 150 * 0.01)
    larger = replace(table, splits={"train": 600})
    assert one("verify", larger, asked, machine).seconds == pytest.approx(3 + 640 * 150 * 0.002 + trained)
    few = one("verify", table, asked, machine)
    assert (few.seconds, few.work) == (0, "40 queries to train a fold on are too few: nobody is asked")


def test_a_table_without_positives_has_nothing_to_train_on(table: Table, settings: Settings, machine: Machine) -> None:
    nothing = replace(table, splits={}, positives=0.0, pairs=[], pair_tokens=np.array([], np.int64))
    found = predict(["train", "evaluate"], nothing, settings, machine)
    assert found[0].work.startswith("0 groups")
    assert found[1].work.startswith("0 pairs")


def test_memory_stays_taken_and_libraries_are_waited_for_once(
    table: Table, settings: Settings, machine: Machine
) -> None:
    machine = replace(machine, importing=7.0)
    alone = one("mask", table, settings, machine)
    encode, mask, evaluate = predict(["encode", "mask", "evaluate"], table, settings, machine)
    assert encode.seconds == pytest.approx(7 + 5 + 2.96)
    assert encode.memory == 700_000_000 + 150 * constants.HASHED
    assert mask.memory - alone.memory == encode.memory - 100_000_000
    assert evaluate.seconds == one("evaluate", table, settings, replace(machine, importing=0.0)).seconds


def test_a_step_of_more_tokens_takes_more_memory(table: Table, settings: Settings, machine: Machine) -> None:
    # a step of 1,000 tokens took 900 MB, of which 800 MB are the model; pairs of 200 tokens, 20 a step, are 4,000
    alike = replace(table, pair_tokens=np.array([200, 200]))
    found = one("train", alike, turned(settings, "train", batch_size=5, num_negatives=3), machine)
    states = 12 * 2_000
    assert found.memory == pytest.approx(800e6 + states + (100e6 - states) * 4, rel=1e-6)
