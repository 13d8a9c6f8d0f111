"""The downstream bench by hand: what each rule takes, that all else is the same, and what a difference is."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from stages.bench.collections import HoldoutCollection
from stages.bench.downstream import (
    Params,
    build_downstream_report,
    build_rule_training_sets,
    compute_test_metrics,
    evaluate_score_column,
    filter_queries,
    select_on_common_queries,
    train_and_score,
)
from stages.bench.leak import CandidateMatrix, build_candidate_matrix
from stages.bench.split import BenchmarkSplit
from stages.core.context import StageContext
from stages.core.errors import InputError
from stages.core.schemas import CANDIDATES
from stages.evaluation.candidate_lists import CandidateLists
from stages.training.stage import build_training_epochs
from tests.fakes import RecordedProgress
from tests.unit.stages.bench.test_leak import mined as two_questions
from tests.unit.stages.mining.collection import write

DOCUMENTS = ["h", "v", "w", "x", "y", "z"]
SCORES = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], np.float32)
QUERIES = [f"q{i:02}" for i in range(20)]


def candidates() -> pl.DataFrame:
    """Of every question the same six; the best, h, is its hidden positive. q00's positive scores 0.5, others' 1.0."""
    return pl.DataFrame(
        {
            "query_id": [query for query in QUERIES for _ in DOCUMENTS],
            "doc_id": DOCUMENTS * len(QUERIES),
            "rank": [2, 3, 4, 5, 6, 7] * len(QUERIES),
            "score": np.tile(SCORES, len(QUERIES)),
        }
    )


def mined(k: int) -> CandidateMatrix:
    judged = pl.DataFrame(
        {"query_id": QUERIES, "doc_id": "p", "relevance": 1, "score": [0.5, *[1.0] * (len(QUERIES) - 1)]}
    )
    p = np.tile(np.array([0.9, 0.1, 0, 0, 0, 0], np.float32), len(QUERIES))
    return build_candidate_matrix(candidates(), p, judged, k, pl.DataFrame({"query_id": QUERIES, "doc_id": "h"}))


def trial() -> BenchmarkSplit:
    nothing = pl.DataFrame(schema={"query_id": pl.String, "doc_id": pl.String})
    queries = pl.DataFrame({"query_id": QUERIES, "query": QUERIES, "split": "train", "group": QUERIES})
    known = pl.DataFrame({"query_id": QUERIES * 2, "doc_id": ["p"] * 20 + ["r"] * 20, "relevance": 1})
    return BenchmarkSplit(HoldoutCollection("set", "", queries, nothing, known, nothing, nothing), nothing, [])


def params(*rules: str, **settings: object) -> Params:
    return Params(rule=rules, **{"num_negatives": 2, "train_queries": 10} | settings)  # type: ignore[arg-type]


def test_the_negatives_of_each_rule() -> None:
    rules = ("naive", "oracle", "learned", "learned as hard", "perc_max 0.9")
    kept, taken = select_on_common_queries(mined(2), rules, max_false_negatives=0.04)
    # q00's positive lets through what scores up to 0.45: one document, so the question is left out for all
    assert kept.tolist() == [False] + [True] * 19
    best = {rule: [DOCUMENTS[i] for i in np.flatnonzero(chosen[0])] for rule, chosen in taken.items()}
    assert best["naive"] == ["h", "v"]
    assert best["perc_max 0.9"] == ["h", "v"]  # up to 0.9
    assert best["oracle"] == ["v", "w"]
    # v's 10 % would make a mean of 5 %
    assert best["learned"] == ["w", "x"]
    assert select_on_common_queries(mined(2), ("learned",), 0.06)[1]["learned"][0].tolist() == [
        False,
        True,
        True,
        False,
        False,
        False,
    ]
    # the rule's true negatives have 0.8 in the mean; without h the hardest two have 0.75, so only with it is it as hard
    assert best["learned as hard"] == ["h", "v"]


def test_the_learned_mask_takes_a_budget_on_the_questions_that_are_kept() -> None:
    found = filter_queries(two_questions(), np.array([False, True]))
    assert found.lists.score.tolist() == [pytest.approx([0.7, 0.6, 0.1])]
    assert found.is_held_out.tolist() == [[False, True, False]]
    assert found.positive_score_max.tolist() == [pytest.approx(0.8)]


def test_all_but_the_negatives_is_the_same(tmp_path: Path) -> None:
    rules = ("naive", "perc_max 0.9", "oracle")
    bench_params = params(*rules, epochs=2, distill_epochs=1)
    found = build_rule_training_sets(trial(), candidates(), mined(2), bench_params)
    assert found.n_queries == 10
    assert found.n_unfilled_queries == 1
    assert found.leak_metrics["naive"]["leak"] == 0.5
    assert found.leak_metrics["oracle"]["leak"] == 0.0
    assert found.leak_metrics["oracle"]["hardness"] == pytest.approx(0.75)
    assert found.mined_queries["naive"][0].negatives == ("h", "v")
    assert found.mined_queries["oracle"][0].negatives == ("v", "w")
    assert found.mined_queries["oracle"][0].positives == ("p", "r")
    inputs = write(tmp_path, candidates=candidates().with_columns(source=pl.lit("dense")).select(CANDIDATES.names))
    made = {
        rule: build_training_epochs(
            bench_params.build_training_params(0), found.mined_queries[rule], inputs["candidates"], 1
        )
        for rule in rules
    }
    shapes = {
        rule: [[(g.query_id, g.documents[0], len(g.documents)) for g in groups] for groups in epochs]
        for rule, epochs in made.items()
    }
    assert shapes["naive"] == shapes["perc_max 0.9"] == shapes["oracle"]
    assert [len(groups) for groups in made["naive"]] == [10, 10, 10]
    assert made["naive"][0] == made["oracle"][0]  # the retriever's own scores
    assert made["naive"][1] != made["oracle"][1]
    other_seed = bench_params.build_training_params(1)
    other_epochs = build_training_epochs(other_seed, found.mined_queries["naive"], inputs["candidates"], 1)
    assert made["naive"][0] != other_epochs[0]


def test_too_few_queries_are_an_error() -> None:
    with pytest.raises(InputError, match="0 questions get 7 negatives under every rule"):
        build_rule_training_sets(trial(), candidates(), mined(7), params("naive", num_negatives=7))


def fixed() -> CandidateLists:
    """Question a's list is right, wrong; b's wrong, right; a third positive of b's is in no list."""
    lists = pl.DataFrame(
        {
            "list": "test",
            "query_id": ["a", "a", "b", "b"],
            "doc_id": ["r", "w", "w", "r"],
            "relevance": [1, 0, 0, 1],
            "embedder": [0.9, 0.8, 0.9, 0.8],
        }
    )
    qrels = pl.DataFrame({"query_id": ["a", "b", "b"], "doc_id": ["r", "r", "t"], "relevance": [1, 1, 1]})
    queries = pl.DataFrame({"split": "test", "query_id": ["a", "b"], "query": ["a", "b"], "group": ["a", "b"]})
    return CandidateLists(queries, qrels, lists, {"test": 2})


