"""The first lesson of a new head: to score a query's candidates as the retriever does.

A head that knows nothing has to learn from the judgements what the retriever knew before, and a small table has too few
for that; but the retriever's own scores say a good deal about every candidate, and they are there. So a new head first
learns them (listwise distillation, as Reddi et al. 2021, RankDistil; the loss is `losses.distillation`), then the
judgements.
"""

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl

from stages.core.schemas import CANDIDATES, scan_table
from stages.training.examples import Group, Mined, in_order, sample

HEAD = 16
"""Half of a group's documents come from this many best candidates, where the order matters, half from the rest."""
RANGE = 12.0
"""How far apart a query's best and last candidate are to be scored. The scale of the retriever's scores differs by
encoder, so they are stretched to this; a cosine of MiniLM is about as sharp then as at its temperature of 0.05."""
ROUNDING = 1e-5
"""Scores nearer to one another than this share of the greatest are alike."""


def lessons(
    candidates: Path, mined: Sequence[Mined], epochs: int, positives: int, size: int, seed: int
) -> list[list[Group]]:
    """The groups of `epochs` epochs in the order of training, `size` documents each with the retriever's scores.

    As many groups an epoch as `epoch_groups` makes of the same queries and `positives`; groups of a query that has
    fewer dense candidates hold them all. Documents are drawn by a hash of (seed, query, rank), so they stay the same
    when other queries come or go. Labels: the scores, stretched so that the query's last candidate has 0 and its best
    one `RANGE`; all 0 where scores differ by no more than rounding.
    """
    if not epochs:
        return []
    wanted = pl.DataFrame({"query_id": [query.query_id for query in mined]}).lazy()
    dense = (
        scan_table(candidates, CANDIDATES)
        .filter(pl.col("source") == "dense")
        .join(wanted, on="query_id", how="semi")
        .sort("query_id", "rank")
        .group_by("query_id", maintain_order=True)
        .agg("doc_id", "score")
        .collect()
    )
    positives_of = {query.query_id: len(query.positives) for query in mined}
    made: list[list[Group]] = [[] for _ in range(epochs)]
    for query_id, doc_ids, scores in dense.iter_rows():
        labels = labels_of(scores)
        for epoch, group in product(range(epochs), range(min(positives, positives_of[query_id]))):
            drawn = ranks(len(doc_ids), size, seed, f"{epoch}:distill:{query_id}:{group}")
            made[epoch].append(Group(query_id, tuple(doc_ids[i] for i in drawn), tuple(labels[i] for i in drawn)))
    return [in_order(groups, epoch, seed) for epoch, groups in enumerate(made)]


def chance_of(groups: Sequence[Group]) -> float:
    """The mean of `losses.distillation` over `groups` of a model that scores all documents alike: ln G - entropy."""
    found = []
    for group in groups:
        weight = np.exp(np.array(group.labels) - max(group.labels))
        share = weight / weight.sum()
        found.append(math.log(len(share)) + float((share * np.log(share)).sum()))
    return math.fsum(found) / len(found)


def labels_of(scores: Sequence[float]) -> list[float]:
    """A query's scores stretched to 0 ... `RANGE`; all 0 where they differ by no more than rounding."""
    low, high = min(scores), max(scores)
    if high - low <= ROUNDING * max(abs(low), abs(high)):
        return [0.0] * len(scores)
    return [(score - low) / (high - low) * RANGE for score in scores]


def ranks(depth: int, size: int, seed: int, purpose: str) -> list[int]:
    """At most `size` places below `depth`, rising: half of them, or more where the rest is short, in the head."""
    places = [str(place) for place in range(depth)]
    head, rest = places[:HEAD], places[HEAD:]
    tail = sample(rest, max(size // 2, size - len(head)), seed, purpose)
    return sorted(int(place) for place in (*sample(head, size - len(tail), seed, purpose), *tail))
