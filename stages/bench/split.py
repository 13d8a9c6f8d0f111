"""A judged collection as a trial of negatives: questions to train on, with half hidden, and to test on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from stages.bench.collections import Collection, read_judgements
from stages.core.errors import InputError
from stages.core.hashing import draw
from stages.core.text import loose
from stages.mining.estimator.holdout import hide
from stages.pairs.split import Shares, Ties, assign

TEST = 0.4
"""Share of the split's units on the test side."""
MOST = 2_000
"""Train questions that are mined for, drawn by hash."""


@dataclass(frozen=True)
class Trial:
    """A judged collection as it is mined and tested on."""

    collection: Collection
    """Its questions are "train" (mined for), "test", or "dev" (neither); judgements are known of the train side only,
    with half of each question's hidden."""
    tests: pl.DataFrame
    """query_id, doc_id, relevance: every positive of the test side."""
    notes: list[str]


def read_trial(folder: Path, seed: int) -> Trial:
    """Read a folder as `read_judgements` does, split its questions and hide. Raises `InputError`."""
    found = read_judgements(folder)
    queries = found.queries.join(found.positives, on="query_id", how="semi").sort("query_id")
    side, notes = sides(queries, found.positives, seed)
    test = side.filter("test").select("query_id")
    if test.is_empty() or test.height == side.height:
        raise InputError(f"{folder}: its {side.height} questions with a positive can't be split into train and test")
    positives = found.positives.join(test, on="query_id", how="anti", maintain_order="left")
    positives = hide(positives, seed, "bench")
    asked = set(drawn_ids(positives["query_id"].unique().to_list(), MOST, seed))
    split = pl.when("test").then(pl.lit("test")).when(pl.col("query_id").is_in(asked)).then(pl.lit("train"))
    mined_for = pl.col("query_id").is_in(asked)
    collection = Collection(
        folder.name,
        found.digest,
        side.select("query_id", "query", split=split.otherwise(pl.lit("dev")), group="group"),
        found.corpus,
        positives.filter(~pl.col("hidden")).select("query_id", "doc_id", "relevance"),
        positives.filter(pl.col("hidden") & mined_for).select("query_id", "doc_id"),
        found.wrong.filter(mined_for),
    )
    return Trial(collection, found.positives.join(test, on="query_id", how="semi", maintain_order="left"), notes)


def sides(queries: pl.DataFrame, positives: pl.DataFrame, seed: int) -> tuple[pl.DataFrame, list[str]]:
    """`queries` (query_id, query) with `test` and `group`, its unit; and what the split has to say.

    Questions that share a positive or restate one another fall on the same side, as in `stages.pairs.split`.
    """
    ids, documents = queries["query_id"].to_list(), positives["doc_id"].unique().sort()
    tied = positives.join(queries.with_row_index("question"), on="query_id").join(
        documents.to_frame().with_row_index("document"), on="doc_id"
    )
    forms = pl.Series([loose(query) for query in queries["query"]])
    tie = (tied["question"].cast(pl.Int64).to_numpy(), tied["document"].cast(pl.Int64).to_numpy())
    ties = Ties(len(ids), forms.rank("dense").cast(pl.Int64).to_numpy(), tie, None)

    def name(kind: int, number: int) -> str:
        return str(ids[number] if kind == 2 else documents[number])

    found = assign(ties, None, Shares(dev=0.0, test=TEST, by="component", seed=seed), name)
    units = [
        f"{kind}:{name(kind, number)}" for kind, number in zip(found.kind.tolist(), found.number.tolist(), strict=True)
    ]
    return queries.with_columns(test=pl.Series(found.side == 2), group=pl.Series(units, dtype=pl.String)), found.notes


def drawn_ids(ids: Sequence[str], size: int, seed: int) -> list[str]:
    """`size` of the ids, drawn by hash."""
    return sorted(ids, key=lambda query: (draw(seed, "downstream", query), query))[:size]