def test_ties_count_against_the_reranker_and_unlisted_positives_as_missed() -> None:
    scores = fixed().lists.select("query_id", "doc_id", reranker=pl.Series([1.0, 1.0, 0.0, 5.0]))
    second = 1 / np.log2(3)
    found = compute_test_metrics(fixed(), scores)
    # a ties, so its positive is second; b's is first, of two
    assert found[:, 0] == pytest.approx([second, 1 / (1 + second)])
    assert found[:, 1] == pytest.approx([0.5, 1.0])
    # fused: a's tie says nothing, the embedder decides; b's two cancel, which is a tie
    assert found[:, 3] == pytest.approx([1.0, 0.5])
    assert evaluate_score_column(fixed(), fixed().lists, "embedder")[:, 1] == pytest.approx([1.0, 0.5])


def test_differences_by_hand() -> None:
    ours = np.full((2, 6, 4), 0.5)
    ours[0] += 0.25
    ours[1] -= 0.25  # a question's mean over the seeds is 0.5 throughout
    theirs = np.full((2, 6, 4), 0.4)
    mixed = np.full((2, 6, 4), 0.5)
    mixed[:, 0, 0] = 0.2  # one of six questions is 0.3 worse
    values = {"naive": theirs, "learned": ours, "oracle": mixed}
    found = build_downstream_report(values, np.full((6, 2), 0.75), np.arange(6), params("learned"))
    assert found["learned"] == "learned"
    assert set(found["differences"]) == {"naive", "oracle", "embedder"}
    assert found["rules"]["learned"]["nDCG@10"] == pytest.approx(0.5)
    assert found["rules"]["learned"]["by_seed"]["MRR@10"] == pytest.approx([0.75, 0.25])
    assert found["embedder"] == {"nDCG@10": 0.75, "MRR@10": 0.75}
    assert found["differences"]["naive"]["MRR@10"] == pytest.approx([0.1, 0.1, 0.1])
    assert found["differences"]["embedder"]["fused nDCG@10"] == pytest.approx([-0.25, -0.25, -0.25])
    mean, low, high = found["differences"]["oracle"]["nDCG@10"]
    # drawn not at all in 33 % of the samples; thrice or more in 6.2 %, four times or more in 0.9 %
    assert (mean, low, high) == pytest.approx((0.05, 0.0, 0.15))
    assert found["differences"]["oracle"]["MRR@10"] == pytest.approx([0.0, 0.0, 0.0])


