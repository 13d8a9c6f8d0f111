"""Windows of words and the ones that hold an answer."""

from hypothesis import given
from hypothesis import strategies as st

from stages.pairs.chunking import chunk_text, find_answer_chunks


def test_windows_overlap_and_end_with_the_text() -> None:
    assert chunk_text("a b c d e", 3, 1) == ["a b c", "c d e"]
    assert chunk_text("a b c d e f", 3, 1) == ["a b c", "c d e", "e f"]
    assert chunk_text("a b c", 3, 1) == ["a b c"]
    assert chunk_text("a, b! c", 2, 0) == ["a, b!", "c"]


def test_a_han_character_is_a_word() -> None:
    assert chunk_text("中国银行2023年报告", 4, 0) == ["中国银行", "2023年报告"]


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=60), st.integers(1, 9), st.data())
def test_every_word_is_in_a_window_and_no_window_in_another(words: list[str], size: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, size - 1))
    marked = [f"{word}{place}" for place, word in enumerate(words)]
    windows = [window.split() for window in chunk_text(" ".join(marked), size, overlap)]
    assert sorted({word for window in windows for word in window}) == sorted(marked)
    assert all(len(window) <= size for window in windows)
    assert not any(set(a) <= set(b) for a in windows for b in windows if a is not b)


def test_the_answer_is_found_as_words() -> None:
    chunks = ["It began in 1973, they say.", "The price rose in 1974."]
    assert find_answer_chunks(chunks, ["In 1973"]) == [0]
    assert find_answer_chunks(chunks, ["97"]) == []
    assert find_answer_chunks(chunks, ["IN"]) == [0, 1]
    assert find_answer_chunks(chunks, ["", "?"]) == []
    assert find_answer_chunks(["由韩国Nexon开发。", "玩家"], ["开发"]) == [0]
