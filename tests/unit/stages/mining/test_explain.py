"""Find a query, and explain its verdicts."""

import json

import polars as pl
import pytest

from stages.core import schemas
from stages.core.errors import InputError
from stages.mining.explain import MaskSummary, describe_query, explain_verdict, find_query, load_query_view
from stages.mining.mask import REASON_PRECEDENCE, RULE_PLACEHOLDER
from stages.mining.threshold_rules import THRESHOLD_RULES
from tests.unit.stages.mining.collection import table, write

QUERIES = table(
    schemas.QUERIES,
    ("1", "How do I reset my password?", "train", "1"),
    ("2", "How do I change my password?", "train", "2"),
    ("3", "Opening hours", "test", "3"),
).lazy()


@pytest.mark.parametrize(
    ("id_or_text", "query_id"),
    [("1", "1"), ("how do i reset my PASSWORD", "1"), ("opening", "3"), ("change my", "2")],
)
def test_a_query_is_found_by_id_text_or_part_of_the_text(id_or_text, query_id):
    assert find_query(QUERIES, id_or_text)["query_id"] == query_id


@pytest.mark.parametrize(
    ("id_or_text", "message"),
    [
        ("password", r"2 queries match 'password'.*:\n  1  How do I reset"),
        ("How do I resett a passwort?", r"Similar ones:\n  1  How do I reset"),
        ("zzzz", r"no query has the id or the text 'zzzz'\.$"),
    ],
)
def test_a_query_that_is_not_found(id_or_text, message):
    with pytest.raises(InputError, match=message):
        find_query(QUERIES, id_or_text)


def write_collection(folder):
    """Query 1 under perc: two positives, of which one was not retrieved, and three candidates."""
    inputs = write(
        folder,
        queries=QUERIES.collect(),
        corpus=table(schemas.CORPUS, ("n", "far"), ("o", "old"), ("p", "seen"), ("u", "unseen"), ("x", "close")),
        qrels_scored=table(
            schemas.QRELS_SCORED, ("1", "o", 0, -0.1), ("1", "p", 1, 0.8), ("1", "u", 1, 0.2), ("2", "p", 1, 0.5)
        ),
        verdicts=table(
            schemas.VERDICTS,
            ("1", "o", "curated_negative", 0, -0.1, "negative", "curated_negative", None, 0.19, 0.1),
            ("1", "x", "dense", 1, 0.9, "ignored", "perc", None, 0.19, 0.7),
            ("1", "p", "dense", 2, 0.8, "positive", "known_positive", None, 0.19, 1.0),
            ("1", "n", "dense", 3, 0.1, "negative", "kept", None, 0.19, 0.2),
            ("2", "n", "dense", 1, 0.1, "negative", "kept", None, 0.19, 0.2),
        ),
        features=table(schemas.CANDIDATE_FEATURES),
        verifier_scores=table(schemas.VERIFIER_SCORES),
    )
    lines = [
        {"query_id": "1", "query": "How?", "pos": ["seen"], "pos_ids": ["p"], "neg_ids": ["o", "n"]},
        {"query_id": "2", "query": "How?", "pos": ["seen"], "pos_ids": ["p"], "neg_ids": ["n", "x"]},
    ]
    inputs["mined"] = folder / "mined.jsonl"
    inputs["mined"].write_text("".join(json.dumps(line) + "\n" for line in lines))
    return inputs


def test_positives_come_before_candidates(tmp_path):
    query, rows, negatives = load_query_view("reset my password", write_collection(tmp_path), "perc")
    assert query == {"query_id": "1", "query": "How do I reset my password?", "split": "train", "group": "1"}
    assert rows.select("doc_id", "rank", "verdict", "reason", "mined", "explanation", "text").rows() == [
        ("p", 2, "positive", "known_positive", "pos", "is one of the query's positives", "seen"),
        (
            "u",
            None,
            "positive",
            "known_positive",
            None,
            "is one of the query's positives, not among the candidates",
            "unseen",
        ),
        ("x", 1, "ignored", "perc", None, "may be a positive by the rule perc: score 0.9 is above 0.19", "close"),
        ("n", 3, "negative", "kept", "neg", "passed every check: score 0.1 is at most 0.19", "far"),
        ("o", None, "negative", "curated_negative", "neg", "was labelled not relevant by people", "old"),
    ]
    assert sorted(negatives) == ["n", "o"]


