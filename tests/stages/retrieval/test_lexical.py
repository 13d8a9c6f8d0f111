"""BM25 by hand on three documents, and words in scripts without spaces."""

import math

import numpy as np
import pytest

from stages.retrieval.lexical import Bm25, tokenise

DOCUMENTS = ["Red apple.", "green APPLE pie", "blue sky"]


def score(query: str, documents: list[str]) -> list[float]:
    count = len(documents)
    found: list[float] = Bm25([query], documents).scores(np.zeros(count, dtype=np.int64), np.arange(count)).tolist()
    return found


def test_three_documents_by_hand() -> None:
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    mean_length = 7 / 3
    expected = [idf / (1 + 1.2 * (0.25 + 0.75 * length / mean_length)) for length in (2, 3)]
    assert expected == pytest.approx([0.226898, 0.191281], abs=1e-6)
    assert score("apple", DOCUMENTS) == pytest.approx([*expected, 0])
    assert score("apple apple", DOCUMENTS) == pytest.approx([2 * expected[0], 2 * expected[1], 0])


def test_a_word_in_one_document() -> None:
    idf = math.log(1 + (3 - 1 + 0.5) / (1 + 0.5))
    assert score("sky?", DOCUMENTS) == pytest.approx([0, 0, idf / (1 + 1.2 * (0.25 + 0.75 * 2 / (7 / 3)))])


def test_pairs_come_back_in_their_order() -> None:
    query, document = np.array([1, 0, 1, 0]), np.array([2, 1, 0, 0])
    found = Bm25(["apple", "sky"], DOCUMENTS).scores(query, document)
    apple, sky = score("apple", DOCUMENTS), score("sky", DOCUMENTS)
    assert found.dtype == np.float32
    assert found.tolist() == [sky[2], apple[1], sky[0], apple[0]]


@pytest.mark.parametrize(("query", "documents"), [("?!", DOCUMENTS), ("unknown", DOCUMENTS), ("apple", ["...", ""])])
def test_nothing_in_common_is_zero(query: str, documents: list[str]) -> None:
    assert score(query, documents) == [0.0] * len(documents)


def test_no_pairs() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    assert Bm25([], DOCUMENTS).scores(nothing, nothing).shape == (0,)
    assert Bm25(["apple"], DOCUMENTS).scores(nothing, nothing).shape == (0,)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The  Café's OPEN", ["the", "café", "s", "open"]),
        ("北京大学", ["北京", "京大", "大学"]),
        ("猫", ["猫"]),
        ("用Python3写的。好", ["用", "python3", "写的", "好"]),
        ("データベース", ["デー", "ータ", "タベ", "ベー", "ース"]),
        ("ﾃﾞ", ["デ"]),
        ("환불 정책", ["환불", "정책"]),
        ("𠀀𠀁𠀂", ["𠀀𠀁", "𠀁𠀂"]),
        ("", []),
    ],
)
def test_words_and_character_pairs(text: str, tokens: list[str]) -> None:
    assert tokenise(text) == tokens


def test_chinese_is_found_inside_a_sentence() -> None:
    found = score("大学", ["他在北京大学学习", "他在大连学习", "天气很好"])
    assert found[0] > 0
    assert found[1:] == [0.0, 0.0]
