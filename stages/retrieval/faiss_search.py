"""Dense retrieval through a FAISS index, for corpora that are too large for exact search; its recall is measured."""

from typing import NamedTuple

import numpy as np
import polars as pl

from stages.core.arrays import Floats, Ints
from stages.core.context import Progress, Summary
from stages.core.errors import InputError
from stages.core.hashing import sample_by_hash
from stages.retrieval.dense import DenseRetriever
from stages.retrieval.faiss_index import MIN_POINTS_PER_LIST, FaissIndex
from stages.retrieval.results import SearchResults

EXACT_INDEX_NAMES = (None, "", "exact")
"""The names of the search without an index."""

_RECALL_SAMPLE_QUERIES = 200
"""Queries whose recall is measured. The standard deviation of a query's recall is 0.1 to 0.2, so the standard error of
the mean is about 0.01."""
_ADD_BATCH_DOCUMENTS = 32_768
"""Documents added at once. It is fixed because it changes the result: HNSW chooses the order within a batch."""

_MIN_PAIRS_FOR_INDEX = 2_000_000_000
"""Queries x documents below which exact search takes about the same time: at 8,000 x 200,000 x 384, in one thread,
IVF1024,Flat took 1.2 times as long and PQ192x4fs three quarters (tests.benchmarks.approximate_search)."""
_RECALL_HINT = (
    " To find more, take a bigger code (more PQ parts, or SQ8), refine (append ,RFlat, and k_factor_rf=4 to "
    "faiss_params), or give HNSW more links; or accept less with min_recall."
)


class IndexSpec(NamedTuple):
    """The settings of the index."""

    factory: str
    """A string of `faiss.index_factory`."""
    parameters: str
    """A string of `faiss.ParameterSpace`."""
    min_recall: float
    """An index with a lower recall is refused."""
    seed: int


