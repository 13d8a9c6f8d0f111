"""BM25 by hand on three documents, and words in scripts without spaces."""

import math

import bm25s
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.retrieval import bm25
from stages.retrieval.bm25 import Bm25, Bm25Search, tokenise

DOCUMENTS = ["Red apple.", "green APPLE pie", "blue sky"]


def score(query: str, documents: list[str]) -> list[float]:
    count = len(documents)
    found: list[float] = (
        Bm25([query], documents).score_pairs(np.zeros(count, dtype=np.int64), np.arange(count)).tolist()
    )
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
    found = Bm25(["apple", "sky"], DOCUMENTS).score_pairs(query, document)
    apple, sky = score("apple", DOCUMENTS), score("sky", DOCUMENTS)
    assert found.dtype == np.float32
    assert found.tolist() == [sky[2], apple[1], sky[0], apple[0]]


@pytest.mark.parametrize(("query", "documents"), [("?!", DOCUMENTS), ("unknown", DOCUMENTS), ("apple", ["...", ""])])
def test_nothing_in_common_is_zero(query: str, documents: list[str]) -> None:
    assert score(query, documents) == [0.0] * len(documents)


def test_no_pairs() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    assert Bm25([], DOCUMENTS).score_pairs(nothing, nothing).shape == (0,)
    assert Bm25(["apple"], DOCUMENTS).score_pairs(nothing, nothing).shape == (0,)


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


def best(queries: list[str], documents: list[str], end: int) -> list[list[tuple[int, float]]]:
    found = Bm25Search(queries, documents).search(np.arange(len(queries)), end)
    lists: list[list[tuple[int, float]]] = [[] for _ in queries]
    for query, document, rank, score in zip(*(column.tolist() for column in found), strict=True):
        lists[query].append((document, score))
        assert len(lists[query]) == rank
    return lists


def test_the_best_documents_by_hand() -> None:
    short, long = score("apple", DOCUMENTS)[:2]
    assert best(["apple", "sky apple", "unknown", ""], DOCUMENTS, 2) == [
        [(0, pytest.approx(short)), (1, pytest.approx(long))],
        [(2, pytest.approx(score("sky", DOCUMENTS)[2])), (0, pytest.approx(short))],
        [],
        [],
    ]


def test_ties_come_in_the_order_of_the_corpus_at_the_cut_too() -> None:
    documents = ["rope", "map", "rope map", "map rope", "rope", "map"]
    assert [document for document, _ in best(["rope"], documents, 10)[0]] == [0, 4, 2, 3]
    assert [document for document, _ in best(["rope"], documents, 1)[0]] == [0]
    assert [document for document, _ in best(["rope"], documents, 3)[0]] == [0, 4, 2]


def test_pairs_have_the_scores_of_the_search_and_0_if_no_word_is_shared() -> None:
    search = Bm25Search(["apple", "sky apple"], DOCUMENTS)
    found = search.search(np.array([1, 0]), 9)
    queries = np.array([1, 0])[found.query_index]
    assert search.score_pairs(queries, found.document_index).tolist() == found.score.tolist()
    assert search.score_pairs(np.array([0]), np.array([2])).tolist() == [0.0]


def naive(query: str, documents: list[str], end: int) -> list[tuple[int, float]]:
    """Each word's weight in each document by `Bm25`, added one by one."""
    words = sorted(tokenise(query))
    sums = [0.0] * len(documents)
    for word in dict.fromkeys(words):
        for place, weight in enumerate(score(word, documents)):
            sums[place] += weight * words.count(word)
    found = [(place, float(np.float32(total))) for place, total in enumerate(sums) if total > 0]
    return sorted(found, key=lambda one: (-one[1], one[0]))[:end]


texts = st.lists(st.sampled_from(["tent", "boot", "a", "the", "北京大学", "京大", "ю", "환불", "?"]), max_size=8)


@given(
    st.lists(texts.map(" ".join), min_size=1, max_size=5),
    st.lists(texts.map(" ".join), min_size=1, max_size=12),
    st.integers(1, 14),
    st.data(),
)
def test_top_k_equals_a_naive_search_for_any_batch(
    queries: list[str], documents: list[str], end: int, data: st.DataObject
) -> None:
    expected = [naive(query, documents, end) for query in queries]
    assert best(queries, documents, end) == expected
    order = data.draw(st.permutations(range(len(queries))))
    some = order[: data.draw(st.integers(1, len(queries)))]
    assert best([queries[i] for i in some], documents, end) == [expected[i] for i in some]


def test_queries_in_parts_are_found_alike() -> None:
    search = Bm25Search(["apple pie", "sky", "green sky"], DOCUMENTS)
    whole = search.search(np.arange(3), 3)
    for query in range(3):
        part, same = search.search(np.array([query]), 3), whole.select_queries(slice(query, query + 1))
        assert part.query_index.tolist() == [0] * len(part.query_index)
        assert [c.tolist() for c in part[1:]] == [c.tolist() for c in same[1:]]


@pytest.mark.parametrize("documents", [[], ["..."], ["", "?"]])
def test_nothing_to_be_found_in(documents: list[str]) -> None:
    assert best(["apple"], documents, 3) == [[]]


@given(
    st.lists(st.lists(st.sampled_from("abcdefghijkl"), max_size=20), max_size=30),
    st.lists(st.sampled_from("abcdefgh"), max_size=6, unique=True),
    st.integers(1, 7),
)
def test_weights_are_those_of_bm25s_to_the_last_bit(documents: list[list[str]], words: list[str], rows: int) -> None:
    documents = [["a", "b"], *documents]
    theirs = bm25s.BM25(k1=1.2, b=0.75, method="lucene")
    theirs.index(documents, show_progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bm25, "_INDEX_BATCH_DOCUMENTS", rows)
        ours = Bm25(words, map(" ".join, documents))
    assert ours._weights.data.itemsize + ours._weights.indices.itemsize == 8
    every = np.arange(len(documents))
    for place, word in enumerate(words):
        expected = theirs.get_scores([word]) if word in theirs.vocab_dict else np.zeros(len(documents), np.float32)
        assert np.array_equal(ours.score_pairs(np.full(len(documents), place), every), expected)
