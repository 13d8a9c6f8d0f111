"""Training groups: the queries of mined.jsonl, and the positives and negatives that each epoch samples from them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from stages.core.errors import InputError
from stages.core.hashing import sample_by_hash, stable_hash

_MINED_FIELDS = ("query", "pos_ids", "neg_ids", "pos_weights", "neg_weights")


@dataclass(frozen=True)
class MinedQuery:
    """One query of mined.jsonl, with the ids of its positives and negatives."""

    query_id: str
    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    weights: Mapping[str, float] = field(default_factory=dict)
    """doc_id -> weight in the loss; 1 for documents that are not in it."""


@dataclass(frozen=True)
class TrainingGroup:
    """One training example: a query and documents that the model learns to rank."""

    query_id: str
    documents: tuple[str, ...]
    """A positive first, then negatives; with `labels`, any documents."""
    labels: tuple[float, ...] = ()
    """The score to learn for each document (see `distillation`); empty if the positive should rank first."""
    weights: tuple[float, ...] = ()
    """Each document's weight in the loss; empty if all are 1."""

    @property
    def effective_weights(self) -> tuple[float, ...]:
        """Each document's weight in the loss."""
        return self.weights or (1.0,) * len(self.documents)


def read_mined_queries(path: Path, max_queries: int, seed: int) -> tuple[list[MinedQuery], dict[str, str], int]:
    """The queries of mined.jsonl to train on, the texts of their documents by id, and how many queries were skipped.

    The lines of one query are merged. A query without a negative or without a positive has no order to learn: it is
    skipped. Of the others, `subsample_queries` keeps `max_queries`. Raises `InputError` if fewer than 2 are left.
    """
    rows_by_query: dict[str, list[dict[str, Any]]] = {}
    texts: dict[str, str] = {}
    # by "\n" alone: str.splitlines would also split at U+2028 within a text
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            row = json.loads(line)
            rows_by_query.setdefault(row["query_id"], [])
            if row["pos"] and row["neg"]:
                rows_by_query[row["query_id"]].append({name: row[name] for name in _MINED_FIELDS if name in row})
                texts.update(zip(row["pos_ids"] + row["neg_ids"], row["pos"] + row["neg"], strict=True))
    mined_queries = [merge_mined_rows(query_id, rows) for query_id, rows in rows_by_query.items() if rows]
    n_skipped = len(rows_by_query) - len(mined_queries)
    if len(mined_queries) < 2:
        raise InputError(
            f"there is too little to train on: {path.name} holds {len(mined_queries)} queries with a positive and a "
            f"negative ({n_skipped} without), and at least 2 are needed. Add questions, or use a mask that leaves more "
            "negatives."
        )
    if max_queries and len(mined_queries) > max_queries:
        mined_queries = subsample_queries(mined_queries, max_queries, seed)
        kept_doc_ids = {doc_id for query in mined_queries for doc_id in (*query.positives, *query.negatives)}
        texts = {doc_id: text for doc_id, text in texts.items() if doc_id in kept_doc_ids}
    return sorted(mined_queries, key=lambda query: query.query_id), texts, n_skipped


def subsample_queries(mined_queries: Sequence[MinedQuery], max_queries: int, seed: int) -> list[MinedQuery]:
    """At most `max_queries` queries (0: all), those with the smallest hash of (seed, query_id)."""
    queries_by_id = {query.query_id: query for query in mined_queries}
    sampled_ids = sample_by_hash(queries_by_id, max_queries or len(queries_by_id), "sample", seed)
    return [queries_by_id[query_id] for query_id in sampled_ids]


def merge_mined_rows(query_id: str, rows: Sequence[Mapping[str, Any]]) -> MinedQuery:
    """One query from its lines: their positives and negatives, each once."""
    positives, negatives = (
        tuple(dict.fromkeys(chain.from_iterable(row[side] for row in rows))) for side in ("pos_ids", "neg_ids")
    )
    weights = {
        doc_id: weight
        for row in rows
        for side in ("pos", "neg")
        for doc_id, weight in _iter_weights(row, side)
        if weight != 1
    }
    return MinedQuery(query_id, rows[0]["query"], positives, negatives, weights)


def _iter_weights(row: Mapping[str, Any], side: str) -> Iterator[tuple[str, float]]:
    ids = row[f"{side}_ids"]
    return zip(ids, row.get(f"{side}_weights", [1.0] * len(ids)), strict=True)


def build_epoch_groups(
    mined_queries: Sequence[MinedQuery], epoch: int, n_positives: int, n_negatives: int, seed: int
) -> list[TrainingGroup]:
    """The groups of one epoch (from 0) in the order of training.

    Each query gives `n_positives` groups, each with another of its positives and with `n_negatives` of its negatives; a
    query that has fewer gives all. They are sampled by a hash of (seed, epoch, query, ids), so a query's groups do not
    depend on the other queries.
    """
    groups: list[TrainingGroup] = []
    for query in mined_queries:
        for positive in sample_by_hash(query.positives, n_positives, f"{epoch}:positive:{query.query_id}", seed):
            sampled_negatives = sample_by_hash(
                query.negatives, n_negatives, f"{epoch}:negative:{query.query_id}:{positive}", seed
            )
            documents = (positive, *sampled_negatives)
            weights = tuple(query.weights.get(doc_id, 1.0) for doc_id in documents) if query.weights else ()
            groups.append(TrainingGroup(query.query_id, documents, weights=weights))
    return shuffle_groups(groups, epoch, seed)


def shuffle_groups(groups: Sequence[TrainingGroup], epoch: int, seed: int) -> list[TrainingGroup]:
    """The groups of one epoch in the order of training: by a hash of (seed, epoch) and the group's first document."""
    sort_keys = {
        group: stable_hash(seed, f"{epoch}:order", f"{group.query_id}:{group.documents[0]}") for group in groups
    }
    return sorted(groups, key=lambda group: (sort_keys[group], group.query_id, group.documents))


def count_pairs(epoch_groups: Sequence[Sequence[TrainingGroup]]) -> int:
    """(query, document) pairs that are trained on, over all epochs."""
    return sum(len(group.documents) for groups in epoch_groups for group in groups)
