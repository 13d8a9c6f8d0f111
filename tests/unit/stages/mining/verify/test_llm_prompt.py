import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.mining.verify import llm_prompt
from stages.mining.verify.llm_prompt import (
    JudgeRequest,
    build_cache_key,
    build_requests,
    parse_completion,
    parse_verdicts,
    truncate_at_word,
)


def test_a_request_has_one_query_and_requests_keep_the_order_of_pairs() -> None:
    pairs = {"k1": ("q2", "a"), "k2": ("q1", "b"), "k3": ("q2", "c")}
    assert build_requests(pairs) == [JudgeRequest("q2", ("a", "c"), ("k1", "k3")), JudgeRequest("q1", ("b",), ("k2",))]


def test_requests_are_limited_in_documents_and_characters() -> None:
    many = {str(n): ("q", "text") for n in range(llm_prompt.MAX_DOCUMENTS_PER_REQUEST * 2 + 1)}
    assert [len(batch.cache_keys) for batch in build_requests(many)] == [8, 8, 1]
    long = {str(n): ("q", "x" * 4_000) for n in range(4)} | {"small": ("q", "x")}
    assert [batch.cache_keys for batch in build_requests(long)] == [("0", "1", "2"), ("3", "small")]
    huge = {"a": ("q", "x" * 20_000), "b": ("q", "x")}
    assert [batch.cache_keys for batch in build_requests(huge)] == [("a",), ("b",)]


@given(st.lists(st.tuples(st.sampled_from("pqr"), st.text(max_size=6000)), max_size=30))
def test_every_pair_is_in_one_request(pairs: list[tuple[str, str]]) -> None:
    pairs_by_key = {str(n): pair for n, pair in enumerate(pairs)}
    requests = build_requests(pairs_by_key)
    sent = {
        key: (request.query, text)
        for request in requests
        for key, text in zip(request.cache_keys, request.documents, strict=True)
    }
    assert sent == pairs_by_key
    assert sum(len(request.cache_keys) for request in requests) == len(pairs)


def test_the_messages_of_a_request_and_of_one_document() -> None:
    batch = JudgeRequest("Was ist 水?", ("a", "b"), ("k1", "k2"))
    rules, data = batch.to_messages()
    assert (rules["role"], rules["content"], data["role"]) == ("system", llm_prompt.SYSTEM_PROMPT, "user")
    assert data["content"] == (
        '{"query": "Was ist 水?", "documents": [{"document": 1, "text": "a"}, {"document": 2, "text": "b"}]}'
    )
    assert batch.select_document(1) == JudgeRequest("Was ist 水?", ("b",), ("k2",))


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("one two", 7, "one two"),
        ("one two three", 7, "one two"),
        ("one two three", 9, "one two"),
        ("one two\nthree", 8, "one two"),
        ("水是什么意思啊", 4, "水是什么"),
        ("一 水是什么意思啊", 6, "一 水是什么"),
        ("", 5, ""),
    ],
)
def test_long_texts_are_cut_at_the_end_of_a_word(text: str, limit: int, expected: str) -> None:
    assert truncate_at_word(text, limit) == expected


@given(st.text(alphabet="ab \n", max_size=60), st.integers(1, 40))
def test_a_cut_text_is_a_prefix_within_the_limit(text: str, limit: int) -> None:
    short = truncate_at_word(text, limit)
    assert text.startswith(short)
    assert len(short) <= limit
    assert short == text or len(short) >= limit // 2


GOOD = '{"verdicts": [{"document": 1, "relevant": true}, {"document": 2, "relevant": false}]}'


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (GOOD, {0: True, 1: False}),
        (f"Here:\n```json\n{GOOD}\n```\nHope {{that}} helps", {0: True, 1: False}),
        ('[{"relevant": false, "document": 2}]', {1: False}),
        (GOOD[:-20], {0: True}),
        ('{"document": 3, "relevant": true}', {}),
        ('{"document": 0, "relevant": true}', {}),
        ('{"document": true, "relevant": true}', {}),
        ('{"document": "1", "relevant": true}', {}),
        ('{"document": 1, "relevant": 1}', {}),
        ('{"document": 1}', {}),
        ('{"document": [1], "relevant": true}', {}),
        (f'{GOOD} no: {{"document": 1, "relevant": false}}', {1: False}),
        (f'{GOOD} yes: {{"document": 1, "relevant": true}}', {0: True, 1: False}),
        (f'<think>perhaps {{"document": 2, "relevant": true}}</think>{GOOD}', {0: True, 1: False}),
        ("{}{{}}{x}", {}),
        pytest.param(f'{GOOD} {{"document": {"[" * 200_000}}}', {0: True, 1: False}, id="endless"),
        ("", {}),
    ],
)
def test_verdicts_are_found_in_any_surrounding_text(answer: str, expected: dict[int, bool]) -> None:
    assert parse_verdicts(answer, 2) == expected


@given(st.text())
def test_no_text_breaks_the_parser(text: str) -> None:
    parse_verdicts(text, 3)
    parse_completion(text)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"choices": [{"message": {"content": "yes"}}]}, "yes"),
        ({"choices": [{"message": {"content": None, "refusal": "no"}}]}, ""),
        ({"choices": []}, None),
        ({"choices": [{"message": None}]}, None),
        ({"error": "x"}, None),
        ([], None),
        ("text", None),
    ],
)
def test_the_content_of_a_completion(body: object, expected: str | None) -> None:
    assert parse_completion(json.dumps(body)) == expected


def test_the_cache_key_depends_on_pair_model_and_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [
        build_cache_key("m", "a", "bc"),
        build_cache_key("m", "ab", "c"),
        build_cache_key("ma", "", "bc"),
        build_cache_key("n", "a", "bc"),
    ]
    assert build_cache_key("m", "a", "bc") == keys[0]
    monkeypatch.setattr(llm_prompt, "SYSTEM_PROMPT", "other rules")
    keys.append(build_cache_key("m", "a", "bc"))
    assert len(set(keys)) == 5