def test_with_few_units_there_is_no_interval_and_without_the_learned_mask_no_difference() -> None:
    values = {"learned": np.full((1, 6, 4), 0.5), "naive": np.full((1, 6, 4), 0.25)}
    few = build_downstream_report(values, np.zeros((6, 2)), np.arange(6) % 5, params("learned"))
    assert few["differences"]["naive"]["nDCG@10"] == [0.25, None, None]
    del values["learned"]
    assert build_downstream_report(values, np.zeros((6, 2)), np.arange(6), params("naive"))["differences"] == {}


def test_an_unknown_rule_is_an_error_and_a_repeated_one_counts_once() -> None:
    with pytest.raises(ValidationError, match="there is no rule 'perc 2'"):
        params("perc 2")
    assert params("naive", "naive", "oracle").rule == ("naive", "oracle")


def test_a_student_is_the_same_again_and_another_with_another_seed(tmp_path: Path, tiny_model: Path) -> None:
    texts = {document: f"{document} {document}" for document in (*DOCUMENTS, "p", "r")}
    pairs = [(query, texts[document]) for query in QUERIES[:4] for document in DOCUMENTS]
    bench_params = params(
        "naive", student=str(tiny_model), batch_size=4, max_length=16, learning_rate=3e-3, device="cpu"
    )
    lessons = build_rule_training_sets(trial(), candidates(), mined(2), bench_params).mined_queries["naive"]
    found = []
    for number, seed in enumerate((0, 0, 1)):
        folder = tmp_path / str(number)
        training = bench_params.build_training_params(seed)
        epochs = build_training_epochs(training, lessons, tmp_path, 0)
        tools = StageContext(RecordedProgress(), folder, folder, folder / "logs")
        scores, history = train_and_score(
            epochs, dict(zip(QUERIES, QUERIES, strict=True)), texts, pairs, training, tools
        )
        assert history.n_steps == 2 * 3
        found.append(scores)
    assert found[0].shape == (24,)
    assert len(set(found[0].tolist())) > 12
    assert (found[0] == found[1]).all()
    assert (found[0] != found[2]).any()
