"""The features and their context, by hand."""

from dataclasses import replace
from threading import Thread

import numpy as np
import polars as pl
import pytest

from stages.core.arrays import Segments, l2_normalise
from stages.core.schemas import FEATURES
from stages.mining.candidates.document_score_stats import DocumentScoreStats, compute_score_stats
from stages.mining.candidates.documents import DocumentVectors
from stages.mining.candidates.feature_context import FeatureContext, PositiveQueries, ZScaler
from stages.mining.candidates.features import (
    FEATURE_CLIP,
    FEATURE_DESCRIPTIONS,
    SIMILARITY_TOP_K,
    TRANSFERABLE_FEATURES,
    ScoredRows,
    Similarities,
    compute_features,
    compute_list_features,
    compute_nearest_query_similarity,
    compute_similarities,
    reference_mask,
)
from stages.retrieval.bm25 import Bm25


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def make_segments(*sizes: int) -> Segments:
    return Segments.from_sorted(np.repeat(np.arange(len(sizes)), sizes))


def make_rows(
    *sizes: int, score: np.ndarray, bm25: np.ndarray | None = None, hubness: np.ndarray | None = None
) -> ScoredRows:
    zeros = np.zeros(len(score), np.float32)
    bm25, hubness = (zeros if values is None else values for values in (bm25, hubness))
    return ScoredRows(make_segments(*sizes), zeros.astype(np.int64), score, bm25, hubness)


def no_similarities(n: int) -> Similarities:
    return Similarities(*np.zeros((3, n), np.float32))


def by_name(found: np.ndarray) -> dict[str, list[float]]:
    return dict(zip(TRANSFERABLE_FEATURES, found.T.tolist(), strict=True))


def test_two_queries_by_hand() -> None:
    # the scores 0.8 and 0.4 have the mean 0.6 and the standard deviation 0.2
    found = compute_list_features(
        make_rows(2, 1, score=f32(0.8, 0.4, 0.3), bm25=f32(4.0, 1.0, 1.0), hubness=f32(1.0, 2.0, 0.5)),
        make_rows(2, 1, score=f32(0.9, 0.5, 0.3), bm25=f32(8.0, 2.0, 0.5), hubness=f32(3.0, 2.5, 0.5)),
        Similarities(f32(3, 0, 7), f32(2, -0.5, 7), f32(2, 2, 7)),
        np.array([True, True, True]),
    )
    assert {name: pytest.approx(values[:2], abs=1e-5) for name, values in by_name(found).items()} == {
        "score_z": [1, -1],
        "score_gap_max": [-0.5, -2.5],
        "score_gap_min": [1.5, -0.5],
        "log_rank": [0, np.log(2)],
        "pos_sim_max": [3, 0],
        "pos_sim_mean": [2, -0.5],
        "topk_sim_mean": [2, 2],
        "bm25": [0.5, 0.125],
        "bm25_gap": [-0.5, -0.875],
        "hubness": [1, 2],
        "hubness_gap": [-2, -1],
        "positive_z": [1.5, 1.5],
        "log_n_positives": [np.log(2), np.log(2)],
    }
    assert found[2].tolist() == pytest.approx([0, 0, 0, 0, 7, 7, 7, 1, 0.5, 0.5, 0, 0, 0])


def test_similarities_by_hand() -> None:
    unit = np.array([[1, 0], [0.6, 0.8], [0, 1], [-1, 0]], np.float32)
    candidate = ScoredRows(make_segments(3, 1), np.array([0, 1, 3, 2]), *np.zeros((3, 4), np.float32))
    positive = ScoredRows(make_segments(2, 1), np.array([2, 0, 2]), *np.zeros((3, 3), np.float32))
    is_reference = np.array([True, True, False, True])
    found = compute_similarities(unit, candidate, positive, is_reference, ZScaler(0.1, 0.5))
    # cosines with the positives (0, 1) and (1, 0): 0 and 1, 0.8 and 0.6, 0 and -1; in the other query: 1
    assert found.pos_sim_max.tolist() == pytest.approx([1.8, 1.4, -0.2, 1.8])
    assert found.pos_sim_mean.tolist() == pytest.approx([0.8, 1.2, -1.2, 1.8])
    # the two reference candidates with one another: 0.6; the third with both: -1 and -0.6; the last has no other
    assert found.topk_sim_mean.tolist() == pytest.approx([1, 1, -1.8, 0])


