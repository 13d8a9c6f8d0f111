"""Training groups: what mined.jsonl holds, and each epoch's seeded choice of positives and negatives from it."""

import heapq
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from stages.core.errors import InputError
from stages.core.hashing import draw

_READ = ("query", "pos_ids", "neg_ids", "pos_weights", "neg_weights")


@dataclass(frozen=True)
class Mined:
    """One query with the ids of its positives and negatives, as mined.jsonl has them."""

    query_id: str
    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    weights: Mapping[str, float] = field(default_factory=dict)
    """How much a document counts; 1 where it is not named."""


@dataclass(frozen=True)
class Group:
    """One training example: a query and documents that the model learns to order."""

    query_id: str
    documents: tuple[str, ...]
    """A positive first, then negatives; with `labels`, any."""
    labels: tuple[float, ...] = ()
    """What to score each document like (`stages.training.distillation`); none where the positive is to be on top."""
    weights: tuple[float, ...] = ()
    """How much each document counts; none where all count 1."""

    @property
    def counts(self) -> tuple[float, ...]:
        """How much each document counts."""
        return self.weights or (1.0,) * len(self.documents)


def read_mined(path: Path, max_queries: int, seed: int) -> tuple[list[Mined], dict[str, str], int]:
    """The queries of mined.jsonl that can be trained on, the texts of their documents by id, and how many can't.

    Several lines of one query are taken together: its positives and negatives are those of all of them, each once.
    A query without a negative (or without a positive) teaches nothing about an order, so it is left out and counted.
    Of the rest, `max_queries` are kept (0: all): those of the smallest hash of (seed, query_id), so that a query's
    place in the sample does not hang on its position. Raises `InputError` where fewer than 2 are left.
    """
    lines: dict[str, list[dict[str, Any]]] = {}
    texts: dict[str, str] = {}
    # by "\n" alone: str.splitlines would also split at U+2028 within a text
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            row = json.loads(line)
            lines.setdefault(row["query_id"], [])
            if row["pos"] and row["neg"]:
                lines[row["query_id"]].append({name: row[name] for name in _READ if name in row})
                texts.update(zip(row["pos_ids"] + row["neg_ids"], row["pos"] + row["neg"], strict=True))
    found = [united(query_id, rows) for query_id, rows in lines.items() if rows]
    unusable = len(lines) - len(found)
    if len(found) < 2:
        raise InputError(
            f"there is too little to train on: {path.name} holds {len(found)} queries with a positive and a negative "
            f"({unusable} without), and at least 2 are needed. Give more questions, or a mask that leaves more."
        )
    if max_queries and len(found) > max_queries:
        found = some(found, max_queries, seed)
        wanted = {doc_id for query in found for doc_id in (*query.positives, *query.negatives)}
        texts = {doc_id: text for doc_id, text in texts.items() if doc_id in wanted}
    return sorted(found, key=lambda query: query.query_id), texts, unusable


def some(mined: Sequence[Mined], most: int, seed: int) -> list[Mined]:
    """At most `most` queries, those of the smallest hash of (seed, query_id); 0: all."""
    keys = {query.query_id: draw(seed, "sample", query.query_id) for query in mined}
    return heapq.nsmallest(most or len(mined), mined, key=lambda query: (keys[query.query_id], query.query_id))


def united(query_id: str, rows: Sequence[Mapping[str, Any]]) -> Mined:
    """One query from its lines."""
    positives, negatives = (
        tuple(dict.fromkeys(chain.from_iterable(row[side] for row in rows))) for side in ("pos_ids", "neg_ids")
    )
    weights = {
        doc_id: weight
        for row in rows
        for side in ("pos", "neg")
        for doc_id, weight in _weights(row, side)
        if weight != 1
    }
    return Mined(query_id, rows[0]["query"], positives, negatives, weights)


def _weights(row: Mapping[str, Any], side: str) -> Iterator[tuple[str, float]]:
    ids = row[f"{side}_ids"]
    return zip(ids, row.get(f"{side}_weights", [1.0] * len(ids)), strict=True)


def epoch_groups(mined: Sequence[Mined], epoch: int, positives: int, negatives: int, seed: int) -> list[Group]:
    """The groups of one epoch (from 0) in the order of training: a pure function of (seed, epoch) and each query.

    Each query gives `positives` groups, each with another of its positives (all where it has fewer) and with
    `negatives` of its negatives, none twice (all where it has fewer). Draws are by hash of (seed, epoch, query, ids),
    so a query's groups stay the same when other queries come or go.
    """
    groups: list[Group] = []
    for query in mined:
        for positive in sample(query.positives, positives, seed, f"{epoch}:positive:{query.query_id}"):
            chosen = sample(query.negatives, negatives, seed, f"{epoch}:negative:{query.query_id}:{positive}")
            documents = (positive, *chosen)
            weights = tuple(query.weights.get(doc_id, 1.0) for doc_id in documents) if query.weights else ()
            groups.append(Group(query.query_id, documents, weights=weights))
    return in_order(groups, epoch, seed)


def in_order(groups: Sequence[Group], epoch: int, seed: int) -> list[Group]:
    """The groups of one epoch in the order of training: by a hash of (seed, epoch) and the group's first document."""
    place = {group: draw(seed, f"{epoch}:order", f"{group.query_id}:{group.documents[0]}") for group in groups}
    return sorted(groups, key=lambda group: (place[group], group.query_id, group.documents))


def sample(ids: Sequence[str], size: int, seed: int, purpose: str) -> list[str]:
    """At most `size` of `ids`, none twice, by a hash of (seed, purpose, id)."""
    keys = {doc_id: draw(seed, purpose, doc_id) for doc_id in ids}
    return heapq.nsmallest(size, keys, key=lambda doc_id: (keys[doc_id], doc_id))
