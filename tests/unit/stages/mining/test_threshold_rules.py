"""The rules: thresholds by hand, and the same negatives as sentence-transformers mines."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from stages.bench.leak import RULE_PRESETS, RulePreset, build_candidate_matrix, select_by_preset
from stages.mining.threshold_rules import THRESHOLD_RULES, apply_rule, compute_thresholds, passes_rule


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


# Two queries: positives 0.6 and 0.8; positives -0.4 and -0.2.
LOWEST, BEST = floats(0.6, -0.4), floats(0.8, -0.2)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("perc", 0.95, (0.57, -0.42)),  # 0.6 - 0.6 * 0.05; -0.4 - 0.4 * 0.05: below the positive, not above
        ("perc_max", 0.95, (0.76, -0.21)),
        ("margin", 0.05, (0.55, -0.45)),
        ("margin_max", 0.05, (0.75, -0.25)),
        ("infonce", 0.1, (0.7, -0.3)),
        ("abs", 0.7, (0.7, 0.7)),
    ],
)
def test_thresholds_by_hand(name, value, expected):
    assert compute_thresholds(name, value, LOWEST, BEST) == pytest.approx(expected)
    assert THRESHOLD_RULES[name].default_threshold == value


@pytest.mark.parametrize("name", ["window", "none"])
def test_rules_without_a_threshold(name):
    assert np.isnan(compute_thresholds(name, None, LOWEST, BEST)).all()
    assert THRESHOLD_RULES[name].default_threshold is None


def test_a_query_without_a_positive_has_no_threshold_except_for_abs():
    nothing = floats(np.nan)
    assert np.isnan(compute_thresholds("perc", 0.95, nothing, nothing)).all()
    assert compute_thresholds("abs", 0.7, nothing, nothing) == pytest.approx([0.7])


def test_a_score_at_the_threshold_passes_and_one_above_does_not():
    limit = floats(0.5, 0.5, 0.5)
    scores = np.array([0.5, np.nextafter(np.float32(0.5), np.float32(1)), 0.4], dtype=np.float32)
    assert passes_rule("perc", scores, np.array([1, 2, 3]), limit, (0, 1)).tolist() == [True, False, True]


def test_the_window_is_the_slice_that_flag_embedding_takes():
    ranks = np.arange(1, 8)
    passed = ranks[passes_rule("window", np.zeros(7, np.float32), ranks, floats(*[np.nan] * 7), (2, 5))]
    assert passed.tolist() == list(range(1, 8))[2:5] == [3, 4, 5]


def test_apply_rule_marks_the_candidates_that_the_rule_excludes():
    rows = pl.DataFrame(
        {
            "query_id": ["a", "a", "b"],
            "doc_id": ["x", "y", "x"],
            "rank": pl.Series([1, 2, 1], dtype=pl.Int32),
            "score": pl.Series([0.58, 0.56, 0.1], dtype=pl.Float32),
        }
    )
    qrels_scored = pl.DataFrame(
        {
            "query_id": ["a", "a", "a", "b"],
            "relevance": [2, 1, 0, 0],
            "score": pl.Series([0.8, 0.6, 0.1, 0.5], dtype=pl.Float32),
        }
    )
    found = apply_rule("perc", 0.95, (10, 210), rows, qrels_scored)
    assert found["threshold"].to_list() == [pytest.approx(0.57), pytest.approx(0.57), None]
    assert found["rule"].to_list() == [True, False, True]
    assert found["no_positive"].to_list() == [False, False, True]
    assert found.columns == ["query_id", "doc_id", "rank", "score", "threshold", "no_positive", "rule"]
    assert apply_rule("abs", 0.7, (10, 210), rows, qrels_scored)["no_positive"].to_list() == [False, False, False]


class Encoder:
    """The methods of a SentenceTransformer that `mine_hard_negatives` calls; its unit vectors have given angles."""

    def __init__(self, degrees: dict[str, float]):
        import torch

        self.degrees, self.device = degrees, torch.device("cpu")

    def encode_query(self, texts, **_):
        angles = np.deg2rad([self.degrees[text] for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    encode_document = encode_query

    def similarity(self, left, right):
        import torch

        return torch.as_tensor(left) @ torch.as_tensor(right).T

    def similarity_pairwise(self, left, right):
        import torch

        return (torch.as_tensor(left) * torch.as_tensor(right)).sum(dim=1)


# p and r are the positives of q, at cosines 0.94 and 0.77; v is the positive of w, at -0.17.
DEGREES = {"q": 0, "w": 90, "p": 20, "r": 40, "v": 190}
DEGREES |= {f"d{angle}": angle for angle in (2, 10, 25, 35, 39, 41, 43, 44, 46, 60, 75, 95, 130, 185, 195, 215, 300)}
POSITIVES = {"q": ["p", "r"], "w": ["v"]}
DOCUMENTS = [name for name in DEGREES if name not in POSITIVES]


def mine_with_sentence_transformers(**given) -> set[tuple[str, str]]:
    """The (query, negative) pairs that sentence-transformers mines from these documents."""
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    mined = mine_hard_negatives(
        Dataset.from_dict({"query": ["q", "q", "w"], "answer": ["p", "r", "v"]}),
        Encoder(DEGREES),
        corpus=DOCUMENTS,
        verbose=False,
        **{"num_negatives": len(DOCUMENTS), "range_max": len(DOCUMENTS)} | given,
    )
    found = {(row["query"], row["negative"]) for row in mined}
    assert found
    return found


def retrieve_all() -> tuple[pl.DataFrame, pl.DataFrame]:
    """All documents of each query by rank, and the pairs that are known positives."""
    encoder = Encoder(DEGREES)
    scores = encoder.similarity(encoder.encode_query(POSITIVES), encoder.encode_query(DOCUMENTS)).numpy()
    rows = pl.DataFrame(
        [
            (query, document, rank + 1, scores[i, j])
            for i, query in enumerate(POSITIVES)
            for rank, j in enumerate(np.argsort(-scores[i], kind="stable"))
            for document in [DOCUMENTS[j]]
        ],
        schema={"query_id": pl.String, "doc_id": pl.String, "rank": pl.Int32, "score": pl.Float32},
        orient="row",
    )
    known = pl.DataFrame(
        [(query, document) for query, own in POSITIVES.items() for document in own],
        schema=["query_id", "doc_id"],
        orient="row",
    )
    return rows, known


@pytest.mark.parametrize(
    ("name", "value", "given"),
    [
        ("perc", 0.95, {"relative_margin": 0.05}),
        ("perc", 0.7, {"relative_margin": 0.3}),
        ("margin", 0.05, {"absolute_margin": 0.05}),
        ("margin", 0.4, {"absolute_margin": 0.4}),
        ("abs", 0.7, {"max_score": 0.7}),
        ("none", None, {}),
    ],
)
def test_the_same_negatives_as_sentence_transformers(name, value, given):
    rows, known = retrieve_all()
    qrels_scored = known.join(rows, on=["query_id", "doc_id"]).with_columns(relevance=1)
    ours = (
        apply_rule(name, value, (0, 1), rows, qrels_scored)
        .filter(~pl.col("rule"))
        .join(known, on=["query_id", "doc_id"], how="anti")
    )
    assert set(ours.select("query_id", "doc_id").iter_rows()) == mine_with_sentence_transformers(**given)


@pytest.mark.parametrize(("skipped", "k"), [(0, 3), (2, 3), (3, 5), (10, 4)])
def test_the_same_negatives_as_sentence_transformers_with_range_min(skipped, k):
    rows, known = retrieve_all()
    rows = rows.join(known, on=["query_id", "doc_id"], how="anti", maintain_order="left")
    positives = known.with_columns(relevance=pl.lit(1), score=pl.lit(0.5, pl.Float32))
    matrix = build_candidate_matrix(rows, np.zeros(len(rows), np.float32), positives, k)
    chosen = select_by_preset(matrix, replace(RULE_PRESETS["range_min 10"], rank_window=(skipped, 10**6)))
    of_query = rows.partition_by("query_id", maintain_order=True)
    ours = {
        pair
        for part, taken in zip(of_query, chosen, strict=True)
        for pair in part.filter(pl.Series(taken[: len(part)])).select("query_id", "doc_id").iter_rows()
    }
    assert ours == mine_with_sentence_transformers(range_min=skipped, num_negatives=k, range_max=skipped + k)
    # FlagEmbedding counts positives among the skipped ranks: p has rank 3 for q
    counted = select_by_preset(matrix, RulePreset("window", rank_window=(skipped, 10**6)))
    assert (counted == chosen).all() == (skipped < 3)
