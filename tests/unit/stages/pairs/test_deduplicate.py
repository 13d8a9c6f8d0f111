"""Documents of one text, with titles, without, and with ids: keys are small numbers here."""

from collections.abc import Sequence

import polars as pl

from stages.pairs.deduplicate import deduplicate_document_keys, merge_duplicate_documents

T, PARIS, LONDON, ROME = 1, 11, 12, 13
KEYS = pl.DataFrame(
    {"d": [T, PARIS, LONDON], "text": [T, T, T]},
    schema={"d": pl.UInt64, "text": pl.UInt64},
)
NO_LIST = pl.DataFrame(schema={"document_id": pl.String, "d": pl.UInt64})


def merged(rows: Sequence[tuple[str | None, int]], keys: pl.DataFrame = KEYS) -> list[int]:
    frame = pl.DataFrame(rows, schema={"document_id": pl.String, "d": pl.UInt64}, orient="row")
    found, _, _ = merge_duplicate_documents(keys, frame, NO_LIST)
    assert found["document_id"].to_list() == [name for name, _ in rows]
    return found["d"].to_list()


def test_two_titles_stay_apart_and_an_untitled_text_between_them_too() -> None:
    assert merged([(None, PARIS), (None, LONDON), (None, T)]) == [PARIS, LONDON, T]


def test_an_id_tells_which_title_an_untitled_text_has() -> None:
    rows = [("p", PARIS), ("l", LONDON), ("p", T), ("l", T), (None, T), ("x", T)]
    assert merged(rows) == [PARIS, LONDON, PARIS, LONDON, T, T]


def test_an_untitled_text_has_the_only_title_that_there_is() -> None:
    assert merged([("x", PARIS), (None, T), ("y", T)], KEYS[:2]) == [PARIS, PARIS, PARIS]


def test_one_id_is_one_document_with_any_titles() -> None:
    assert merged([("p", PARIS), ("p", LONDON), (None, LONDON), (None, T)]) == [PARIS] * 4
    more = pl.concat([KEYS, pl.DataFrame({"d": [ROME], "text": [T]}, schema=KEYS.schema)])
    chain = [("a", ROME), ("a", LONDON), ("b", LONDON), ("b", PARIS)]
    assert merged(chain, more) == [PARIS] * 4


def test_without_titles_nothing_changes() -> None:
    assert merged([("a", T), ("a", 2)], pl.DataFrame({"d": [T, 2], "text": [T, 2]}, schema=KEYS.schema)) == [T, 2]


def test_texts_that_models_read_as_equal_get_one_text() -> None:
    keys = pl.DataFrame({"d": [5, 5, 7], "text": [5, 3, 7]})
    found, several = deduplicate_document_keys(keys)
    assert found.sort("d").rows() == [(5, 3), (7, 7)]
    assert several.to_list() == [5]
