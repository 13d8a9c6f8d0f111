"""The features by hand."""

from dataclasses import replace
from threading import Thread

import numpy as np
import polars as pl
import pytest

from stages.core.arrays import Segments, l2_normalise
from stages.core.schemas import FEATURES
from stages.mining.candidates.document_score_stats import DocumentScoreStats, compute_score_stats
from stages.mining.candidates.documents import DocumentVectors
from stages.mining.candidates.features import (
    FEATURE_CLIP,
    FEATURE_DESCRIPTIONS,
    SIMILARITY_TOP_K,
    TRANSFERABLE_FEATURES,
    FeatureContext,
    PositiveQueries,
    ScoredRows,
    Similarities,
    ZScaler,
    compute_features,
    compute_list_features,
    compute_nearest_query_similarity,
    compute_similarities,
    reference_mask,
)
from stages.retrieval.bm25 import Bm25


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def runs(*sizes: int) -> Segments:
    return Segments.from_sorted(np.repeat(np.arange(len(sizes)), sizes))


def side(
    *sizes: int, score: np.ndarray, lexical: np.ndarray | None = None, hub: np.ndarray | None = None
) -> ScoredRows:
    zeros = np.zeros(len(score), np.float32)
    return ScoredRows(
        runs(*sizes), zeros.astype(np.int64), score, *(zeros if one is None else one for one in (lexical, hub))
    )


def like(n: int) -> Similarities:
    return Similarities(*np.zeros((3, n), np.float32))


def named(found: np.ndarray) -> dict[str, list[float]]:
    return dict(zip(TRANSFERABLE_FEATURES, found.T.tolist(), strict=True))


def test_two_queries_by_hand() -> None:
    found = compute_list_features(
        side(2, 1, score=f32(0.8, 0.4, 0.3), lexical=f32(4.0, 1.0, 1.0), hub=f32(1.0, 2.0, 0.5)),  # mean 0.6, width 0.2
        side(2, 1, score=f32(0.9, 0.5, 0.3), lexical=f32(8.0, 2.0, 0.5), hub=f32(3.0, 2.5, 0.5)),
        Similarities(f32(3, 0, 7), f32(2, -0.5, 7), f32(2, 2, 7)),
        np.array([True, True, True]),
    )
    assert {name: pytest.approx(values[:2], abs=1e-5) for name, values in named(found).items()} == {
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


def test_likenesses_by_hand() -> None:
    unit = np.array([[1, 0], [0.6, 0.8], [0, 1], [-1, 0]], np.float32)
    candidate = ScoredRows(runs(3, 1), np.array([0, 1, 3, 2]), *np.zeros((3, 4), np.float32))
    anchor = ScoredRows(runs(2, 1), np.array([2, 0, 2]), *np.zeros((3, 3), np.float32))
    usual = np.array([True, True, False, True])
    found = compute_similarities(unit, candidate, anchor, usual, ZScaler(0.1, 0.5))
    # cosines with the anchors (0, 1) and (1, 0): 0 and 1, 0.8 and 0.6, 0 and -1; the other query's with its own: 1
    assert found.pos_sim_max.tolist() == pytest.approx([1.8, 1.4, -0.2, 1.8])
    assert found.pos_sim_mean.tolist() == pytest.approx([0.8, 1.2, -1.2, 1.8])
    # the two usual ones with one another: 0.6; the third with both: -1 and -0.6; the last is alone
    assert found.topk_sim_mean.tolist() == pytest.approx([1, 1, -1.8, 0])


def test_likeness_to_the_best_of_many_is_the_mean_of_cosines() -> None:
    rng = np.random.default_rng(0)
    unit = l2_normalise(rng.normal(size=(40, 8)).astype(np.float32))
    sizes, places = (25, 5, 10), np.arange(40)
    candidate = ScoredRows(runs(*sizes), places, *np.zeros((3, 40), np.float32))
    anchor = ScoredRows(runs(1, 1, 1), np.array([0, 1, 2]), *np.zeros((3, 3), np.float32))
    usual = rng.random(40) < 0.7
    found = compute_similarities(unit, candidate, anchor, usual, ZScaler(0.0, 1.0)).topk_sim_mean
    for start, size in zip((0, 25, 30), sizes, strict=True):
        here = range(start, start + size)
        top = [place for place in here if usual[place]][:SIMILARITY_TOP_K]
        for place in here:
            cosines = [float(unit[place] @ unit[other]) for other in top if other != place]
            assert found[place] == pytest.approx(np.mean(cosines) if cosines else 0, abs=1e-5)


def test_a_single_candidate_and_equal_scores_give_bounded_figures() -> None:
    for n in (1, 3):
        equal = side(n, score=np.full(n, 0.5, np.float32))
        found = compute_list_features(equal, side(1, score=f32(0.6)), like(n), np.ones(n, np.bool_))
        assert (np.abs(found) <= FEATURE_CLIP).all()


def test_what_the_first_encoder_did_not_rank_tells_nothing_of_what_is_usual() -> None:
    listed = np.array([True, True, False, False])
    usual = reference_mask(listed, runs(3, 1))
    assert usual.tolist() == [True, True, False, True]  # of a query that has none listed, all are
    found = compute_list_features(
        side(3, 1, score=f32(0.8, 0.4, -5.0, 0.2), lexical=f32(4.0, 1.0, 80.0, 0.0)),
        side(1, 1, score=f32(0.9, 0.9), lexical=f32(8.0, 1.0)),
        like(4),
        usual,
    )
    assert named(found)["score_z"] == pytest.approx([1, -1, -28, 0], abs=1e-4)  # mean 0.6, width 0.2, without the third
    assert named(found)["bm25"] == pytest.approx([0.5, 0.125, 10, 0])


def test_a_document_s_usual_scores_do_not_hang_on_the_others() -> None:
    rng = np.random.default_rng(0)
    vectors, probes = (rng.normal(size=(n, 384)).astype(np.float32) for n in (2500, 256))
    together = compute_score_stats(vectors, probes)
    alone = [compute_score_stats(vectors[part], probes) for part in (slice(0, 7), slice(7, 1100), slice(1100, 2500))]
    for side in (0, 1):
        np.testing.assert_array_equal(together[side], np.concatenate([one[side] for one in alone]))
    np.testing.assert_allclose(together[0][:3], (vectors[:3] @ probes.T).mean(axis=1), rtol=1e-4, atol=1e-4)


def test_usual_scores_are_computed_once_a_document() -> None:
    vectors, probes = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32), np.array([[1, 0], [0, 1]], np.float32)
    usual = DocumentScoreStats(3, probes)
    usual(np.array([2, 0]), vectors[[2, 0]])
    level, width = usual(np.array([0, 1, 2]), vectors * f32(0, 1, 0)[:, None])  # only those of 1 are looked at
    assert level.tolist() == pytest.approx([0.5, 0.5, 0.7], abs=1e-5)
    assert width.tolist() == pytest.approx([0.5, 0.5, 0.1], abs=1e-5)


