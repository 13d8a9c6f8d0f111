"""Decisions of people over what the tables say."""

import json
from pathlib import Path

import polars as pl
import pytest

from stages.core.errors import InputError
from stages.pairs.label_overrides import apply_label_overrides, read_label_overrides


def write(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def line(query: object, document: object, label: object) -> dict[str, object]:
    return {"query_id": query, "doc_id": document, "label": label, "by": "me"}


def test_the_last_line_on_a_pair_holds(tmp_path: Path) -> None:
    path = write(
        tmp_path / "d.jsonl", line("q", "d", "positive"), "", line(7, "d", "negative"), line("q", "d", "negative")
    )
    assert sorted(read_label_overrides(path).rows()) == [(2, "7", "d", 0), (3, "q", "d", 0)]  # a blank line is no row


@pytest.mark.parametrize(
    "bad", ["{", "[]", "3", line("q", "d", "maybe"), line("q", "d", True), {"query_id": "q", "label": "positive"}]
)
def test_a_row_that_is_no_decision_is_named(tmp_path: Path, bad: object) -> None:
    path = write(tmp_path / "d.jsonl", line("q", "d", "positive"), bad)
    with pytest.raises(InputError, match=r"d\.jsonl, row 2:"):
        read_label_overrides(path)


def test_a_decision_is_stronger_than_the_table(tmp_path: Path) -> None:
    path = write(
        tmp_path / "d.jsonl",
        *(
            line("a", "x", "negative"),
            line("a", "y", "positive"),
            line("no", "x", "positive"),
            line("a", "no", "positive"),
        ),
    )
    qrels = pl.DataFrame(
        {"query_index": [0, 1], "position": [0, 0], "relevance": [1, 1]}, schema_overrides={"relevance": pl.Int32}
    )
    found, unknown = apply_label_overrides(
        qrels,
        read_label_overrides(path),
        pl.DataFrame({"query_index": [0, 1], "query_id": ["a", "b"]}),
        pl.DataFrame({"position": [0, 1], "doc_id": ["x", "y"]}),
    )
    assert sorted(found.rows()) == [(0, 0, 0), (0, 1, 1), (1, 0, 1)]
    assert sorted(unknown.select("row", "reason").rows()) == [
        (3, "label override for an unknown question"),
        (4, "label override for an unknown document"),
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "d.jsonl",
            '{"query_id": "1", "doc_id": "a", "label": null}\n{"query_id": "1", "doc_id": "b", "label": "positive"}',
        ),
        ("d.csv", '\ufeffquery_id,doc_id,label,text\n1,a,,"two\nlines"\n1,b,positive,\n'),
    ],
)
def test_the_file_of_the_audit_is_read_and_empty_labels_are_ignored(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert read_label_overrides(path).rows() == [(2, "1", "b", 1)]


def test_a_csv_without_labels_is_an_error(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text("query_id,doc_id\n1,a\n")
    with pytest.raises(InputError, match="'label'"):
        read_label_overrides(path)


def test_an_empty_file_holds_no_decision(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").touch()
    assert read_label_overrides(tmp_path / "d.jsonl").rows() == []


def test_a_spreadsheet_with_semicolons_is_read(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("query_id;doc_id;label\n1;a;Positive \n2;b;negative\n")
    assert read_label_overrides(tmp_path / "d.csv").rows() == [(1, "1", "a", 1), (2, "2", "b", 0)]