def test_without_mined_jsonl(tmp_path):
    inputs = write_collection(tmp_path)
    del inputs["mined"]
    query, rows, negatives = load_query_view("1", inputs, "perc")
    assert negatives is None
    assert rows["mined"].null_count() == len(rows)
    mask_summary = MaskSummary("perc", 0.9, (10, 210), 0.02, None, None)
    assert describe_query(query, rows, negatives, mask_summary)[1] == "mined.jsonl is not written yet"


def test_the_probability_before_the_verifier(tmp_path):
    inputs = write_collection(tmp_path)
    inputs |= write(
        tmp_path,
        verdicts=table(
            schemas.VERDICTS,
            ("1", "n", "dense", 1, 0.5, "negative", "kept", 0.012, 0.02, 0.2),
            ("1", "x", "dense", 2, 0.4, "ignored", "learned", 0.75, 0.5, 0.7),
        ).with_columns(verifier_score=pl.Series([-4.0, 3.0], dtype=pl.Float32)),
        features=table(
            schemas.CANDIDATE_FEATURES,
            ("1", "n", "dense", 1, 0.5, *[None] * 5, 0.012),
            ("1", "x", "dense", 2, 0.4, *[None] * 5, 0.6),
            ("2", "x", "dense", 2, 0.4, *[None] * 5, 0.1),
        ),
        verifier_scores=table(
            schemas.VERIFIER_SCORES,
            ("1", "n", -4.0, 1.0, 2.0, None, 0.012),
            ("1", "p", 2.0, None, None, None, None),
            ("1", "x", 3.0, 1.0, 2.0, None, 0.75),
        ),
    )
    _, rows, _ = load_query_view("1", inputs, "learned")
    explanations = dict(rows.select("doc_id", "explanation").iter_rows())
    assert explanations["n"] == (
        "passed every check: 1.2% likely a false negative, up to 2.0% accepted at its score; "
        "verifier score -4.00, best positive 2.00"
    )
    assert explanations["x"] == (
        "may answer: 75.0% likely a false negative (60.0% before the verifier), nothing above 50% accepted; similarity "
        "0.70 with a positive; verifier score 3.00, best positive 2.00"
    )


def test_every_reason_has_a_text():
    reasons = (
        {flag for flag, _ in REASON_PRECEDENCE if flag != RULE_PLACEHOLDER}
        | {"kept"}
        | (set(THRESHOLD_RULES) - {"none"})
    )
    row = {"rank": 3, "score": 0.5, "threshold": 0.4, "positive_similarity": 0.99}
    for reason in reasons:
        for rule in THRESHOLD_RULES:
            text = explain_verdict(row | {"reason": reason}, rule)
            assert text != reason
            assert " " in text
            assert "{" not in text
    assert "0.99" in explain_verdict(row | {"reason": "near_duplicate"}, "perc")
    assert "rank 3" in explain_verdict(row | {"reason": "window"}, "window")


LEARNED = {"rank": 1, "score": 0.5, "positive_similarity": 0.6214, "reason": "learned"}
KEPT = {"rank": 1, "score": 0.5, "reason": "kept"}


@pytest.mark.parametrize(
    ("row", "rule", "text"),
    [
        (
            LEARNED | {"p_false_negative": 0.0736, "threshold": 0.0511},
            "learned",
            "may answer: 7.4% likely a false negative, up to 5.1% accepted at its score; similarity 0.62 with a "
            "positive",
        ),
        (
            LEARNED | {"p_false_negative": 0.63, "threshold": 0.5, "positive_similarity": None},
            "learned",
            "may answer: 63.0% likely a false negative, nothing above 50% accepted",
        ),
        (
            KEPT | {"p_false_negative": 0.0043, "threshold": 1.0},
            "learned",
            "passed every check: 0.43% likely a false negative, up to 50.0% accepted at its score",
        ),
        (
            KEPT | {"p_false_negative": 0.00002, "threshold": 0.7},
            "perc",
            "passed every check: score 0.5 is at most 0.7, under 0.01% likely a false negative",
        ),
        (
            KEPT | {"p_false_negative": 0.0043},
            "none",
            "passed every check: 0.43% likely a false negative",
        ),
        (
            KEPT | {"reason": "relabelled", "p_false_negative": 0.93},
            "learned",
            "became a positive: 93.0% likely a false negative",
        ),
        (
            KEPT | {"reason": "weighted", "p_false_negative": 0.25, "weight": 0.75},
            "learned",
            "is kept with a weight: 0.75, 25.0% likely a false negative",
        ),
    ],
)
def test_the_text_of_an_estimate(row, rule, text):
    assert explain_verdict(row, rule) == text