class FaissSearch:
    """The `top_k` documents of every query of `dense` by an approximate index, which the constructor trains and fills.

    The index finds about 2 * `top_k` documents. They are scored again from the stored vectors and ordered as in an
    exact search (score, then position), so only the set of documents is approximate. A query for which the index finds
    fewer than `top_k` documents is searched exactly.

    The recall is the share of the exact `top_k` that the index finds, as the mean over a sample of queries; exact
    searches do not count. Raises `InputError` if it is below min_recall. If the parameters do not set nprobe or
    efSearch, the smallest power of two that reaches min_recall is used.
    """

    def __init__(self, dense: DenseRetriever, top_k: int, spec: IndexSpec, progress: Progress) -> None:
        self._dense, self._progress, self._n_searched_exactly = dense, progress, 0
        self._n_documents = len(dense.doc_ids)
        self._top_k = min(top_k, self._n_documents)
        # quantised scores change the order, so more than top_k documents are scored again
        self._search_depth = min(2 * top_k + 32, self._n_documents)
        self._index = FaissIndex(spec.factory, dense.vectors.dimension, self._n_documents, spec.parameters)
        if len(dense.query_ids) * self._n_documents < _MIN_PAIRS_FOR_INDEX:
            progress.log(
                f"{len(dense.query_ids):,} queries x {self._n_documents:,} documents: exact search takes about as "
                f"long as making {spec.factory} and searching it, and misses nothing: leave faiss_index unset"
            )
        self._build_index(spec.seed)
        sampled = _sample_positions_by_hash(dense.query_ids, _RECALL_SAMPLE_QUERIES, spec.seed, "recall sample")
        parameters, recall = self._tune_parameters(sampled, spec)
        progress.log(
            f"{spec.factory} ({parameters or 'no parameters'}): recall@{self._top_k} {recall:.3f} on {len(sampled):,} "
            "sampled queries"
        )
        self._index_summary: Summary = {
            "index": spec.factory,
            "parameters": parameters,
            "recall": round(recall, 4),
            "recall_at": self._top_k,
            "n_sampled_queries": len(sampled),
            "n_training_documents": self._index.n_training_points,
            "bytes": self._index.n_bytes,
        }

    @property
    def summary(self) -> Summary:
        """The index, its recall, and for how many queries it found too few documents so far."""
        return {**self._index_summary, "n_exactly_searched_queries": self._n_searched_exactly}

    def search(self, queries: Ints, top_k: int) -> SearchResults:
        """The first `top_k` ranks of each query; all documents if there are fewer."""
        k = min(top_k, self._top_k)
        positions, scores = self._dense.search_among(
            queries, self._index.search(self._dense.read_queries(queries), self._search_depth), k
        )
        incomplete = np.flatnonzero((positions < 0).any(axis=1))
        if len(incomplete):
            positions[incomplete], scores[incomplete] = next(self._dense.search_batches([queries[incomplete]], k))
            self._n_searched_exactly += len(incomplete)
        return SearchResults.from_rankings(np.full(len(queries), k), positions.ravel(), scores.ravel())

    def _build_index(self, seed: int) -> None:
        index, n_points = self._index, self._index.n_training_points
        if n_points:
            self._progress.log(
                f"{index.factory}: training on {n_points:,} of {self._n_documents:,} documents, by one thread"
            )
            if n_points < MIN_POINTS_PER_LIST * index.n_lists:
                self._progress.log(
                    f"{index.factory}: {n_points / index.n_lists:.1f} training documents per list, FAISS recommends "
                    f"{MIN_POINTS_PER_LIST}. Use at most {self._n_documents // MIN_POINTS_PER_LIST:,} lists"
                )
            sampled = _sample_positions_by_hash(self._dense.doc_ids, n_points, seed, "index training")
            index.train(self._read_documents(sampled))
        for start in range(0, self._n_documents, _ADD_BATCH_DOCUMENTS):
            positions = np.arange(start, min(start + _ADD_BATCH_DOCUMENTS, self._n_documents))
            index.add(self._read_documents(positions))
            self._progress.advance(int(positions[-1]) + 1, self._n_documents, "indexed")

    def _read_documents(self, documents: Ints) -> Floats:
        """The vectors of some documents, copied once: a training sample can take gigabytes."""
        out, start = np.empty((len(documents), self._dense.vectors.dimension), np.float32), 0
        for block in self._dense.read_document_blocks(documents):
            out[start : start + len(block)] = block
            start += len(block)
        return out

    def _tune_parameters(self, sampled: Ints, spec: IndexSpec) -> tuple[str, float]:
        """Set the search parameters; returns them and their recall on the sampled queries."""
        exact, _ = next(self._dense.search_batches([sampled], self._top_k))
        queries = self._dense.read_queries(sampled)
        tuning_options = self._index.list_tuning_options()
        tuned_names = {option.split("=")[0] for option in tuning_options}
        given_options = [option for option in spec.parameters.split(",") if option]
        other_options = [option for option in given_options if option.split("=")[0] not in tuned_names]
        is_fixed = not tuning_options or other_options != given_options
        trials = [spec.parameters] * is_fixed + [",".join([*other_options, option]) for option in tuning_options]
        recalls: list[float] = []
        for parameters in trials:
            self._index.set_parameters(parameters)
            recalls.append(_compute_recall(exact, self._index.search(queries, self._search_depth)))
            if recalls[-1] >= spec.min_recall:
                break
        is_reached = recalls[-1] >= spec.min_recall
        if is_reached and (len(recalls) == 1 or not is_fixed):
            return trials[len(recalls) - 1], recalls[-1]
        reported = 0 if is_fixed else -1
        best_trial = (
            f" With faiss_params = {trials[len(recalls) - 1]} it is {recalls[-1]:.3f}."
            if is_fixed and len(recalls) > 1
            else ""
        )
        raise InputError(
            f"[search] faiss_index = {spec.factory!r} ({trials[reported] or 'no parameters'}): recall@{self._top_k} is "
            f"{recalls[reported]:.3f} on {len(sampled):,} sampled queries, and min_recall is {spec.min_recall:g}."
            f"{best_trial}{'' if is_reached else _RECALL_HINT}"
        )


def _compute_recall(exact: Ints, found: Ints) -> float:
    """The share of the ids `exact` [q, k] that are in the same row of `found` [q, n]; 1 if there are none."""
    n_missed = sum(int((~np.isin(*rows)).sum()) for rows in zip(exact, found, strict=True))
    return 1 - n_missed / max(exact.size, 1)


def _sample_positions_by_hash(ids: pl.Series, n: int, seed: int, purpose: str) -> Ints:
    """The ascending positions of `n` ids (all if there are fewer), sampled by hash."""
    sampled_ids = pl.Series(sample_by_hash(ids, n, purpose, seed), dtype=pl.String)
    return np.flatnonzero(ids.is_in(sampled_ids.implode()).to_numpy())
