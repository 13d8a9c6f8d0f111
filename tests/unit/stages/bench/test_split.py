"""Splitting a judged collection for a trial: who stays together, what is hidden, and what the test side keeps."""

from pathlib import Path

import polars as pl
import pytest

from stages.bench.split import assign_benchmark_split, read_benchmark_split
from stages.core.errors import InputError
from tests.unit.stages.bench.test_leak import collection


def pairs(*rows: tuple[str, str]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["query_id", "doc_id"], orient="row")


def test_questions_that_share_a_positive_or_a_wording_stay_together() -> None:
    queries = pl.DataFrame(
        {
            "query_id": [f"{letter}{i}" for i in range(10, 40) for letter in "abc"],
            "query": [text for i in range(10, 40) for text in (f"how {i}?", f"what {i}", f"How, {i}")],
        }
    ).sort("query_id")
    # a and b share a document, c restates a
    positives = pairs(
        *((f"{letter}{i}", f"d{i}" if letter != "c" else f"e{i}") for i in range(10, 40) for letter in "abc")
    )
    found, notes = assign_benchmark_split(queries, positives, seed=0)
    assert notes == []
    by_number = found.group_by(number=pl.col("query_id").str.slice(1)).agg(
        pl.col("test").n_unique(), pl.col("group").n_unique()
    )
    assert by_number["test"].to_list() == [1] * 30
    assert by_number["group"].to_list() == [1] * 30
    assert found["group"].n_unique() == 30
    assert 0 < found["test"].sum() < 90


def test_queries_without_words_are_not_paraphrases_of_one_another() -> None:
    queries = pl.DataFrame({"query_id": ["a", "b", "c"], "query": ["?", "!", "..."]})
    found, _ = assign_benchmark_split(queries, pairs(("a", "d1"), ("b", "d2"), ("c", "d3")), seed=0)
    assert found["group"].n_unique() == 3


def grades() -> list[tuple[str, str, int]]:
    """Thirty questions with four positives each of their own, and a document that is judged wrong for all."""
    own = [(f"q{i:02}", f"d{i:02}{letter}", 1) for i in range(30) for letter in "abcd"]
    return [*own, *((f"q{i:02}", "x", 0) for i in range(30))]


def test_train_loses_half_of_its_positives_and_test_none(tmp_path: Path) -> None:
    found = read_benchmark_split(collection(tmp_path, grades()), seed=0)
    side = dict(found.collection.queries.select("query_id", "split").iter_rows())
    train, test = ({query for query, split in side.items() if split == name} for name in ("train", "test"))
    assert train and test and len(train | test) == 30
    assert set(found.test_qrels["query_id"]) == test
    assert found.test_qrels.height == 4 * len(test)
    for frame in (found.collection.known_positives, found.collection.held_out_positives):
        assert set(frame["query_id"]) == train
        assert frame.height == 2 * len(train)
    both = set(found.collection.known_positives.select("query_id", "doc_id").iter_rows())
    assert not both & set(found.collection.held_out_positives.iter_rows())
    assert set(found.collection.nonrelevant.iter_rows()) == {(query, "x") for query in train}
    again = read_benchmark_split(tmp_path, seed=0)
    assert again.test_qrels.equals(found.test_qrels)
    assert again.collection.held_out_positives.equals(found.collection.held_out_positives)
    assert not read_benchmark_split(tmp_path, seed=1).test_qrels.equals(found.test_qrels)


def test_beyond_the_limit_train_questions_are_known_and_not_mined_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.bench.split.MAX_MINED_QUERIES", 5)
    found = read_benchmark_split(collection(tmp_path, grades()), seed=0).collection
    count = dict(found.queries["split"].value_counts().iter_rows())
    assert count["train"] == 5
    assert count["dev"] > 0
    assert found.held_out_positives["query_id"].n_unique() == 5
    assert found.known_positives["query_id"].n_unique() == count["train"] + count["dev"]
    assert found.known_positives.height == 2 * found.known_positives["query_id"].n_unique()


def test_a_collection_of_one_question_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be split"):
        read_benchmark_split(collection(tmp_path, [("q", "a", 1), ("q", "b", 1)]), 0)
