"""Distillation: a model with a new head first learns to score a query's candidates as the retriever does.

A small table has too few judgements to train a new head, but the retriever has scored every candidate. So a new head
learns the retriever's scores first (listwise distillation, as in Reddi et al. 2021, RankDistil; the loss is
`losses.distillation_loss`), and then the judgements.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import polars as pl

from stages.core.hashing import sample_by_hash
from stages.core.schemas import CANDIDATES, scan_table
from stages.training.examples import MinedQuery, TrainingGroup, shuffle_groups

N_TOP_CANDIDATES = 16
"""Half of a group's documents are sampled from so many best candidates, half from the rest: the best matter most."""
LABEL_RANGE = 12.0
"""The difference of the labels of a query's best and last candidate. Scores are scaled to it, because the range of the
retriever's scores differs by encoder. MiniLM's cosines are then about as sharp as at its training temperature, 0.05."""
SCORE_TOLERANCE = 1e-5
"""Scores that differ by less than this share of the largest one count as equal."""


def build_distillation_groups(
    candidates_path: Path,
    mined_queries: Sequence[MinedQuery],
    n_epochs: int,
    n_positives: int,
    group_size: int,
    seed: int,
) -> list[list[TrainingGroup]]:
    """The groups of `n_epochs` epochs in the order of training, each with `group_size` documents and their labels.

    There are as many groups an epoch as `examples.build_epoch_groups` makes of the same queries and `n_positives`. A
    query with fewer dense candidates gives all of them. Documents are sampled by a hash of (seed, query, rank), so they
    do not depend on the other queries. Labels: `scale_scores_to_labels` of the retriever's scores.
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
    """A query's scores scaled to 0 ... `LABEL_RANGE`; all 0 if they differ by rounding alone."""
    low, high = min(scores), max(scores)
    if high - low <= SCORE_TOLERANCE * max(abs(low), abs(high)):
        return [0.0] * len(scores)
    return [(score - low) / (high - low) * LABEL_RANGE for score in scores]


def sample_ranks(n_candidates: int, n_ranks: int, seed: int, purpose: str) -> list[int]:
    """At most `n_ranks` of the ranks 0 ... `n_candidates` - 1, sorted.

    Half of them are below `N_TOP_CANDIDATES`, more if there are too few other candidates.
    """
    ranks = [str(rank) for rank in range(n_candidates)]
    top_ranks, lower_ranks = ranks[:N_TOP_CANDIDATES], ranks[N_TOP_CANDIDATES:]
    sampled_lower = sample_by_hash(lower_ranks, max(n_ranks // 2, n_ranks - len(top_ranks)), purpose, seed)
    sampled_top = sample_by_hash(top_ranks, n_ranks - len(sampled_lower), purpose, seed)
    return sorted(int(rank) for rank in (*sampled_top, *sampled_lower))
