"""The first lesson of a new head: to score a query's candidates as the retriever does.

A head that knows nothing needs thousands of judged queries to get as far as the retriever was before; but the
retriever's own scores say a good deal about every candidate, and they are there. So a new head first learns them
(listwise distillation, as Reddi et al. 2021, RankDistil; the loss is `losses.distillation`), then the judgements.
"""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from stages.contracts import CANDIDATES, scan_table
from stages.training.groups import Group, Mined, in_order, sample

HEAD = 16
"""Half of a group's documents come from this many best candidates, where the order matters, half from the rest."""
RANGE = 12.0
"""How far apart a query's best and last candidate are to be scored. The scale of the retriever's scores differs by
encoder, so they are stretched to this; a cosine of MiniLM is about as sharp then as at its temperature of 0.05."""


def distill_epochs(
    candidates: Path, mined: Sequence[Mined], epochs: int, positives: int, size: int, seed: int
) -> list[list[Group]]:
    """The groups of `epochs` epochs in the order of training, `size` documents each with the retriever's scores.

    As many groups an epoch as `epoch_groups` makes of the same queries and `positives`. A query's documents are drawn
    by a hash of (seed, query, rank) from its dense candidates, so they stay the same when other queries come or go.
    Labels: the scores, stretched so that the query's last candidate has 0 and its best one `RANGE`.
    """
    if not epochs:
        return []
    wanted = pl.DataFrame({"query_id": [query.query_id for query in mined]}).lazy()
    scored = (
        scan_table(candidates, CANDIDATES)
        .filter(pl.col("source") == "dense")
        .join(wanted, on="query_id", how="semi")
        .select("query_id", "doc_id", "rank", pl.col("score").cast(pl.Float64))
    )
    # no sums here: their last bits hang on the order of the rows, and so would the model
    found = scored.group_by("query_id").agg(n=pl.len(), low=pl.col("score").min(), high=pl.col("score").max())
    spread = found.collect(engine="streaming")
    depths = dict(spread.select("query_id", "n").iter_rows())
    drawn = [
        (epoch, group, query.query_id, rank)
        for epoch in range(epochs)
        for query in mined
        for group in range(min(positives, len(query.positives)))
        for rank in _ranks(depths[query.query_id], size, seed, f"{epoch}:distill:{query.query_id}:{group}")
    ]
    places = pl.DataFrame(drawn, schema=["epoch", "group", "query_id", "rank"], orient="row")
    width = pl.col("high") - pl.col("low")
    label = pl.when(width > 0).then((pl.col("score") - pl.col("low")) / width * RANGE).otherwise(0.0)
    rows = (
        scored.join(places.lazy().with_columns(pl.col("rank").cast(pl.Int32)), on=["query_id", "rank"])
        .join(spread.lazy(), on="query_id")
        .with_columns(label=label)
        .sort("epoch", "query_id", "group", "rank")
        .group_by("epoch", "query_id", "group", maintain_order=True)
        .agg("doc_id", "label")
        .collect(engine="streaming")
    )
    groups: list[list[Group]] = [[] for _ in range(epochs)]
    for epoch, query_id, _, documents, labels in rows.iter_rows():
        groups[epoch].append(Group(query_id, tuple(documents), tuple(labels)))
    return [in_order(made, epoch, seed) for epoch, made in enumerate(groups)]


def _ranks(depth: int, size: int, seed: int, purpose: str) -> list[int]:
    head, rest = ([str(rank) for rank in ranks] for ranks in (range(1, depth + 1)[:HEAD], range(1, depth + 1)[HEAD:]))
    tail = sample(rest, size // 2, seed, purpose)
    return [int(rank) for rank in (*sample(head, size - len(tail), seed, purpose), *tail)]
