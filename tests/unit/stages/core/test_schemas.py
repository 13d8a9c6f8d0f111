"""Tables are checked where a stage begins and ends."""

from pathlib import Path

import polars as pl
import pytest

from stages.core.schemas import CORPUS, QRELS, document_text, read_table, scan_documents, write_table


def test_a_table_comes_back_with_its_optional_columns_null(tmp_path: Path) -> None:
    write_table(pl.DataFrame({"text": ["x"], "doc_id": ["d"]}), CORPUS, tmp_path / "c.parquet")
    assert read_table(tmp_path / "c.parquet", CORPUS).rows() == [("d", "x", None, None, None)]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pl.DataFrame({"doc_id": ["d"]}), "'text' is missing"),
        (pl.DataFrame({"doc_id": ["d", None], "text": ["a", "b"]}), "'doc_id' holds 1 nulls"),
        (pl.DataFrame({"doc_id": ["d"], "text": ["a"], "extra": [1]}), r"\['extra'\] are not in the schema"),
    ],
)
def test_a_broken_table_is_not_written(tmp_path: Path, frame: pl.DataFrame, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_table(frame, CORPUS, tmp_path / "c.parquet")
    assert not (tmp_path / "c.parquet").exists()


def test_a_table_of_another_schema_is_not_read(tmp_path: Path) -> None:
    write_table(pl.DataFrame({"query_id": ["q"], "doc_id": ["d"], "relevance": [1]}), QRELS, tmp_path / "q.parquet")
    with pytest.raises(ValueError, match="expected"):
        read_table(tmp_path / "q.parquet", CORPUS)


def test_a_title_comes_before_the_text(tmp_path: Path) -> None:
    rows = {"doc_id": ["1", "2", "3"], "text": ["Red.", "Blue.", "Green."], "title": ["Sky", "", None]}
    write_table(pl.DataFrame(rows), CORPUS, tmp_path / "c.parquet")
    expected = [("1", "Sky Red."), ("2", "Blue."), ("3", "Green.")]
    assert scan_documents(tmp_path / "c.parquet").collect().rows() == expected
    assert pl.DataFrame({"text": ["Red."]}).select(document_text(["text"])).rows() == [("Red.",)]