def test_the_text_of_the_llm_judge():
    row = {"reason": "kept", "rank": 1, "score": 0.5, "threshold": 0.06, "p_false_negative": 0.01, "estimated_p": 0.4}
    assert explain_verdict(row | {"llm_judge": False}, "learned") == (
        "passed every check: 1.0% likely a false negative (40.0% before the LLM judge), up to 6.0% accepted at its "
        "score; LLM judge: does not answer"
    )
    answers = {"reason": "llm_judge", "llm_judge": True, "p_false_negative": 0.98, "verifier_score": 1.5}
    assert explain_verdict(row | answers, "learned") == (
        "may answer: 98.0% likely a false negative (40.0% before the verifier and the LLM judge); verifier score 1.50; "
        "LLM judge: answers"
    )
    assert explain_verdict(row | {"llm_judge": None}, "learned") == (
        "passed every check: 1.0% likely a false negative, up to 6.0% accepted at its score"
    )


QUERY = {"query_id": "1", "query": "?", "split": "train", "group": "1"}
ROWS = pl.DataFrame(
    {
        "doc_id": ["p", "a", "b", "c"],
        "verdict": ["positive", "negative", "negative", "negative"],
        "reason": ["known_positive", "kept", "kept", "curated_negative"],
        "p_false_negative": [None, 0.01, 0.05, None],
    }
)


@pytest.mark.parametrize(
    ("negatives", "query", "rows", "text"),
    [
        (["a", "b", "c"], {}, ROWS, "has 3 negatives of this question, false with a mean probability of 2.0%"),
        (
            ["a"],
            {},
            ROWS.with_columns(p_false_negative=pl.lit(None, pl.Float64)),
            "has 1 negative of this question",
        ),
        ([], {}, ROWS, "has no line of this question, which has no usable negative"),
        ([], {}, ROWS[1:], "has no line of this question, which has no usable positive"),
        ([], {"split": "test"}, ROWS, "has no line of this question, which is in the test split"),
    ],
)
def test_the_line_of_mined_jsonl(negatives, query, rows, text):
    mask_summary = MaskSummary("none", None, (10, 210), 0.02, None, None)
    assert describe_query(QUERY | query, rows, negatives, mask_summary)[1] == f"mined.jsonl {text}"


@pytest.mark.parametrize(
    ("mask_summary", "text"),
    [
        (
            MaskSummary("learned", None, (10, 210), 0.02, 0.0192, None),
            "mask learned: at most 2.0% of all negatives may be false, 1.9% are expected to be. The higher a "
            "candidate's score, the higher the accepted probability.",
        ),
        (
            MaskSummary("learned", None, (10, 210), 0.005, None, None),
            "mask learned: at most 0.50% of all negatives may be false. The higher a candidate's score, the higher "
            "the accepted probability.",
        ),
        (MaskSummary("abs", 0.7, (10, 210), 0.02, None, None), "mask abs: a score of at most 0.7"),
        (MaskSummary("window", None, (10, 210), 0.02, None, None), "mask window: the ranks from 11 to 210"),
        (
            MaskSummary("perc", 0.95, (10, 210), 0.02, None, "too odd"),
            "mask perc: at most 0.95 of the lowest positive's score; the learned mask is not reliable here: too odd",
        ),
    ],
)
def test_the_text_of_the_mask(mask_summary, text):
    assert describe_query(QUERY, ROWS, ["a"], mask_summary)[0] == text
