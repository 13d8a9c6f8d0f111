"""Features that distinguish a false negative from a hard negative: a row of numbers for each candidate.

No feature depends on the scale of the retriever's scores: scores are measured in standard deviations of the query's own
candidates, cosines in standard deviations of random pairs. A candidate is compared with the known positives of its
query (one is left out while it is held out), and only with candidates that the first encoder ranked.

| feature | meaning for a candidate |
|---|---|
| score_z | its score, in standard deviations from the mean of the query's candidates |
| score_gap_max, score_gap_min | its score minus that of the best and of the lowest positive, in the same unit |
| log_rank | log of its rank among the candidates |
| pos_sim_max, pos_sim_mean | its highest and its mean cosine with the positives: the strongest features |
| topk_sim_mean | its mean cosine with the query's ten best candidates |
| bm25 | its BM25 score, divided by the highest one among the candidates and positives |
| bm25_gap | its BM25 score minus that of the best positive, in the same unit |
| hubness | its score, in standard deviations from the mean of its scores for random queries |
| hubness_gap | its hubness minus that of the best positive |
| positive_z | the best positive's score, in standard deviations from the mean of the query's candidates |
| log_n_positives | log of the number of positives |
| nearest_query_similarity | the highest cosine with another query that the document is a positive of |
"""

from typing import NamedTuple

import numpy as np
import polars as pl

from stages.core.arrays import Bools, Floats, Ints, Segments, l2_normalise
from stages.core.schemas import FEATURES
from stages.mining.candidates.documents import DocumentVectors, find_id_rows
from stages.mining.candidates.feature_context import FeatureContext, ZScaler
from stages.retrieval.exact.scoring import max_pair_scores, vector_norms

TRANSFERABLE_FEATURES = FEATURES[:-1]
"""The features with the same meaning on any data set. `nearest_query_similarity` depends on how a table was made."""

FEATURE_DESCRIPTIONS = {
    "score_z": "how far a candidate's score lies from the mean of its query",
    "score_gap_max": "how far candidates score below the best positive",
    "score_gap_min": "how far candidates score below the lowest positive",
    "log_rank": "how many candidates a query has",
    "pos_sim_max": "how similar candidates and the nearest positive are",
    "pos_sim_mean": "how similar candidates and positives are",
    "topk_sim_mean": "how similar the candidates of a query are",
    "bm25": "how many words candidates share with the query",
    "bm25_gap": "how many fewer words than the positive candidates share with the query",
    "hubness": "how high candidates score for any query",
    "hubness_gap": "how much higher than the positive candidates score for any query",
    "positive_z": "how far the best positive scores above the candidates",
    "log_n_positives": "how many positives a query has",
}
"""The meaning of each of TRANSFERABLE_FEATURES for a person, to complete "this table is unusual in ..."."""

SIMILARITY_TOP_K = 10
FEATURE_CLIP = 30.0
"""The largest absolute value of a feature: if all candidates of a query score the same, distances have no limit."""
_FEATURE_EPSILON = 1e-6
_QUERY_PAIRS_PER_BATCH = 32_768
"""Pairs of queries that are compared at once; if all queries are distinct, twice as many vectors are in memory."""
_MAX_QUERY_PAIRS_PER_BATCH = 32 * _QUERY_PAIRS_PER_BATCH
"""The same if so few queries are distinct that no more vectors are in memory."""


class ScoredRows(NamedTuple):
    """The candidates or the positives of some queries: n rows sorted by query, in the same order of queries."""

    segments: Segments
    vector_row: Ints
    """[n], as all other arrays: the row of each document among the vectors."""
    score: Floats
    bm25: Floats
    hubness: Floats


class Similarities(NamedTuple):
    """Similarities of candidates [n], as z-scores of cosines."""

    pos_sim_max: Floats
    """With the nearest positive."""
    pos_sim_mean: Floats
    """With the positives, on average."""
    topk_sim_mean: Floats
    """With the best SIMILARITY_TOP_K reference candidates except itself, on average; 0 if there is no other."""


def compute_features(
    rows: pl.DataFrame, positives: pl.DataFrame, documents: DocumentVectors, context: FeatureContext
) -> Floats:
    """The features [len(rows), len(FEATURES)] of some queries' candidates.

    `rows` (query_id, doc_id, score, listed) are sorted by query and falling score, and hold no positive. `listed` marks
    the candidates that the first encoder ranked: only these are reference candidates. `positives` (query_id, doc_id,
    score) hold at least one for each of these queries. `documents` contains the documents of both.
    """
    if rows.is_empty():
        return np.zeros((0, len(FEATURES)), np.float32)
    positives = positives.join(rows.select("query_id").unique(), on="query_id", how="semi").sort("query_id", "doc_id")
    document_numbers = find_id_rows(documents.doc_ids, context.doc_ids)
    mean, std = context.document_score_stats(document_numbers, documents.vectors)
    rows, positives = (_add_numbers(frame, documents, document_numbers, context) for frame in (rows, positives))
    candidate, positive = (_score_rows(frame, mean, std, context) for frame in (rows, positives))
    candidate_queries, positive_queries = (
        frame["query_number"].to_numpy()[scored.segments.starts]
        for frame, scored in ((rows, candidate), (positives, positive))
    )
    if not np.array_equal(candidate_queries, positive_queries):
        raise ValueError("rows are not sorted by query_id, or a query has no positive")
    is_reference = reference_mask(rows["listed"].to_numpy(), candidate.segments)
    similarities = compute_similarities(
        l2_normalise(documents.vectors), candidate, positive, is_reference, context.document_scaler
    )
    query_similarity = compute_nearest_query_similarity(
        rows["query_number"].to_numpy(), rows["document_number"].to_numpy(), context
    )
    return np.concatenate(
        [compute_list_features(candidate, positive, similarities, is_reference), query_similarity[:, None]], axis=1
    )