def test_topk_sim_mean_is_the_mean_of_the_cosines_with_the_best_others() -> None:
    rng = np.random.default_rng(0)
    unit = l2_normalise(rng.normal(size=(40, 8)).astype(np.float32))
    sizes, vector_rows = (25, 5, 10), np.arange(40)
    candidate = ScoredRows(make_segments(*sizes), vector_rows, *np.zeros((3, 40), np.float32))
    positive = ScoredRows(make_segments(1, 1, 1), np.array([0, 1, 2]), *np.zeros((3, 3), np.float32))
    is_reference = rng.random(40) < 0.7
    found = compute_similarities(unit, candidate, positive, is_reference, ZScaler(0.0, 1.0)).topk_sim_mean
    for start, size in zip((0, 25, 30), sizes, strict=True):
        rows = range(start, start + size)
        top = [row for row in rows if is_reference[row]][:SIMILARITY_TOP_K]
        for row in rows:
            cosines = [float(unit[row] @ unit[other]) for other in top if other != row]
            assert found[row] == pytest.approx(np.mean(cosines) if cosines else 0, abs=1e-5)


def test_features_are_bounded_for_a_single_candidate_and_for_equal_scores() -> None:
    for n in (1, 3):
        equal = make_rows(n, score=np.full(n, 0.5, np.float32))
        found = compute_list_features(equal, make_rows(1, score=f32(0.6)), no_similarities(n), np.ones(n, np.bool_))
        assert (np.abs(found) <= FEATURE_CLIP).all()


def test_only_candidates_that_the_first_encoder_ranked_give_mean_and_standard_deviation() -> None:
    listed = np.array([True, True, False, False])
    is_reference = reference_mask(listed, make_segments(3, 1))
    assert is_reference.tolist() == [True, True, False, True]  # in a query where none is listed, all are
    found = compute_list_features(
        make_rows(3, 1, score=f32(0.8, 0.4, -5.0, 0.2), bm25=f32(4.0, 1.0, 80.0, 0.0)),
        make_rows(1, 1, score=f32(0.9, 0.9), bm25=f32(8.0, 1.0)),
        no_similarities(4),
        is_reference,
    )
    assert by_name(found)["score_z"] == pytest.approx([1, -1, -28, 0], abs=1e-4)  # mean 0.6, std 0.2, without the third
    assert by_name(found)["bm25"] == pytest.approx([0.5, 0.125, 10, 0])


def test_the_score_stats_of_a_document_do_not_depend_on_the_others() -> None:
    rng = np.random.default_rng(0)
    vectors, probes = (rng.normal(size=(n, 384)).astype(np.float32) for n in (2500, 256))
    together = compute_score_stats(vectors, probes)
    alone = [compute_score_stats(vectors[part], probes) for part in (slice(0, 7), slice(7, 1100), slice(1100, 2500))]
    for i in (0, 1):
        np.testing.assert_array_equal(together[i], np.concatenate([part[i] for part in alone]))
    np.testing.assert_allclose(together[0][:3], (vectors[:3] @ probes.T).mean(axis=1), rtol=1e-4, atol=1e-4)


def test_score_stats_are_computed_once_for_each_document() -> None:
    vectors, probes = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32), np.array([[1, 0], [0, 1]], np.float32)
    stats = DocumentScoreStats(3, probes)
    stats(np.array([2, 0]), vectors[[2, 0]])
    mean, std = stats(np.array([0, 1, 2]), vectors * f32(0, 1, 0)[:, None])  # only the vector of 1 is used
    assert mean.tolist() == pytest.approx([0.5, 0.5, 0.7], abs=1e-5)
    assert std.tolist() == pytest.approx([0.5, 0.5, 0.1], abs=1e-5)


def test_no_thread_reads_a_mean_without_its_standard_deviation() -> None:
    stats, vectors, seen = DocumentScoreStats(2, np.eye(2, dtype=np.float32)), np.eye(2, dtype=np.float32), []
    reader = Thread(target=lambda: seen.append(stats(np.arange(2), vectors)))

    class SlowArray:
        """Standard deviations; while they are written, another thread reads."""

        def __init__(self, values: np.ndarray) -> None:
            self.values = values

        def __getitem__(self, rows: np.ndarray) -> np.ndarray:
            return self.values[rows]

        def __setitem__(self, rows: np.ndarray, values: np.ndarray) -> None:
            if len(values):
                reader.start()
                reader.join(0.2)
            self.values[rows] = values

    stats._std = SlowArray(stats._std)  # type: ignore[assignment]
    stats(np.arange(2), vectors)
    reader.join()
    np.testing.assert_array_equal(seen[0], np.full((2, 2), 0.5, np.float32))


def test_a_scaler_is_fitted_on_all_pairs() -> None:
    # cosines of (1, 0), (0, 1), (1, 1): 0, and twice 0.7071
    scaler = ZScaler.fit(np.array([[2, 0], [0, 1], [1, 1]], np.float32))
    assert scaler.mean == pytest.approx(np.sqrt(2) / 3)
    assert scaler(f32(scaler.mean)).tolist() == pytest.approx([0], abs=1e-6)
    assert ZScaler.fit(np.ones((2, 3), np.float32)) == ZScaler(0.0, 1.0)


