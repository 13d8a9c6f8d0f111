"""The first lesson of a new head: to score a query's candidates as the retriever does.

A head that knows nothing has to learn from the judgements what the retriever knew before, and a small table has too few
for that; but the retriever's own scores say a good deal about every candidate, and they are there. So a new head first
learns them (listwise distillation, as Reddi et al. 2021, RankDistil; the loss is `losses.distillation_loss`), then the
judgements.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import polars as pl

from stages.core.hashing import sample_by_hash
from stages.core.schemas import CANDIDATES, scan_table
from stages.training.examples import MinedQuery, TrainingGroup, shuffle_groups

N_TOP_CANDIDATES = 16
"""Half of a group's documents come from this many best candidates, where the order matters, half from the rest."""
LABEL_RANGE = 12.0
"""How far apart a query's best and last candidate are to be scored. The scale of the retriever's scores differs by
encoder, so they are stretched to this; a cosine of MiniLM is about as sharp then as at its temperature of 0.05."""
SCORE_TOLERANCE = 1e-5
"""Scores nearer to one another than this share of the greatest are alike."""


def build_distillation_groups(
    candidates_path: Path,
    mined_queries: Sequence[MinedQuery],
    n_epochs: int,
    n_positives: int,
    group_size: int,
    seed: int,
) -> list[list[TrainingGroup]]:
    """The groups of `n_epochs` epochs in the order of training, `group_size` documents each with the retriever's
    scores.

    As many groups an epoch as `epoch_groups` makes of the same queries and `n_positives`; groups of a query that
    has fewer dense candidates hold them all. Documents are drawn by a hash of (seed, query, rank), so they stay the
    same when other queries come or go. Labels: the scores, stretched so that the query's last candidate has 0 and its
    best one `LABEL_RANGE`; all 0 where scores differ by no more than rounding.
    """
    if not n_epochs:
        return []
    query_ids = pl.DataFrame({"query_id": [query.query_id for query in mined_queries]}).lazy()
    dense_candidates = (
        scan_table(candidates_path, CANDIDATES)
        .filter(pl.col("source") == "dense")
        .join(query_ids, on="query_id", how="semi")
        .sort("query_id", "rank")
        .group_by("query_id", maintain_order=True)
        .agg("doc_id", "score")
        .collect()
    )
    n_positives_by_query = {query.query_id: len(query.positives) for query in mined_queries}
    epoch_groups: list[list[TrainingGroup]] = [[] for _ in range(n_epochs)]
    for query_id, doc_ids, scores in dense_candidates.iter_rows():
        labels = scale_scores_to_labels(scores)
        for epoch, group in product(range(n_epochs), range(min(n_positives, n_positives_by_query[query_id]))):
            sampled_ranks = sample_ranks(len(doc_ids), group_size, seed, f"{epoch}:distill:{query_id}:{group}")
            epoch_groups[epoch].append(
                TrainingGroup(
                    query_id, tuple(doc_ids[i] for i in sampled_ranks), tuple(labels[i] for i in sampled_ranks)
                )
            )
    return [shuffle_groups(groups, epoch, seed) for epoch, groups in enumerate(epoch_groups)]


def scale_scores_to_labels(scores: Sequence[float]) -> list[float]:
    """A query's scores stretched to 0 ... `LABEL_RANGE`; all 0 where they differ by no more than rounding."""
    low, high = min(scores), max(scores)
    if high - low <= SCORE_TOLERANCE * max(abs(low), abs(high)):
        return [0.0] * len(scores)
    return [(score - low) / (high - low) * LABEL_RANGE for score in scores]


def sample_ranks(n_candidates: int, n_ranks: int, seed: int, purpose: str) -> list[int]:
    """At most `group_size` places below `n_candidates`, rising: half of them, or more where the rest is short, in the
    head."""
    all_ranks = [str(place) for place in range(n_candidates)]
    top_ranks, lower_ranks = all_ranks[:N_TOP_CANDIDATES], all_ranks[N_TOP_CANDIDATES:]
    sampled_lower_ranks = sample_by_hash(lower_ranks, max(n_ranks // 2, n_ranks - len(top_ranks)), purpose, seed)
    return sorted(
        int(place)
        for place in (
            *sample_by_hash(top_ranks, n_ranks - len(sampled_lower_ranks), purpose, seed),
            *sampled_lower_ranks,
        )
    )