def _add_numbers(
    rows: pl.DataFrame, documents: DocumentVectors, document_numbers: Ints, context: FeatureContext
) -> pl.DataFrame:
    """`rows` with query_number, vector_row and document_number."""
    vector_row = documents.find_rows(rows["doc_id"])
    numbered = rows.join(context.query_numbers, on="query_id", how="left", maintain_order="left")
    return numbered.with_columns(vector_row=vector_row, document_number=document_numbers[vector_row])


def _score_rows(rows: pl.DataFrame, mean: Floats, std: Floats, context: FeatureContext) -> ScoredRows:
    """`rows` of `_add_numbers` as arrays; `mean` and `std` [n_vectors] are the documents' score statistics."""
    names = ("query_number", "document_number", "vector_row")
    query, document, vector_row = (rows[name].cast(pl.Int64).to_numpy() for name in names)
    score = rows["score"].cast(pl.Float32).to_numpy()
    bm25 = context.bm25.score_pairs(query, document)
    hubness = (score - mean[vector_row]) / std[vector_row]
    return ScoredRows(Segments.from_sorted(query), vector_row, score, bm25, hubness)


def compute_similarities(
    unit: Floats, candidate: ScoredRows, positive: ScoredRows, is_reference: Bools, scaler: ZScaler
) -> Similarities:
    """The similarities of `candidate` rows; `unit` [n_documents, d] are vectors of length 1.

    A mean of cosines is a cosine with the mean vector. So each candidate needs a product with each positive and one
    with the sum of the best candidates.
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
    """TRANSFERABLE_FEATURES [n, 13] of candidates that are sorted by falling score in each query.

    `is_reference` [n] is the result of `reference_mask`.
    """
    segments, query, score = candidate.segments, candidate.segments.segment_ids, candidate.score.astype(np.float64)
    count = segments.sum(is_reference)
    mean = segments.sum(np.where(is_reference, score, 0)) / count
    std = np.sqrt(segments.sum(np.where(is_reference, np.square(score - mean[query]), 0)) / count)
    std = np.maximum(std, _FEATURE_EPSILON * np.maximum(segments.max(np.abs(candidate.score)), 1.0))
    best, worst = positive.segments.max(positive.score), -positive.segments.max(-positive.score)
    positive_bm25, positive_hubness = positive.segments.max(positive.bm25), positive.segments.max(positive.hubness)
    max_bm25 = np.maximum(
        np.maximum(segments.max(np.where(is_reference, candidate.bm25, 0)), positive_bm25), _FEATURE_EPSILON
    )
    columns = (
        (score - mean[query]) / std[query],
        (score - best[query]) / std[query],
        (score - worst[query]) / std[query],
        np.log(np.arange(1, len(query) + 1) - segments.starts[query]),
        similarities.pos_sim_max,
        similarities.pos_sim_mean,
        similarities.topk_sim_mean,
        candidate.bm25 / max_bm25[query],
        (candidate.bm25 - positive_bm25[query]) / max_bm25[query],
        candidate.hubness,
        candidate.hubness - positive_hubness[query],
        ((best - mean) / std)[query],
        np.log(positive.segments.sizes)[query],
    )
    out = np.empty((len(query), len(columns)), np.float32)
    for i, column in enumerate(columns):
        out[:, i] = np.clip(column, -FEATURE_CLIP, FEATURE_CLIP)
    return out


def reference_mask(listed: Bools, segments: Segments) -> Bools:
    """The candidates [n] that mean and standard deviation are taken of: the `listed` ones, or all if none is listed."""
    is_reference: Bools = listed | (segments.sum(listed) == 0)[segments.segment_ids]
    return is_reference


def compute_nearest_query_similarity(query: Ints, document: Ints, context: FeatureContext) -> Floats:
    """nearest_query_similarity [n] of rows with these query and document numbers [n].

    It is 0 if the document is no positive of another query, and at least 0 otherwise.
    """
    offsets, queries = context.positive_queries
    n_positive_queries = offsets[document + 1] - offsets[document]
    row = np.repeat(np.arange(len(query)), n_positive_queries)
    first_of_row = np.repeat(offsets[document + 1] - np.cumsum(n_positive_queries), n_positive_queries)
    other_query = queries[np.arange(len(row)) + first_of_row]
    is_other = other_query != query[row]
    row, other_query = row[is_other], other_query[is_other]
    out = np.zeros(len(query), np.float32)
    n_distinct = len(np.unique(query[row])) + len(np.unique(other_query))
    size = _QUERY_PAIRS_PER_BATCH if n_distinct > 2 * _QUERY_PAIRS_PER_BATCH else _MAX_QUERY_PAIRS_PER_BATCH
    for start in range(0, len(row), size):
        part = slice(start, start + size)
        left_queries, left = np.unique(query[row[part]], return_inverse=True)
        right_queries, right = np.unique(other_query[part], return_inverse=True)
        left_vectors, right_vectors = (
            l2_normalise(context.read_query_vectors(numbers)) for numbers in (left_queries, right_queries)
        )
        cosines = max_pair_scores(left_vectors, right_vectors, left, right, row[part])
        rows = row[part][Segments.from_sorted(row[part]).starts]
        out[rows] = np.maximum(out[rows], context.query_scaler(cosines))
    return out
