"""Select the negatives of each query from the candidates that the mask kept, block by block."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.core import schemas
from stages.core.context import StageContext, Summary
from stages.core.query_batches import collect_query_batch, iter_query_batches, map_query_batches
from stages.core.schemas import PAIR_COLUMNS
from stages.mining.audit import checks
from stages.mining.candidates.documents import DocumentVectoriser, make_document_vectoriser, number_clusters
from stages.mining.sampling import hubness, near_duplicates, strategies
from stages.mining.sampling.params import Params, SampledBlock

SAMPLING_ROWS_PER_BLOCK = 500_000
"""Verdicts in memory at once; does not change the result."""
ROWS_PER_NEGATIVE = 10
"""The memory of a negative, in verdicts: its text and its vector are held too."""
CANDIDATES_PER_NEGATIVE = 4
"""With sampling = top, the candidates that are tried first, for each negative; does not change the result."""


class NegativeSampler:
    """Selects the negatives of all train queries."""

    def __init__(
        self, params: Params, queries: pl.DataFrame, inputs: Mapping[str, Path], context: StageContext
    ) -> None:
        self._params = params
        self._queries = queries
        self._query_numbers = queries.select("query_id").with_row_index("query_number")
        self._qrels_scored = schemas.scan_table(inputs["qrels_scored"], schemas.QRELS_SCORED)
        self._survivors = scan_survivors(inputs["verdicts"], queries)
        self._relabelled_positives = scan_relabelled_positives(inputs["verdicts"])
        self._flagged_positives = pl.DataFrame(schema=checks.FINDINGS_SCHEMA)
        if params.drop_positives:
            found = checks.find_label_issues(inputs, context.vectors_dir, params.num_negatives, params.drop_positives)
            self._flagged_positives = found[0]
        self._n_verdicts = pq.read_metadata(inputs["verdicts"]).num_rows
        self._keys = number_clusters(inputs)
        self._categories = None
        if params.prefer_category:
            corpus = schemas.read_table(inputs["corpus"], schemas.CORPUS, ["doc_id", "category"])
            self._categories = corpus.filter(pl.col("category").is_not_null() & (pl.col("category") != ""))
        self._vectorise: DocumentVectoriser | None = None
        if params.near_duplicate_similarity <= 1:
            from stages.embedding.lookup import VectorLookup

            self._vectorise = make_document_vectoriser(inputs["corpus"], VectorLookup(inputs, context.vectors_dir))
        self._hub_cap: hubness.HubCap | None = None
        self._document_counts = np.zeros(len(self._keys), np.int32)
        if params.hub_cap:
            cap = hubness.HubCap(queries["query_id"], self._keys["doc_id"], params.seed)
            self._hub_cap = hubness.apply_hub_cap(cap, params.hub_cap, len(self._keys), self._propose_negatives)

    @property
    def stats(self) -> Summary:
        """How often the most used document was selected, and what the cap did; complete after `sample_blocks`."""
        cap = self._hub_cap
        counts = {"max_document_count": int(self._document_counts.max(initial=0))}
        if cap:
            counts |= {"n_capped_documents": cap.n_capped_documents, "n_rejected": cap.n_rejected}
        return {"hubness": counts}

    def sample_blocks(self) -> Iterator[SampledBlock]:
        """Sample all train queries, in query_id order."""
        for sampled_block in map_query_batches(
            lambda block: self._sample_block(block, self._hub_cap), self._iter_query_blocks()
        ):
            self._document_counts += np.bincount(
                sampled_block.negatives["document"].to_numpy(), minlength=len(self._document_counts)
            ).astype(np.int32)
            yield sampled_block

    def _iter_query_blocks(self) -> Iterator[pl.Series]:
        ids = self._queries["query_id"]
        rows = self._n_verdicts + len(ids) * self._params.num_negatives * ROWS_PER_NEGATIVE
        return iter_query_batches(ids, rows, SAMPLING_ROWS_PER_BLOCK)

    def _sample_block(self, block: pl.Series, hub_cap: hubness.HubCap | None) -> SampledBlock:
        """Sample the train queries with the sorted ids `block`."""
        in_block = pl.col("query_id").is_in(block.implode())
        queries = self._queries.filter(in_block)
        qrels_scored, survivors, relabelled_positives = (
            collect_query_batch(table.filter(in_block), block)
            for table in (self._qrels_scored, self._survivors, self._relabelled_positives)
        )
        known_positives = qrels_scored.filter(pl.col("relevance") > 0).select("query_id", "doc_id", "score")
        flagged_positives = known_positives.join(self._flagged_positives, on=PAIR_COLUMNS)
        known_positives = pl.concat(
            [known_positives.join(self._flagged_positives, on=PAIR_COLUMNS, how="anti"), relabelled_positives]
        )
        if weight := self._params.positive_weight:
            kept = flagged_positives.select(*known_positives.columns, weight=pl.lit(weight)).unique(
                ["query_id", "doc_id"]
            )
            known_positives = pl.concat([known_positives.with_columns(weight=pl.lit(1.0)), kept])
        positives = pick_positives(known_positives, self._keys)
        negatives, duplicates_skipped = self._select_with_short_scan(survivors, positives, hub_cap)
        if self._categories is not None:
            with_category = strategies.find_positive_categories(positives, self._categories)["query_id"].unique()
            negatives = negatives.with_columns(has_category=pl.col("query_id").is_in(with_category.implode()))
            positives = positives.with_columns(has_category=pl.col("query_id").is_in(with_category.implode()))
        return SampledBlock(
            queries,
            positives,
            negatives,
            len(duplicates_skipped),
            flagged_positives.select("query_id", "finding"),
        )

    def _select_with_short_scan(
        self, survivors: pl.DataFrame, positives: pl.DataFrame, hub_cap: hubness.HubCap | None
    ) -> tuple[pl.DataFrame, pl.Series]:
        """`_select_from_survivors`, with less work if only the score orders the candidates.

        Then the best candidates of a query are tried first. All are tried for queries that these do not fill, because
        texts repeat or are near-duplicates.
        """
        n_negatives = self._params.num_negatives
        by_score = self._params.sampling == "top" and not self._params.quotas and self._categories is None
        if not by_score or hub_cap is not None:
            return self._select_from_survivors(survivors, positives, hub_cap)
        rank = pl.col("score").rank("min", descending=True).over("query_id")  # equal scores stay together
        with_rank = survivors.with_columns(
            is_deferred=(pl.col("reason") != "curated_negative") & (rank > CANDIDATES_PER_NEGATIVE * n_negatives)
        )
        negatives, duplicates_skipped = self._select_from_survivors(
            with_rank.filter(~pl.col("is_deferred")).drop("is_deferred"), positives, None
        )
        filled_queries = negatives.group_by("query_id").len().filter(pl.col("len") >= n_negatives)["query_id"]
        retry_queries = with_rank.filter("is_deferred")["query_id"].unique()
        retry_queries = retry_queries.filter(~retry_queries.is_in(filled_queries.implode()))
        if retry_queries.is_empty():
            return negatives, duplicates_skipped
        is_done = ~pl.col("query_id").is_in(retry_queries.implode())
        more_negatives, more_duplicates_skipped = self._select_from_survivors(
            survivors.filter(~is_done), positives, None
        )
        both = pl.concat([negatives.filter(is_done), more_negatives]).sort("query_id", maintain_order=True)
        return both, pl.concat(
            [duplicates_skipped.filter(~duplicates_skipped.is_in(retry_queries.implode())), more_duplicates_skipped]
        )

    def _select_from_survivors(
        self, survivors: pl.DataFrame, positives: pl.DataFrame, hub_cap: hubness.HubCap | None
    ) -> tuple[pl.DataFrame, pl.Series]:
        """`select_negatives` from the `survivors` that `hub_cap` does not reject."""
        pool = strategies.build_eligible_pool(survivors, positives, self._keys, self._categories)
        pool = pool.join(self._query_numbers, on="query_id", how="left", maintain_order="left")
        is_rejected = None
        if hub_cap is not None:
            is_rejected = (
                hub_cap.is_rejected(pool.select("document", "score", query="query_number"))
                & ~pool["curated_negative"].to_numpy()
            )
        return select_negatives(self._params, pool, is_rejected, self._vectorise)

    def _propose_negatives(self, hub_cap: hubness.HubCap, query_numbers: pl.Series | None) -> pl.DataFrame:
        """The `ProposalFunction` of `hubness.apply_hub_cap`; `query_numbers` are ascending."""
        parts = [pl.DataFrame(schema={"query": pl.UInt32, "document": pl.UInt32, "score": pl.Float32})]
        ids = self._queries["query_id"] if query_numbers is None else self._queries["query_id"].gather(query_numbers)
        for block in self._iter_query_blocks():
            block_ids = ids.filter(ids.is_between(block[0], block[-1]))
            if len(block_ids):
                negatives = self._sample_block(block_ids, hub_cap).negatives.filter(
                    pl.col("stratum") != "curated_negative"
                )
                parts.append(negatives.select(pl.col("query_number").alias("query"), "document", "score"))
        return pl.concat(parts)


def scan_survivors(path: Path, queries: pl.DataFrame) -> pl.LazyFrame:
    """query_id, doc_id, score, reason, source and p_false_negative of the negative verdicts.

    All rows have a weight too if one of `queries` has a negative with a weight below 1, so that all lines of
    mined.jsonl have the same columns.
    """
    verdicts = schemas.scan_table(path, schemas.VERDICTS).filter(pl.col("verdict") == "negative")
    columns = ["query_id", "doc_id", "score", "reason", "source", "p_false_negative"]
    weighted_rows = verdicts.filter(pl.col("weight") < 1).join(queries.lazy(), on="query_id", how="semi")
    if weighted_rows.head(1).collect().is_empty():
        return verdicts.select(columns)
    return verdicts.select(*columns, pl.col("weight").fill_null(1.0))


def scan_relabelled_positives(path: Path) -> pl.LazyFrame:
    """query_id, doc_id and score of the candidates that the mask turned into positives."""
    verdicts = schemas.scan_table(path, schemas.VERDICTS).filter(pl.col("reason") == "relabelled")
    return verdicts.select("query_id", "doc_id", "score")


def pick_positives(positives: pl.DataFrame, keys: pl.DataFrame) -> pl.DataFrame:
    """`positives` (query_id, doc_id, score, optionally weight) with cluster; the best document of each cluster, by
    falling score (ties by doc_id)."""
    positives = positives.join(keys.select("doc_id", "cluster"), on="doc_id")
    if "weight" in positives.columns:  # equal texts have one weight
        positives = positives.with_columns(pl.col("weight").max().over("query_id", "cluster"))
    ordered = positives.sort("query_id", "score", "doc_id", descending=[False, True, False])
    return ordered.unique(["query_id", "cluster"], keep="first", maintain_order=True)


def select_negatives(
    params: Params,
    pool: pl.DataFrame,
    is_rejected: NDArray[np.bool_] | None = None,
    vectorise: DocumentVectoriser | None = None,
) -> tuple[pl.DataFrame, pl.Series]:
    """The selected rows of `pool` (`strategies.build_eligible_pool`), and the query_id of each skipped near-duplicate.

    The rows get the column `stratum`. Curated negatives come first in each query, then the others by falling score
    (ties by doc_id). `is_rejected` [rows] marks rows that may not be selected. Without `vectorise` no near-duplicate is
    skipped.
    """
    pick_order = strategies.build_pick_order(params, pool)
    if is_rejected is not None:
        pick_order = pick_order.filter(~pl.Series(is_rejected).gather(pick_order["row"]))
    duplicate_filter = vectorise and near_duplicates.NearDuplicateFilter(
        pool["doc_id"], params.near_duplicate_similarity, vectorise
    )
    picks, duplicates_skipped = near_duplicates.greedy_select(
        pick_order, pool["curated_negative"].to_numpy(), params.num_negatives, duplicate_filter
    )
    pick_rows = pick_order[picks]
    negatives = pool[pick_rows["row"].to_numpy()].with_columns(pick_rows["stratum"])
    order = negatives.sort("query_id", "curated_negative", "score", "doc_id", descending=[False, True, True, False])
    return order, pool["query_id"].gather(pick_order["row"].gather(duplicates_skipped))