def test_no_thread_sees_half_of_a_document_s_usual_scores() -> None:
    usual, vectors, seen = DocumentScoreStats(2, np.eye(2, dtype=np.float32)), np.eye(2, dtype=np.float32), []
    other = Thread(target=lambda: seen.append(usual(np.arange(2), vectors)))

    class Late:
        """Widths that are written while another thread asks for them."""

        def __init__(self, held: np.ndarray) -> None:
            self.held = held

        def __getitem__(self, at: np.ndarray) -> np.ndarray:
            return self.held[at]

        def __setitem__(self, at: np.ndarray, value: np.ndarray) -> None:
            if len(value):
                other.start()
                other.join(0.2)
            self.held[at] = value

    usual._std = Late(usual._std)  # type: ignore[assignment]
    usual(np.arange(2), vectors)
    other.join()
    np.testing.assert_array_equal(seen[0], np.full((2, 2), 0.5, np.float32))


def test_the_spread_of_all_pairs() -> None:
    # cosines of (1, 0), (0, 1), (1, 1): 0, and twice 0.7071
    spread = ZScaler.fit(np.array([[2, 0], [0, 1], [1, 1]], np.float32))
    assert spread.mean == pytest.approx(np.sqrt(2) / 3)
    assert spread(f32(spread.mean)).tolist() == pytest.approx([0], abs=1e-6)
    assert ZScaler.fit(np.ones((2, 3), np.float32)) == ZScaler(0.0, 1.0)


DOCUMENTS = DocumentVectors(pl.Series("doc_id", ["d", "e", "p"]), np.array([[0.8, 0.6], [0, 1], [1, 0]], np.float32))


