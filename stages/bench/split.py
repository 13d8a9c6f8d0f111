"""The train and test split of a judged collection: half of the train queries' positives are held out."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from stages.bench.collections import HoldoutCollection, read_judged_collection
from stages.core.errors import InputError
from stages.core.hashing import sample_by_hash
from stages.core.text import match_key
from stages.mining.estimator.holdout import hold_out_positives
from stages.pairs.split import SplitConstraints, SplitRatios, assign_splits

TEST_RATIO = 0.4
"""Share of the components that go to test."""
MAX_MINED_QUERIES = 2_000
"""Train queries that negatives are mined for, sampled by hash."""


@dataclass(frozen=True)
class BenchmarkSplit:
    """A judged collection, split for mining and testing."""

    collection: HoldoutCollection
    """Queries are "train" (mined for), "test" or "dev" (neither). Only train queries have qrels, and half of each
    query's positives are held out."""
    test_qrels: pl.DataFrame
    """query_id, doc_id, relevance: every positive of the test queries."""
    notes: list[str]


def read_benchmark_split(folder: Path, seed: int) -> BenchmarkSplit:
    """Read a judged collection, split its queries, and hold out positives. Raises `InputError`."""
    judged_collection = read_judged_collection(folder)
    queries = judged_collection.queries.join(judged_collection.positives, on="query_id", how="semi").sort("query_id")
    split_queries, notes = assign_benchmark_split(queries, judged_collection.positives, seed)
    test_queries = split_queries.filter("test").select("query_id")
    if test_queries.is_empty() or test_queries.height == split_queries.height:
        raise InputError(
            f"{folder}: its {split_queries.height} queries with a positive can't be split into train and test"
        )
    positives = judged_collection.positives.join(test_queries, on="query_id", how="anti", maintain_order="left")
    positives = hold_out_positives(positives, seed, "bench")
    mined_queries = set(sample_by_hash(positives["query_id"], MAX_MINED_QUERIES, "downstream", seed))
    split = pl.when("test").then(pl.lit("test")).when(pl.col("query_id").is_in(mined_queries)).then(pl.lit("train"))
    is_mined = pl.col("query_id").is_in(mined_queries)
    collection = HoldoutCollection(
        folder.name,
        judged_collection.digest,
        split_queries.select("query_id", "query", split=split.otherwise(pl.lit("dev")), group="group"),
        judged_collection.corpus,
        positives.filter(~pl.col("held_out")).select("query_id", "doc_id", "relevance"),
        positives.filter(pl.col("held_out") & is_mined).select("query_id", "doc_id"),
        judged_collection.nonrelevant.filter(is_mined),
    )
    return BenchmarkSplit(
        collection,
        judged_collection.positives.join(test_queries, on="query_id", how="semi", maintain_order="left"),
        notes,
    )


def assign_benchmark_split(queries: pl.DataFrame, positives: pl.DataFrame, seed: int) -> tuple[pl.DataFrame, list[str]]:
    """`queries` (query_id, query) with `test` (bool) and `group` (the component); and the notes of the split.

    Queries that share a positive, and paraphrases, get the same split, as in `stages.pairs.split`.
    """
    ids, documents = queries["query_id"].to_list(), positives["doc_id"].unique().sort()
    positive_edges = positives.join(queries.with_row_index("query_number"), on="query_id").join(
        documents.to_frame().with_row_index("document"), on="doc_id"
    )
    match_keys = pl.Series([match_key(query) for query in queries["query"]])
    edges = (
        positive_edges["query_number"].cast(pl.Int64).to_numpy(),
        positive_edges["document"].cast(pl.Int64).to_numpy(),
    )
    constraints = SplitConstraints(len(ids), match_keys.rank("dense").cast(pl.Int64).to_numpy(), edges, None)

    def name_node(kind: int, number: int) -> str:
        return str(ids[number] if kind == 2 else documents[number])

    assignment = assign_splits(
        constraints, None, SplitRatios(dev=0.0, test=TEST_RATIO, unit="component", seed=seed), name_node
    )
    units = [
        f"{kind}:{name_node(kind, number)}"
        for kind, number in zip(assignment.unit_kind.tolist(), assignment.unit_number.tolist(), strict=True)
    ]
    return queries.with_columns(
        test=pl.Series(assignment.split_index == 2), group=pl.Series(units, dtype=pl.String)
    ), assignment.notes
