"""Positives of paraphrases and documents that contain the answer, on literal texts."""

import numpy as np
import polars as pl
import pytest

from stages.core import schemas
from stages.mining.candidates.documents import DocumentVectors, number_clusters, write_document_words
from stages.mining.candidates.known_positives import (
    add_positive_similarity,
    compute_positive_score_range,
    find_documents_with_answer,
    pool_positives,
    select_answer_strings,
)


def queries(*rows: tuple[str, str, str]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["query_id", "query", "split"], orient="row")


def labels(*rows: tuple[str, str, int]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["query_id", "doc_id", "relevance"], orient="row")


def test_paraphrases_share_their_positives():
    paraphrases = queries(
        ("a", "How do I pay?", "train"), ("b", "how do i pay", "train"), ("c", "How do I pay back?", "train")
    )
    found = pool_positives(
        paraphrases, labels(("a", "d1", 1), ("b", "d1", 2), ("b", "d2", 1), ("b", "d3", 0), ("c", "d4", 1))
    )
    assert found.rows() == [
        ("a", "d1", "own"),
        ("a", "d2", "paraphrase"),
        ("b", "d1", "own"),
        ("b", "d2", "own"),
        ("c", "d4", "own"),
    ]


def test_a_positive_of_a_paraphrase_in_another_split_is_no_positive_of_the_query():
    paraphrases = queries(("a", "How do I pay?", "train"), ("b", "How do I pay?", "test"))
    found = pool_positives(paraphrases, labels(("a", "d1", 1), ("b", "d2", 1)))
    assert found.rows() == [
        ("a", "d1", "own"),
        ("a", "d2", "paraphrase"),
        ("b", "d1", "paraphrase"),
        ("b", "d2", "own"),
    ]


def test_queries_without_words_are_compared_by_their_characters():
    paraphrases = queries(("a", "???", "train"), ("b", "!!!", "train"))
    assert pool_positives(paraphrases, labels(("a", "d1", 1), ("b", "d2", 1))).rows() == [
        ("a", "d1", "own"),
        ("b", "d2", "own"),
    ]


def test_near_duplicates_share_the_number_of_their_first_document(tmp_path):
    corpus = pl.DataFrame({"doc_id": ["a", "b", "c", "d"], "text": ["one", "two", "three", "four"]})
    clusters = pl.DataFrame({"doc_id": ["b", "d"], "cluster": ["b", "b"]})
    schemas.write_table(corpus, schemas.CORPUS, tmp_path / "corpus.parquet")
    schemas.write_table(clusters, schemas.NEAR_DUPLICATES, tmp_path / "near_duplicates.parquet")
    inputs = {name: tmp_path / f"{name}.parquet" for name in ("corpus", "near_duplicates")}
    assert number_clusters(inputs).rows() == [(0, "a", 0), (1, "b", 1), (2, "c", 2), (3, "d", 1)]


@pytest.mark.parametrize(
    ("answer", "answer_string"),
    [
        ("Denver Broncos", " denver broncos "),
        ("  1973. ", " 1973 "),
        ("Yes", None),
        ("none", None),
        ("7", None),
        ("cat", None),
        ("北京", "北京"),
        ("京", None),
        ("没有", None),
        ("在 2008 年", "在 2008 年"),
        ("\U00020bb7野家", "\U00020bb7野家"),
        ("서울에서", "서울에서"),
        ("ราคา", "ราคา"),
        ("!?", None),
    ],
)
def test_only_specific_answers_are_searched_for(answer, answer_string):
    found = select_answer_strings(pl.DataFrame({"query_id": ["q"], "answer": [answer]}), min_chars=4)
    assert found["answer_string"].to_list() == ([] if answer_string is None else [answer_string])


def test_answers_are_found_as_whole_words_and_in_chinese_anywhere(tmp_path):
    texts = {
        "d1": "It BEGAN in (October 1973).",
        "d2": "In October 19730 nothing.",
        "d3": "会议在北京举行。",
        "d4": "October",
    }
    frame = pl.DataFrame({"doc_id": list(texts), "text": list(texts.values())})
    schemas.write_table(frame, schemas.CORPUS, tmp_path / "corpus.parquet")
    words = pl.DataFrame(pl.from_arrow(write_document_words(tmp_path / "corpus.parquet", tmp_path / "words.arrow")))
    answer_strings = select_answer_strings(
        pl.DataFrame({"query_id": ["q", "q", "z"], "answer": ["october 1973", "北京", "October"]}), 4
    )
    rows = pl.DataFrame({"query_id": ["q"] * 4 + ["z"], "doc_id": [*texts, "d1"]})
    found = find_documents_with_answer(rows, answer_strings, words)
    assert sorted(found.rows()) == [("q", "d1"), ("q", "d3"), ("z", "d1")]


def test_positive_similarity_is_the_highest_cosine_with_a_positive():
    vectors = {"p1": [2.0, 0.0], "p2": [0.0, 1.0], "d1": [3.0, 4.0], "d2": [-1.0, 0.0]}

    def vectorise(documents: pl.DataFrame) -> np.ndarray:
        return np.array([vectors[doc_id] for doc_id in documents["doc_id"]], dtype=np.float32)

    rows = pl.DataFrame({"query_id": ["b", "a", "a", "c"], "doc_id": ["d1", "d2", "d1", "d1"]})
    positives = pl.DataFrame({"query_id": ["a", "a", "b", "z"], "doc_id": ["p1", "p2", "p1", "p2"]})
    documents = DocumentVectors.load(pl.concat([rows["doc_id"], positives["doc_id"]]), vectorise)
    found = add_positive_similarity(rows, positives, documents)
    assert found.select("query_id", "doc_id").rows() == rows.rows()
    # b: d1 (0.6, 0.8) against p1 0.6. a: d2 against p1 -1, p2 0; d1 against p1 0.6, p2 0.8. c has no positive.
    assert found["positive_similarity"].to_list() == [pytest.approx(0.6), 0.0, pytest.approx(0.8), None]


def test_the_score_range_of_each_querys_positives():
    positives = pl.DataFrame({"query_id": ["a", "b", "a"], "score": [0.5, 0.1, 0.7]})
    assert sorted(compute_positive_score_range(positives).rows()) == [("a", 0.5, 0.7), ("b", 0.1, 0.1)]
