"""Features: what tells a false negative from a hard negative, beyond its score. One row of figures a candidate.

All are free of the retriever's scale: scores are measured in the spread of the query's own candidates, similarities of
documents in the spread over random pairs. A candidate is compared with the query's anchors, which are those of its
positives that are taken as known.

| feature | what it says of a candidate |
|---|---|
| score_z | its score, in standard deviations from the mean of the query's candidates |
| score_gap_max, score_gap_min | its score minus the best and the worst anchor's, in the same unit |
| log_rank | log of its place among the candidates |
| pos_sim_max, pos_sim_mean | its highest and mean cosine with the anchors: the strongest sign of all |
| topk_sim_mean | its mean cosine with the query's ten best candidates |
| bm25 | its BM25 score, as a share of the highest in the list |
| bm25_gap | its BM25 score minus the best anchor's, in the same unit |
| hubness, hubness_gap | its score in the spread of its scores for random queries; that minus the best anchor's |
| positive_z | how far the best anchor stands above the candidates: a query that the retriever understands |
| log_n_positives | log of the number of anchors |
| nearest_query_similarity | cosine with the nearest other question whose positive it is, in the same unit |
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import polars as pl

from stages.core.arrays import Bools, Floats, Ints, Segments, l2_normalise
from stages.core.schemas import FEATURES
from stages.mining.candidates.document_score_stats import DocumentScoreStats
from stages.mining.candidates.documents import DocumentVectors, find_id_rows
from stages.retrieval.bm25 import Bm25
from stages.retrieval.exact.scoring import max_pair_scores, vector_norms

TRANSFERABLE_FEATURES = FEATURES[:-1]
"""Those that mean the same on any data set. `nearest_query_similarity` depends on how a table was made."""

FEATURE_DESCRIPTIONS = {
    "score_z": "how far a candidate's score lies from the usual one of its question",
    "score_gap_max": "how far candidates score below the best positive",
    "score_gap_min": "how far candidates score below the lowest positive",
    "log_rank": "how many candidates a question has",
    "pos_sim_max": "how alike candidates and the nearest positive are",
    "pos_sim_mean": "how alike candidates and positives are",
    "topk_sim_mean": "how alike the candidates of a question are",
    "bm25": "how many words candidates share with the question",
    "bm25_gap": "how many fewer words than the positive candidates share with the question",
    "hubness": "how high candidates score for any question",
    "hubness_gap": "how much higher than the positive candidates score for any question",
    "positive_z": "how far the best positive scores above the candidates",
    "log_n_positives": "how many positives a question has",
}
"""What the features GENERAL say, for a person: "this table is unusual in ..."."""

SIMILARITY_TOP_K = 10
N_PROBE_QUERIES = 256
"""Queries, drawn by hash, that tell how high any query scores a document."""
MAX_POSITIVE_QUERIES = 32
"""Questions looked at of those that a candidate is a positive of."""
FEATURE_CLIP = 30.0
"""No feature goes farther: where a query's candidates all score the same, any distance is endless in their unit."""
_FEATURE_EPSILON = 1e-6
_QUERY_PAIRS_PER_BATCH = 32_768
"""Pairs of questions compared at once; twice so many vectors are held where all are distinct."""
_MAX_QUERY_PAIRS_PER_BATCH = 32 * _QUERY_PAIRS_PER_BATCH
"""Pairs compared at once where so few questions are distinct that no more vectors are held."""


@dataclass(frozen=True)
class ZScaler:
    """Mean and standard deviation of cosines over random pairs."""

    mean: float
    std: float

    @classmethod
    def fit(cls, vectors: Floats) -> "ZScaler":
        """Over all pairs of some random vectors [n, d]; 0 and 1 where there are fewer than three."""
        if len(vectors) < 3:
            return cls(0.0, 1.0)
        unit = l2_normalise(vectors).astype(np.float64)
        cosines = (unit @ unit.T)[np.triu_indices(len(unit), 1)]
        return cls(float(cosines.mean()), max(float(cosines.std()), _FEATURE_EPSILON))

    def __call__(self, cosines: Floats) -> Floats:
        """Cosines in this unit."""
        return ((cosines - self.mean) / self.std).astype(np.float32)


@dataclass(frozen=True)
class FeatureContext:
    """What the features need of the whole collection."""

    query_numbers: pl.DataFrame
    """query_id and query (its place in what `read_query_vectors` and `bm25` take)."""
    doc_ids: pl.Series
    """The ids of all documents, sorted; where one stands is its place in `bm25`."""
    read_query_vectors: Callable[[Ints], Floats]
    """Query vectors [n, d] by place."""
    bm25: Bm25
    positive_queries: "PositiveQueries"
    document_score_stats: DocumentScoreStats
    """Of PROBES queries."""
    document_scaler: ZScaler
    query_scaler: ZScaler


