"""The sample step: select the negatives of each query from the candidates that the mask kept, and write mined.jsonl.

Curated negatives come first. The others are the highest-scored (`top`), uniformly random (`random`) or random with a
preference for scores near the positive's (`simans`). Near-duplicates of selected negatives are skipped.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from stages.core import schemas
from stages.core.context import StageContext, Summary
from stages.core.errors import InputError
from stages.mining.sampling.params import Params as Params
from stages.mining.sampling.params import SampledBlock
from stages.mining.sampling.sampler import NegativeSampler
from stages.mining.sampling.statistics import SamplingStats, summarise_sampling

VERSION = 6

MAX_TEXT_BYTES = 256 << 20
"""Bytes of documents in memory at once; does not change the result."""
DOCUMENT_OVERHEAD_BYTES = 500
"""Bytes of a document beside its text: ids, scores, features."""


def run(params: Params, inputs: Mapping[str, Path], out: Path, context: StageContext) -> Summary:
    """Write mined.jsonl: one line for each train query, in query_id order, in FlagEmbedding's format."""
    queries = schemas.read_table(inputs["queries"], schemas.QUERIES, ["query_id", "query", "split"])
    queries = queries.filter(pl.col("split") == "train").select("query_id", "query").sort("query_id")
    corpus = schemas.scan_documents(inputs["corpus"])
    negative_sampler = NegativeSampler(params, queries, inputs, context)
    stats = SamplingStats(params.num_negatives)
    with (out / "mined.jsonl").open("wb") as file:
        for blocks in group_blocks(negative_sampler.sample_blocks(), estimate_max_documents(inputs["corpus"])):
            block_queries, positives, negatives = (
                pl.concat(getattr(block, name) for block in blocks) for name in ("queries", "positives", "negatives")
            )
            doc_ids = pl.concat([positives["doc_id"], negatives["doc_id"]]).unique()
            texts = corpus.filter(pl.col("doc_id").is_in(doc_ids.implode())).collect()
            build_mined_rows(block_queries, positives, negatives, texts).write_ndjson(file)
            for block in blocks:
                stats.add(block)
            context.progress.advance(stats.counts["train"], len(queries), "queries")
    if not stats.counts["written"]:
        raise InputError(_explain_no_negatives(stats.counts))
    summary = (
        summarise_sampling(stats, params.prefer_category, params.drop_positives, params.positive_weight)
        | negative_sampler.stats
    )
    if params.hub_cap and (line := explain_unmet_hub_cap(params, stats, int(corpus.select(pl.len()).collect().item()))):
        context.progress.log(line)
    if params.prefer_category and stats.counts["without_category"] == stats.counts["with_positive"]:
        context.progress.log("prefer_category: no positive has a category, so no negative was preferred")
    return summary


def estimate_max_documents(corpus: Path) -> int:
    """How many documents of mean size fit into `MAX_TEXT_BYTES`."""
    metadata = pq.read_metadata(corpus)
    read = [metadata.schema.names.index(name) for name in ("title", "text")]
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    size = sum(group.column(column).total_uncompressed_size for group in groups for column in read)
    return int(MAX_TEXT_BYTES // (size / max(metadata.num_rows, 1) + DOCUMENT_OVERHEAD_BYTES))


def group_blocks(blocks: Iterable[SampledBlock], max_documents: int) -> Iterator[list[SampledBlock]]:
    """Groups of blocks with about `max_documents` documents, so that the corpus is read once for each group."""
    group: list[SampledBlock] = []
    n_documents = 0
    for block in blocks:
        group.append(block)
        n_documents += len(block.positives) + len(block.negatives)
        if n_documents >= max_documents:
            yield group
            group, n_documents = [], 0
    if group:
        yield group


def build_mined_rows(
    queries: pl.DataFrame, positives: pl.DataFrame, negatives: pl.DataFrame, texts: pl.DataFrame
) -> pl.DataFrame:
    """One row for each query: query_id, query, pos, neg, pos_ids, neg_ids, pos_scores, neg_scores.

    pos_weights and neg_weights come last if `positives` or `negatives` have `weight`.
    """
    rows, value_columns = queries, list[str]()
    for name, documents in (("pos", positives), ("neg", negatives)):
        values = {column: f"{name}_{column}s" for column in ("score", "weight") if column in documents.columns}
        value_columns += values.values()
        by_query = (
            documents.join(texts, on="doc_id", how="left", maintain_order="left")
            .group_by("query_id", maintain_order=True)
            .agg(
                pl.col("text").alias(name),
                pl.col("doc_id").alias(f"{name}_ids"),
                *(pl.col(column).alias(output) for column, output in values.items()),
            )
        )
        rows = rows.join(by_query, on="query_id")
    value_columns.sort(key=lambda column: column.endswith("weights"))  # scores first
    return rows.sort("query_id").select("query_id", "query", "pos", "neg", "pos_ids", "neg_ids", *value_columns)


def explain_unmet_hub_cap(params: Params, stats: SamplingStats, n_documents: int) -> str | None:
    """A message if hub_cap leaves fewer negatives than the queries need; curated negatives are not capped."""
    n_needed = stats.n_requested * stats.counts["with_positive"] - stats.n_by_stratum["curated_negative"]
    max_negatives = n_documents * params.hub_cap
    if max_negatives >= n_needed:
        return None
    n_without_negatives = stats.counts["with_positive"] - stats.counts["written"]
    return (
        f"hub_cap = {params.hub_cap} is too low: {n_documents:,} documents allow {max_negatives:,} negatives, and "
        f"{n_needed:,} are needed. Set hub_cap to {-(-n_needed // n_documents)} or more. Of "
        f"{stats.counts['with_positive']:,} questions {stats.counts['n_underfilled']:,} have fewer than "
        f"{stats.n_requested} negatives, {n_without_negatives:,} have none"
    )


def _explain_no_negatives(counts: Mapping[str, int]) -> str:
    if not counts["train"]:
        return (
            "the train split has no question, so there is nothing to mine. Add questions, or lower dev_ratio and "
            "test_ratio."
        )
    return (
        f"no negative is left for the {counts['train']:,} train questions "
        f"({counts['train'] - counts['with_positive']:,} have no positive). Add documents (corpus under [pairs]), or "
        "choose a mask that keeps more candidates: `prep show QUESTION` explains each verdict."
    )
