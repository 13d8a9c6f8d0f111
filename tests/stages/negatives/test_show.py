"""Finding a query and laying out what is known of it."""

import pytest

from stages import contracts
from stages.errors import InputError
from stages.negatives.mask import PRECEDENCE, RULE
from stages.negatives.rules import RULES
from stages.negatives.show import explain, find_query, show
from tests.stages.negatives.collection import table, write

QUERIES = table(
    contracts.QUERIES,
    ("1", "How do I reset my password?", "train", "1"),
    ("2", "How do I change my password?", "train", "2"),
    ("3", "Opening hours", "test", "3"),
).lazy()


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("1", "1"), ("how do i reset my PASSWORD", "1"), ("opening", "3"), ("change my", "2")],
)
def test_a_query_is_found_by_id_text_or_part(wanted, found):
    assert find_query(QUERIES, wanted)["query_id"] == found


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ("password", r"2 queries match 'password'; name one by its id:\n  1  How do I reset"),
        ("How do I resett a passwort?", r"Close to it:\n  1  How do I reset"),
        ("zzzz", r"no query has the id or the text 'zzzz'\.$"),
    ],
)
def test_a_query_that_is_not_found(wanted, says):
    with pytest.raises(InputError, match=says):
        find_query(QUERIES, wanted)


def test_show_lays_out_positives_then_candidates(tmp_path):
    inputs = write(
        tmp_path,
        queries=QUERIES.collect(),
        corpus=table(contracts.CORPUS, ("n", "far"), ("o", "old"), ("p", "seen"), ("u", "unseen"), ("x", "close")),
        judged=table(contracts.JUDGED, ("1", "o", 0, -0.1), ("1", "p", 1, 0.8), ("1", "u", 1, 0.2), ("2", "p", 1, 0.5)),
        verdicts=table(
            contracts.VERDICTS,
            ("1", "o", "curated", 0, -0.1, "negative", "curated", None, 0.19, 0.1),
            ("1", "x", "dense", 1, 0.9, "ignored", "perc", None, 0.19, 0.7),
            ("1", "p", "dense", 2, 0.8, "positive", "known_positive", None, 0.19, 1.0),
            ("1", "n", "dense", 3, 0.1, "negative", "kept", None, 0.19, 0.2),
            ("2", "n", "dense", 1, 0.1, "negative", "kept", None, 0.19, 0.2),
        ),
    )
    query, rows = show("reset my password", inputs)
    assert query == {"query_id": "1", "query": "How do I reset my password?", "split": "train", "group": "1"}
    assert rows.select("doc_id", "rank", "verdict", "reason", "explanation", "text").rows() == [
        ("p", 2, "positive", "known_positive", "is one of the query's positives", "seen"),
        (
            "u",
            None,
            "positive",
            "known_positive",
            "is one of the query's positives, not among the candidates",
            "unseen",
        ),
        ("x", 1, "ignored", "perc", "may be a positive: score 0.9 is above 0.19 (perc)", "close"),
        ("n", 3, "negative", "kept", "passed every check: score 0.1 is at most 0.19", "far"),
        ("o", None, "negative", "curated", "was judged not relevant by people", "old"),
    ]


def test_every_reason_has_words():
    reasons = {flag for flag, _ in PRECEDENCE if flag != RULE} | {"kept"} | (set(RULES) - {"none"})
    row = {"rank": 3, "score": 0.5, "threshold": 0.4, "positive_similarity": 0.99}
    for reason in reasons:
        words = explain(row | {"reason": reason})
        assert words != reason
        assert " " in words
    assert "0.99" in explain(row | {"reason": "near_duplicate"})
    assert "rank 3" in explain(row | {"reason": "window"})


def test_what_the_judge_said_is_said():
    row = {"reason": "kept", "rank": 1, "score": 0.5, "threshold": 0.6, "p_false_negative": 0.01}
    assert explain(row | {"judge": False}) == (
        "passed every check: a false negative with probability 0.01; the judge says that it does not answer"
    )
    assert explain(row | {"judge": None}) == explain(row)
