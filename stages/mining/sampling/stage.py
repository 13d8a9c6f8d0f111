"""Compose: choose N negatives a query among those that the mask let through, and write them for trainers.

Curated negatives come first. The rest is `top` (the hardest: highest score), `random` (every survivor alike) or
`simans` (drawn, those near the positive's score most). What nearly equals a negative that is taken is passed over.
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

VERSION = 5

MAX_TEXT_BYTES = 256 << 20
"""Bytes of documents held at once; bounds memory and changes no result."""
DOCUMENT_OVERHEAD_BYTES = 500
"""Bytes that are held for each beside its text: ids, scores, features."""


def run(params: Params, inputs: Mapping[str, Path], out: Path, context: StageContext) -> Summary:
    """Write mined.jsonl: one line a train query, in query_id order, as FlagEmbedding and its loaders read it."""
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
    """How many of a corpus' documents fit into TEXTS, going by their mean, with what a line holds of each beside it."""
    metadata = pq.read_metadata(corpus)
    read = [metadata.schema.names.index(name) for name in ("title", "text")]
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    size = sum(group.column(column).total_uncompressed_size for group in groups for column in read)
    return int(MAX_TEXT_BYTES // (size / max(metadata.num_rows, 1) + DOCUMENT_OVERHEAD_BYTES))


def group_blocks(blocks: Iterable[SampledBlock], max_documents: int) -> Iterator[list[SampledBlock]]:
    """The blocks, as many at a time as name about `max_documents` documents: the corpus is read once for these."""
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
    """One row a query with both sides: query_id, query, pos, neg, pos_ids, neg_ids, pos_scores, neg_scores.

    pos_weights and neg_weights come last where `positives` and `negatives` have `weight`.
    """
    sides = [
        side.join(texts, on="doc_id", how="left", maintain_order="left")
        .group_by("query_id", maintain_order=True)
        .agg(
            pl.col("text").alias(name),
            pl.col("doc_id").alias(f"{name}_ids"),
            *(pl.col(figure).alias(f"{name}_{figure}s") for figure in ["score", *get_weight_columns(side)]),
        )
        for name, side in (("pos", positives), ("neg", negatives))
    ]
    both = queries.join(sides[0], on="query_id").join(sides[1], on="query_id").sort("query_id")
    figures = ["pos_scores", "neg_scores"] + [
        f"{name}_weights" for name, side in (("pos", positives), ("neg", negatives)) if get_weight_columns(side)
    ]
    return both.select("query_id", "query", "pos", "neg", "pos_ids", "neg_ids", *figures)


def get_weight_columns(frame: pl.DataFrame) -> list[str]:
    """The column of weights, where there is one."""
    return [name for name in frame.columns if name == "weight"]


def explain_unmet_hub_cap(params: Params, stats: SamplingStats, n_documents: int) -> str | None:
    """What to say where so many documents can't be all the negatives that are wanted, as often as hub_cap lets them."""
    wanted = (
        stats.n_requested * stats.counts["with_positive"] - stats.n_by_stratum["curated_negative"]
    )  # these know no cap
    max_negatives = n_documents * params.hub_cap
    if max_negatives >= wanted:
        return None
    n_without_negatives = stats.counts["with_positive"] - stats.counts["written"]
    return (
        f"hub_cap = {params.hub_cap} can't be met: {n_documents:,} documents x {params.hub_cap} are at most "
        f"{max_negatives:,} "
        f"negatives, and {wanted:,} are wanted, which takes hub_cap = {-(-wanted // n_documents)} at least. Of "
        f"{stats.counts['with_positive']:,} questions {stats.counts['n_underfilled']:,} have fewer than "
        f"{stats.n_requested}, {n_without_negatives:,} none"
    )


def _explain_no_negatives(counts: Mapping[str, int]) -> str:
    if not counts["train"]:
        return (
            "no question is in train, so there is nothing to mine for. Give more questions, or lower dev_ratio and "
            "test_ratio."
        )
    return (
        f"not one negative is left for the {counts['train']:,} train questions "
        f"({counts['train'] - counts['with_positive']:,} have no positive). Add documents (corpus under [pairs]), or "
        "choose a mask that leaves more: `prep show QUESTION` says why each candidate was set aside."
    )
