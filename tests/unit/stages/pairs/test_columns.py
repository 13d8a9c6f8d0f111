"""Which column plays which part."""

import polars as pl
import pytest

from stages.core.errors import InputError
from stages.pairs.columns import (
    choose_corpus_columns,
    choose_pair_columns,
    parse_relevance,
    parse_split,
    resolve_columns,
)
from stages.readers.base import TableSource
from stages.readers.dataframe import dataframe_source


def source(**columns: list[str | None]) -> TableSource:
    return dataframe_source(pl.DataFrame(columns), "faq.csv")


def test_column_names_are_recognised_in_any_case() -> None:
    table = source(ID=["1"], Query=["q"], doc=["file.pdf"], Context=["c"], Answer=["a"], Category=["x"])
    assert choose_pair_columns(table, {}).column_by_role == {
        "question": "Query",
        "document": "Context",
        "answer": "Answer",
        "category": "Category",
        "id": "ID",
    }


def test_chinese_names() -> None:
    assert choose_pair_columns(source(问题=["q"], 答案=["a"], 文档=["d"]), {}).column_by_role == {
        "question": "问题",
        "document": "文档",
        "answer": "答案",
    }


def test_answers_are_the_documents_if_there_is_no_document_column() -> None:
    found = choose_pair_columns(source(question=["q"], answer=["a"]), {})
    assert found.column_by_role == {"question": "question", "document": "answer"}
    assert "question-answer pairs" in found.notes[0]


def test_answers_replace_an_empty_recognised_document_column() -> None:
    assert (
        choose_pair_columns(source(question=["q"], context=[""], answer=["a"]), {}).column_by_role["document"]
        == "answer"
    )
    assert (
        choose_pair_columns(source(question=["q", "r"], context=["", "c"], answer=["a", "b"]), {}).column_by_role[
            "document"
        ]
        == "context"
    )
    named = choose_pair_columns(source(question=["q"], context=[""], answer=["a"]), {"document": "context"})
    assert named.column_by_role["document"] == "context"


def test_an_answer_named_as_document_is_no_answer_too() -> None:
    table = source(question=["q"], context=["c"], answer=["a"], answers=["b"])
    assert choose_pair_columns(table, {"document": "answer"}).column_by_role == {
        "question": "question",
        "document": "answer",
    }


def test_an_empty_name_means_no_column() -> None:
    assert (
        "split"
        not in choose_pair_columns(source(question=["q"], text=["t"], split=["dev"]), {"split": ""}).column_by_role
    )


def test_labels_that_are_no_numbers_are_not_relevance() -> None:
    found = choose_pair_columns(source(question=["q"], text=["t"], label=["billing"], split=["north"]), {})
    assert found.column_by_role == {"question": "question", "document": "text"}
    assert len(found.notes) == 2
    assert (
        choose_pair_columns(source(question=["q"], text=["t"], label=["1"]), {}).column_by_role["relevance"] == "label"
    )


def test_a_missing_column_is_an_error_that_lists_the_columns() -> None:
    with pytest.raises(InputError, match=r"no column 'contxt'.*'context'.*Did you mean 'context'"):
        resolve_columns({"document": "contxt"}, ["question", "context"], ["document"], "faq.csv")


def test_nothing_like_a_question_or_a_document() -> None:
    with pytest.raises(InputError, match=r"no column looks like the question.*'a', 'b'"):
        choose_pair_columns(source(a=["1"], b=["2"]), {})
    with pytest.raises(InputError, match="no column looks like the document"):
        choose_pair_columns(source(question=["1"], b=["2"]), {})


def test_corpus_columns() -> None:
    assert choose_corpus_columns(source(_id=["1"], text=["t"]), {}) == {"document": "text", "document_id": "_id"}
    assert choose_corpus_columns(source(anything=["t"]), {"document": "context"}) == {"document": "anything"}


def test_judgements_and_splits_as_written() -> None:
    assert [
        parse_relevance(text) for text in ("", "1", "3.0", "0", "-1", "true", "no", "0.5", "high", "nan", "inf")
    ] == [
        *(1, 1, 3, 0, 0, 1, 0),
        *(None, None, None, None),
    ]
    assert [parse_split(text) for text in ("", "Train", "valid", "TEST", "north")] == ["", "train", "dev", "test", None]