DOCUMENTS = DocumentVectors(pl.Series("doc_id", ["d", "e", "p"]), np.array([[0.8, 0.6], [0, 1], [1, 0]], np.float32))


def make_context() -> FeatureContext:
    queries = np.array([[1, 0], [0.6, 0.8]], np.float32)
    return FeatureContext(
        pl.DataFrame({"query_id": ["a", "b"], "query_number": [0, 1]}),
        pl.Series("doc_id", ["d", "e", "p"]),
        lambda rows: queries[rows],
        Bm25(["red", "blue"], ["red green", "green", "red"]),
        PositiveQueries.from_pairs(np.array([1, 2]), np.array([1, 0]), 3),
        DocumentScoreStats(3, queries),
        ZScaler(0.0, 0.5),
        ZScaler(0.2, 0.1),
    )


def test_features_of_two_candidates_by_hand() -> None:
    rows = pl.DataFrame({"query_id": ["a", "a"], "doc_id": ["d", "e"], "score": f32(0.8, 0.0), "listed": True})
    positives = pl.DataFrame({"query_id": ["a", "b"], "doc_id": ["p", "e"], "score": f32(1.0, 0.8)})
    found = pl.DataFrame(
        compute_features(rows, positives, DOCUMENTS, make_context()), schema=list(FEATURES), orient="row"
    )
    assert found["pos_sim_max"].to_list() == pytest.approx([1.6, 0])  # cosines with p: 0.8 and 0, in units of 0.5
    assert found["topk_sim_mean"].to_list() == pytest.approx([1.2, 1.2])  # with one another: 0.6
    # d is no query's positive, e is a positive of b: the cosine of the queries is 0.6
    assert found["nearest_query_similarity"].to_list() == pytest.approx([0, 4])
    # d scores 0.8 and 0.96 for the two probes: mean 0.88, std 0.08
    assert found["hubness"][0] == pytest.approx(-1, rel=1e-4)
    assert found["bm25"][0] > 0
    assert found["bm25"][1] == 0


def test_many_positive_queries_are_compared_in_bounded_memory() -> None:
    n, batch_sizes = 70_000, []

    def read_query_vectors(numbers: np.ndarray) -> np.ndarray:
        batch_sizes.append(len(numbers))
        return np.stack([np.cos(numbers), np.sin(numbers)], axis=1).astype(np.float32)

    positive_queries = PositiveQueries.from_pairs(np.arange(n), np.arange(n), n)
    context = replace(
        make_context(),
        read_query_vectors=read_query_vectors,
        positive_queries=positive_queries,
        query_scaler=ZScaler(0.0, 1.0),
    )
    found = compute_nearest_query_similarity(np.full(n, n), np.arange(n), context)
    np.testing.assert_allclose(found, np.maximum(np.cos(np.arange(n) - n), 0), atol=1e-5)
    assert max(batch_sizes) <= 1 << 16  # 100 MB at 384 dimensions


def test_the_features_of_a_query_do_not_depend_on_other_queries() -> None:
    both = pl.DataFrame(
        {"query_id": ["a", "a", "b"], "doc_id": ["d", "e", "p"], "score": f32(0.8, 0.0, 0.6), "listed": True}
    )
    positives = pl.DataFrame({"query_id": ["a", "b"], "doc_id": ["p", "e"], "score": f32(1.0, 0.8)})
    together = compute_features(both, positives, DOCUMENTS, make_context())
    alone = compute_features(both.head(2), positives, DOCUMENTS, make_context())
    np.testing.assert_array_equal(together[:2], alone)
    assert compute_features(both.clear(), positives, DOCUMENTS, make_context()).shape == (0, len(FEATURES))


def test_rows_must_be_sorted_by_query_and_have_a_positive() -> None:
    rows = pl.DataFrame({"query_id": ["b", "a"], "doc_id": ["d", "e"], "score": f32(0.8, 0.0), "listed": True})
    positives = pl.DataFrame({"query_id": ["a", "b"], "doc_id": ["p", "e"], "score": f32(1.0, 0.8)})
    for some in (positives, positives.head(1)):
        with pytest.raises(ValueError, match="not sorted by query_id, or a query has no positive"):
            compute_features(rows, some, DOCUMENTS, make_context())


def test_each_transferable_feature_has_a_description_in_plain_words() -> None:
    assert tuple(FEATURE_DESCRIPTIONS) == TRANSFERABLE_FEATURES
    for words in FEATURE_DESCRIPTIONS.values():
        assert words.startswith("how ")
        assert words.replace(" ", "").replace("'", "").isalpha()
    assert len(set(FEATURE_DESCRIPTIONS.values())) == len(TRANSFERABLE_FEATURES)