def compute_features(
    rows: pl.DataFrame, positives: pl.DataFrame, documents: DocumentVectors, context: FeatureContext
) -> Floats:
    """Features [len(rows), len(FEATURES)] of some queries' candidates.

    `rows` (query_id, doc_id, score, listed) are sorted by query, best score first, without the anchors;
    `listed` marks those that the first encoder ranked, which alone tell what is usual; `positives`
    (query_id, doc_id, score) hold at least one for each of these queries, and `n_documents` at least their documents.
    """
    if rows.is_empty():
        return np.zeros((0, len(FEATURES)), np.float32)
    positives = positives.join(rows.select("query_id").unique(), on="query_id", how="semi").sort("query_id", "doc_id")
    corpus_row = find_id_rows(documents.doc_ids, context.doc_ids)
    mean, std = context.document_score_stats(corpus_row, documents.vectors)
    rows, positives = (
        side.join(context.query_numbers, on="query_id", how="left", maintain_order="left").with_columns(
            place=(place := documents.find_rows(side["doc_id"])), document=corpus_row[place]
        )
        for side in (rows, positives)
    )
    candidate, positive = (_score_rows(side, mean, std, context) for side in (rows, positives))
    first, of = (
        side["query"].to_numpy()[one.segments.starts] for side, one in ((rows, candidate), (positives, positive))
    )
    if first.tolist() != of.tolist():
        raise ValueError("rows do not come by query_id, or a query has no anchor")
    is_reference = reference_mask(rows["listed"].to_numpy(), candidate.segments)
    similarities = compute_similarities(
        l2_normalise(documents.vectors), candidate, positive, is_reference, context.document_scaler
    )
    query_similarity = compute_nearest_query_similarity(rows["query"].to_numpy(), rows["document"].to_numpy(), context)
    return np.concatenate(
        [compute_list_features(candidate, positive, similarities, is_reference), query_similarity[:, None]], axis=1
    )


class PositiveQueries(NamedTuple):
    """Of every document the questions that it is a positive of, one document's after another's."""

    offsets: Ints
    """[documents + 1]: where each document's begin; where all end."""
    queries: Ints
    """Places of questions."""

    @classmethod
    def from_pairs(cls, document: Ints, query: Ints, n_documents: int) -> Self:
        """From pairs [n] that come by document, of so many documents."""
        return cls(np.searchsorted(document, np.arange(n_documents + 1)), query)


class ScoredRows(NamedTuple):
    """The candidates or the anchors of some queries, n rows that come by query; the others of a query in like order."""

    segments: Segments
    vector_row: Ints
    """Where a row's document stands among the vectors at hand: [n], as all others."""
    score: Floats
    bm25: Floats
    hubness: Floats


class Similarities(NamedTuple):
    """How alike candidates and others are, [n] each, in the spread over random pairs."""

    pos_sim_max: Floats
    """To the nearest anchor."""
    pos_sim_mean: Floats
    """To the anchors in the mean."""
    topk_sim_mean: Floats
    """To the TOP best of `reference_mask` in the mean, without the candidate itself; 0 where there is no other."""


def _score_rows(rows: pl.DataFrame, mean: Floats, std: Floats, context: FeatureContext) -> ScoredRows:
    """Of rows (query, document, place, score); `mean` and `std` [documents] are of `DocumentScoreStats`."""
    query, document, place = (rows[name].cast(pl.Int64).to_numpy() for name in ("query", "document", "place"))
    score = rows["score"].cast(pl.Float32).to_numpy()
    bm25 = context.bm25.score_pairs(query, document)
    return ScoredRows(Segments.from_sorted(query), place, score, bm25, (score - mean[place]) / std[place])


def compute_similarities(
    unit: Floats, candidate: ScoredRows, positive: ScoredRows, is_reference: Bools, scaler: ZScaler
) -> Similarities:
    """From `unit` [documents, d], vectors of length 1; both sides have the same queries, in the same order.

    A mean of cosines is the cosine with a mean: for each candidate there is one product for each anchor and one more.
    """
    segments = candidate.segments
    rank = np.cumsum(is_reference)
    in_top_k = is_reference & (rank - (rank - is_reference)[segments.starts][segments.segment_ids] <= SIMILARITY_TOP_K)
    n_others = segments.sum(in_top_k)[segments.segment_ids] - in_top_k
    best, mean, summed = (np.empty(len(is_reference), np.float32) for _ in Similarities._fields)
    ends = zip(
        segments.starts,
        [*segments.starts[1:], len(is_reference)],
        positive.segments.starts,
        [*positive.segments.starts[1:], None],
        strict=True,
    )
    buffer = np.empty((int(segments.sizes.max()), unit.shape[1]), np.float32)
    for start, end, first, last in ends:
        here = np.take(unit, candidate.vector_row[start:end], axis=0, out=buffer[: end - start], mode="clip")
        topk_sum = here[np.flatnonzero(in_top_k[start:end])].sum(axis=0, keepdims=True)
        cosines = here @ np.concatenate([unit[positive.vector_row[first:last]], topk_sum]).T
        best[start:end], mean[start:end] = cosines[:, :-1].max(axis=1), cosines[:, :-1].mean(axis=1)
        summed[start:end] = cosines[:, -1]
    self_similarity = np.square(vector_norms(unit)).astype(np.float32)[candidate.vector_row]
    topk_mean = ((summed - in_top_k * self_similarity) / np.maximum(n_others, 1)).astype(np.float32)
    return Similarities(scaler(best), scaler(mean), np.where(n_others > 0, scaler(topk_mean), np.float32(0)))


