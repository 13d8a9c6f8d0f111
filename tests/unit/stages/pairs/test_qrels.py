"""Judgements settled."""

import polars as pl
import pytest

from stages.core.errors import InputError
from stages.pairs.qrels import assign_ids, concat_unique_keys, resolve_qrels
from tests.fakes import text_id

NO_LIST = pl.DataFrame(schema={"row": pl.Int64, "d": pl.UInt64, "document_id": pl.String})


def judged(*rows: tuple[int, int, int, int], **more: list[str | None]) -> pl.DataFrame:
    schema = {"row": pl.Int64, "q": pl.UInt64, "d": pl.UInt64, "relevance": pl.Int32}
    frame = pl.DataFrame(list(rows), schema=schema, orient="row")
    return frame.with_columns(**{name: pl.Series(cells, dtype=pl.String) for name, cells in more.items()})


def test_the_first_row_of_an_id_wins() -> None:
    frame = judged((1, 10, 5, 1), (2, 11, 5, 1), (3, 10, 6, 1), id=["a", "a", "a"])
    found = resolve_qrels(frame, NO_LIST, trust_ids=True)
    assert found.qrels["row"].to_list() == [1, 3]
    assert found.rejected_rows.rows() == [(2, "id of another question")]


def test_a_recognised_id_that_mostly_repeats_is_no_id() -> None:
    frame = judged(*((row, row, 5, 1) for row in range(7)), id=["a"] * 7)
    found = resolve_qrels(frame, NO_LIST, trust_ids=False)
    assert found.has_dropped_ids
    assert len(found.qrels) == 7
    assert len(resolve_qrels(frame, NO_LIST, trust_ids=True).qrels) == 1
    assert len(resolve_qrels(frame[:6], NO_LIST, trust_ids=False).qrels) == 1


def test_document_ids_too_and_across_the_corpus() -> None:
    frame = judged((1, 10, 5, 1), document_id=["x"])
    listed = pl.DataFrame({"row": [7, 8], "d": [6, 5], "document_id": ["x", "x"]}, schema=NO_LIST.schema)
    found = resolve_qrels(frame, listed, trust_ids=True)
    assert found.standalone_documents["row"].to_list() == [8]
    assert found.rejected_rows.rows() == [(7, "id of another document")]


def test_contradictions_go_with_all_their_rows() -> None:
    frame = judged((1, 10, 5, 1), (2, 10, 5, 0), (3, 10, 6, 2), (3, 10, 5, 1))
    found = resolve_qrels(frame, NO_LIST, trust_ids=True)
    assert found.qrels.rows() == [(3, 10, 6, 2)]
    assert found.rejected_rows.rows() == [(1, "contradictory"), (2, "contradictory"), (3, "partly contradictory")]


def test_a_query_without_a_positive_is_rejected() -> None:
    found = resolve_qrels(judged((1, 10, 5, 0), (2, 11, 5, 1)), NO_LIST, trust_ids=True)
    assert found.qrels["row"].to_list() == [2]
    assert found.rejected_rows.rows() == [(1, "no positive document")]


def test_the_smallest_given_id_else_the_hash() -> None:
    digest = text_id("a text")
    keys = {"key": [int(digest[:16], 16), 2], "low": [int(digest[16:], 16), 0]}
    given = pl.DataFrame({"key": [2, 2], "id": ["b", "a"]}, schema={"key": pl.UInt64, "id": pl.String})
    frame = assign_ids(pl.DataFrame(keys, schema={"key": pl.UInt64, "low": pl.UInt64}), given)
    assert set(frame.select("key", "id").rows()) == {(2, "a"), (keys["key"][0], digest)}


def test_an_id_that_is_another_texts_hash_is_an_input_error() -> None:
    digest = text_id("a text")
    keys = {"key": [int(digest[:16], 16), 2], "low": [int(digest[16:], 16), 0]}
    frame = pl.DataFrame(keys, schema={"key": pl.UInt64, "low": pl.UInt64})
    given = pl.DataFrame({"key": [2], "id": [digest]}, schema={"key": pl.UInt64, "id": pl.String})
    with pytest.raises(InputError, match="is the hash of another"):
        assign_ids(frame, given)
    with pytest.raises(InputError, match="same 64-bit hash"):
        concat_unique_keys([pl.DataFrame({"key": [1, 1], "low": [2, 3]})], "key")
    assert len(concat_unique_keys([pl.DataFrame({"key": [1, 1], "low": [2, 2]})], "key")) == 1