def scene() -> FeatureContext:
    queries = np.array([[1, 0], [0.6, 0.8]], np.float32)
    return FeatureContext(
        pl.DataFrame({"query_id": ["a", "b"], "query": [0, 1]}),
        pl.Series("doc_id", ["d", "e", "p"]),
        lambda rows: queries[rows],
        Bm25(["red", "blue"], ["red green", "green", "red"]),
        PositiveQueries.from_pairs(np.array([1, 2]), np.array([1, 0]), 3),
        DocumentScoreStats(3, queries),
        ZScaler(0.0, 0.5),
        ZScaler(0.2, 0.1),
    )


def test_rows_find_their_vectors_words_and_owners() -> None:
    rows = pl.DataFrame({"query_id": ["a", "a"], "doc_id": ["d", "e"], "score": f32(0.8, 0.0), "listed": True})
    anchors = pl.DataFrame({"query_id": ["a", "b"], "doc_id": ["p", "e"], "score": f32(1.0, 0.8)})
    found = pl.DataFrame(compute_features(rows, anchors, DOCUMENTS, scene()), schema=list(FEATURES), orient="row")
    assert found["pos_sim_max"].to_list() == pytest.approx([1.6, 0])  # cosines with p: 0.8 and 0, in units of 0.5
    assert found["topk_sim_mean"].to_list() == pytest.approx([1.2, 1.2])  # with one another: 0.6
    # d belongs to nobody, e to b: the cosine of the questions is 0.6
    assert found["nearest_query_similarity"].to_list() == pytest.approx([0, 4])
    # d scores 0.8 and 0.96 for the two probes: mean 0.88, deviation 0.08
    assert found["hubness"][0] == pytest.approx(-1, rel=1e-4)
    assert found["bm25"][0] > 0
    assert found["bm25"][1] == 0


def test_as_many_owners_as_there_may_be_are_compared_in_bounded_memory() -> None:
    n, asked = 70_000, []

    def queries(places: np.ndarray) -> np.ndarray:
        asked.append(len(places))
        return np.stack([np.cos(places), np.sin(places)], axis=1).astype(np.float32)

    owners = PositiveQueries.from_pairs(np.arange(n), np.arange(n), n)
    changed = replace(scene(), read_query_vectors=queries, positive_queries=owners, query_scaler=ZScaler(0.0, 1.0))
    found = compute_nearest_query_similarity(np.full(n, n), np.arange(n), changed)
    np.testing.assert_allclose(found, np.maximum(np.cos(np.arange(n) - n), 0), atol=1e-5)
    assert max(asked) <= 1 << 16  # 100 MB at 384 dimensions


def test_a_query_s_features_do_not_hang_on_other_queries() -> None:
    both = pl.DataFrame(
        {"query_id": ["a", "a", "b"], "doc_id": ["d", "e", "p"], "score": f32(0.8, 0.0, 0.6), "listed": True}
    )
    anchors = pl.DataFrame({"query_id": ["a", "b"], "doc_id": ["p", "e"], "score": f32(1.0, 0.8)})
    together = compute_features(both, anchors, DOCUMENTS, scene())
    alone = compute_features(both.head(2), anchors, DOCUMENTS, scene())
    np.testing.assert_array_equal(together[:2], alone)
    assert compute_features(both.clear(), anchors, DOCUMENTS, scene()).shape == (0, len(FEATURES))


def test_rows_whose_queries_have_no_order_or_no_anchor_are_refused() -> None:
    rows = pl.DataFrame({"query_id": ["b", "a"], "doc_id": ["d", "e"], "score": f32(0.8, 0.0), "listed": True})
    anchors = pl.DataFrame({"query_id": ["a", "b"], "doc_id": ["p", "e"], "score": f32(1.0, 0.8)})
    for some in (anchors, anchors.head(1)):
        with pytest.raises(ValueError, match="do not come by query_id, or a query has no anchor"):
            compute_features(rows, some, DOCUMENTS, scene())


def test_what_each_feature_says_has_words_that_need_no_code() -> None:
    assert tuple(FEATURE_DESCRIPTIONS) == TRANSFERABLE_FEATURES
    for words in FEATURE_DESCRIPTIONS.values():
        assert words.startswith("how ")
        assert words.replace(" ", "").replace("'", "").isalpha()
    assert len(set(FEATURE_DESCRIPTIONS.values())) == len(TRANSFERABLE_FEATURES)