def compute_list_features(
    candidate: ScoredRows, positive: ScoredRows, similarities: Similarities, is_reference: Bools
) -> Floats:
    """The features GENERAL [n, 13] of some queries' candidates, best score first.

    Both sides have the same queries, in the same order; `is_reference` [n] is of `reference_mask`.
    """
    segments, of, score = candidate.segments, candidate.segments.segment_ids, candidate.score.astype(np.float64)
    count = segments.sum(is_reference)
    mean = segments.sum(np.where(is_reference, score, 0)) / count
    std = np.sqrt(segments.sum(np.where(is_reference, np.square(score - mean[of]), 0)) / count)
    std = np.maximum(std, _FEATURE_EPSILON * np.maximum(segments.max(np.abs(candidate.score)), 1.0))
    best, worst = positive.segments.max(positive.score), -positive.segments.max(-positive.score)
    positive_bm25, positive_hubness = positive.segments.max(positive.bm25), positive.segments.max(positive.hubness)
    max_bm25 = np.maximum(
        np.maximum(segments.max(np.where(is_reference, candidate.bm25, 0)), positive_bm25), _FEATURE_EPSILON
    )
    columns = (
        (score - mean[of]) / std[of],
        (score - best[of]) / std[of],
        (score - worst[of]) / std[of],
        np.log(np.arange(1, len(of) + 1) - segments.starts[of]),
        similarities.pos_sim_max,
        similarities.pos_sim_mean,
        similarities.topk_sim_mean,
        candidate.bm25 / max_bm25[of],
        (candidate.bm25 - positive_bm25[of]) / max_bm25[of],
        candidate.hubness,
        candidate.hubness - positive_hubness[of],
        ((best - mean) / std)[of],
        np.log(positive.segments.sizes)[of],
    )
    out = np.empty((len(of), len(columns)), np.float32)
    for place, column in enumerate(columns):
        out[:, place] = np.clip(column, -FEATURE_CLIP, FEATURE_CLIP)
    return out


def reference_mask(listed: Bools, segments: Segments) -> Bools:
    """Which candidates [n] tell what is usual for their query: the listed ones; all where none is."""
    is_reference: Bools = listed | (segments.sum(listed) == 0)[segments.segment_ids]
    return is_reference


def compute_nearest_query_similarity(query: Ints, document: Ints, context: FeatureContext) -> Floats:
    """nearest_query_similarity [n] of rows with these queries and documents [n], by their places: 0 where no other
    question owns the document, or one from far away."""
    n_positive_queries = context.positive_queries.offsets[document + 1] - context.positive_queries.offsets[document]
    row = np.repeat(np.arange(len(query)), n_positive_queries)
    other_query = context.positive_queries.queries[
        np.arange(len(row))
        + np.repeat(context.positive_queries.offsets[document + 1] - np.cumsum(n_positive_queries), n_positive_queries)
    ]
    others = other_query != query[row]
    row, other_query = row[others], other_query[others]
    out = np.zeros(len(query), np.float32)
    many = len(np.unique(query[row])) + len(np.unique(other_query)) > 2 * _QUERY_PAIRS_PER_BATCH
    size = _QUERY_PAIRS_PER_BATCH if many else _MAX_QUERY_PAIRS_PER_BATCH
    for start in range(0, len(row), size):
        part = slice(start, start + size)
        asked, left = np.unique(query[row[part]], return_inverse=True)
        owners, right = np.unique(other_query[part], return_inverse=True)
        vectors = l2_normalise(context.read_query_vectors(asked)), l2_normalise(context.read_query_vectors(owners))
        cosines = max_pair_scores(*vectors, left, right, row[part])
        rows = row[part][Segments.from_sorted(row[part]).starts]
        out[rows] = np.maximum(out[rows], context.query_scaler(cosines))
    return out
