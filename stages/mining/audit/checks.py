"""The audit: positives whose label may be wrong.

| finding | a positive is listed if |
|---|---|
| low_ranked | its rank is low, its score is like a random document's, and it lacks the query's terms |
| outranked | all of the query's hardest negatives have a higher score and contain more of the query's terms |
| inconsistent | the query or a paraphrase has other positives, and it is similar to none of them |

A finding is not a proof. Read by eye on medquad, covid_faq and bioasq, the listed positives are answers to another
query (Lyme disease under Machado-Joseph disease), empty texts ("Topics", "see the WHO"), or right answers that do not
name their subject (abbreviations, sections out of context), which a title fixes. The terms are compared because a score
alone also lists what the encoder can't read: rare names, other languages.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from statistics import NormalDist

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from stages.core import schemas
from stages.core.arrays import l2_normalise
from stages.core.hashing import sample_by_hash
from stages.core.query_batches import collect_query_batch, iter_query_batches
from stages.core.schemas import DENSE_SOURCE, PAIR_COLUMNS
from stages.core.text import match_key
from stages.mining.audit.term_overlap import IdfOverlap
from stages.mining.candidates.documents import DocumentVectoriser, make_document_vectoriser
from stages.mining.candidates.feature_context import ZScaler
from stages.retrieval.results import is_found_by

LOW_RANKED, OUTRANKED, INCONSISTENT = FINDING_KINDS = ("low_ranked", "outranked", "inconsistent")

MAX_RANDOM_Z = 0.5
"""low_ranked: the score is fewer standard deviations above a random document's; 3 in 10 random documents exceed it.
With MAX_TERM_OVERLAP it lists 0.15% of medquad, 2.9% of covid_faq (German, with an English encoder), none of stackfaq,
and 32% of policyqa, whose queries ask the same of many companies' policies."""
MAX_TERM_OVERLAP = 0.3
"""low_ranked, outranked: the document contains less than this share of the query's term weight."""
MIN_SIMILARITY_Z = 1.0
"""inconsistent: the similarity is fewer standard deviations above that of two random documents."""
MAX_PLAUSIBLE_SHARE = 0.1
"""If a larger share of the positives is listed, the retriever is more likely wrong than the labels."""

MAX_POSITIVE_RANK = 100
"""A rank is low if it is beyond this, or beyond a quarter of a small corpus."""
AUDIT_ROWS_PER_BLOCK = 1_000_000
"""Verdicts in memory at once; does not change the result."""
_OVERLAP_PAIRS_PER_BATCH = 20_000
"""Pairs whose texts are in memory at once."""
_POSITIVES_PER_BATCH = 20_000
"""Documents whose vectors are in memory at once."""
_N_SIMILARITY_SAMPLE = 1_024
"""Random documents whose pairs give the similarity of two random documents."""

POSITIVE_RANKS_SCHEMA = {
    "query_id": pl.String, "doc_id": pl.String, "rank": pl.Int32, "score": pl.Float32, "score_max": pl.Float32,
    "random_z": pl.Float64,
}  # fmt: skip
OUTRANKING_SCHEMA = {"query_id": pl.String, "doc_id": pl.String, "compared_doc_id": pl.String}
_NEAREST_POSITIVE_SCHEMA = {
    "match_key": pl.String,
    "doc_id": pl.String,
    "compared_doc_id": pl.String,
    "similarity_z": pl.Float64,
}
FINDINGS_SCHEMA = {
    "query_id": pl.String, "doc_id": pl.String, "finding": pl.String, "split": pl.String, "rank": pl.Int32,
    "score": pl.Float32, "score_max": pl.Float32, "random_z": pl.Float64, "term_overlap": pl.Float64,
    "compared_doc_id": pl.String, "similarity_z": pl.Float64, "explanation": pl.String,
}  # fmt: skip
"""rank: null if the positive is not among the candidates. score_max: the score of the query's best candidate. random_z:
the score, in standard deviations above a random document's. term_overlap: the share of the query's term weight that the
document contains. compared_doc_id: the negative or the other positive that it is compared with. similarity_z: their
similarity, in standard deviations above that of two random documents."""


def find_label_issues(
    inputs: Mapping[str, Path],
    vector_root: Path,
    n_negatives: int,
    kinds: Collection[str] = FINDING_KINDS,
) -> tuple[pl.DataFrame, int]:
    """The findings of `kinds` as `FINDINGS_SCHEMA`, by finding and worst first, and the number of positives.

    Label overrides are no findings. `inputs` holds the files queries, corpus, label_overrides, qrels_scored, verdicts,
    encoder and text_hashes; `vector_root` is the root of the vector store; `n_negatives` is num_negatives.
    """
    from stages.embedding.lookup import VectorLookup

    queries = schemas.read_table(inputs["queries"], schemas.QUERIES, ["query_id", "query", "split"])
    qrels_scored = schemas.scan_table(inputs["qrels_scored"], schemas.QRELS_SCORED)
    verdicts = schemas.scan_table(inputs["verdicts"], schemas.VERDICTS)
    verdicts = verdicts.select(*PAIR_COLUMNS, "source", "rank", "score", "verdict")
    n_documents = pq.read_metadata(inputs["corpus"]).num_rows
    n_rows = pq.read_metadata(inputs["verdicts"]).num_rows
    term_overlap = CorpusIdfOverlap(queries, schemas.scan_documents(inputs["corpus"]))
    rank_parts, outranking_parts = (
        [pl.DataFrame(schema=POSITIVE_RANKS_SCHEMA)],
        [pl.DataFrame(schema=OUTRANKING_SCHEMA)],
    )
    for block in iter_query_batches(queries["query_id"].sort(), n_rows, AUDIT_ROWS_PER_BLOCK):
        rows = collect_query_batch(verdicts, block)
        rank_parts.append(compute_positive_ranks(collect_query_batch(qrels_scored, block), rows, n_documents))
        if OUTRANKED in kinds:
            outranking_parts.append(find_outranking_negatives(rank_parts[-1], rows, n_negatives))
    positives, found = pl.concat(rank_parts), []
    if LOW_RANKED in kinds:
        found.append(find_low_ranked(positives, min(MAX_POSITIVE_RANK, max(n_documents // 4, 1)), term_overlap))
    if OUTRANKED in kinds:
        found.append(find_outranked(positives, pl.concat(outranking_parts), term_overlap))
    if INCONSISTENT in kinds:
        vectorise = make_document_vectoriser(inputs["corpus"], VectorLookup(inputs, vector_root))
        ids = schemas.read_table(inputs["corpus"], schemas.CORPUS, ["doc_id"])["doc_id"]
        sampled_ids = sample_by_hash(ids, _N_SIMILARITY_SAMPLE, "pair")
        similarity_scaler = ZScaler.fit(vectorise(pl.DataFrame({"doc_id": sampled_ids})))
        found.append(find_inconsistent(positives, queries, vectorise, similarity_scaler))
    table = pl.concat([pl.DataFrame(schema=FINDINGS_SCHEMA), *found], how="diagonal")
    label_overrides = schemas.read_table(inputs["label_overrides"], schemas.QRELS)
    table = table.join(label_overrides, on=PAIR_COLUMNS, how="anti", maintain_order="left")
    query_splits = queries.select("query_id", "split")
    table = (
        table.select(list(FINDINGS_SCHEMA))
        .drop("split")
        .join(query_splits, on="query_id", how="left", maintain_order="left")
    )
    return table.select(list(FINDINGS_SCHEMA)), len(positives)


def compute_positive_ranks(qrels_scored: pl.DataFrame, candidates: pl.DataFrame, n_documents: int) -> pl.DataFrame:
    """The rank of each positive among the candidates of its query: `POSITIVE_RANKS_SCHEMA`.

    `qrels_scored` and `candidates` (query_id, doc_id, source, rank, score) hold all rows of some queries; `n_documents`
    is the size of the corpus. random_z needs the mean and standard deviation of the scores of all documents. These are
    estimated from the n candidates, as the upper tail of a normal distribution with the share n / n_documents. That is
    exact if all documents are candidates. For the lowest 15 of 300 positives of medquad (200 candidates of 15,809
    documents) the median difference from 1,000 random documents was 0.3. random_z is null if all scores are equal.
    """
    dense = candidates.filter(is_found_by(DENSE_SOURCE)).sort("query_id", "rank", "doc_id")
    list_stats = dense.group_by("query_id", maintain_order=True).agg(
        n=pl.len().cast(pl.Int64),
        score_max=pl.col("score").max(),
        mean=pl.col("score").cast(pl.Float64).mean(),
        deviation=pl.col("score").cast(pl.Float64).std(ddof=0),
    )
    tails = pl.DataFrame(
        [(n, *truncated_normal_moments(n / n_documents)) for n in list_stats["n"].unique().sort()],
        schema={"n": pl.Int64, "shift": pl.Float64, "shrink": pl.Float64},
        orient="row",
    )
    positives = qrels_scored.filter(pl.col("relevance") > 0).select(*PAIR_COLUMNS, "score")
    ranked = positives.join(dense.select(*PAIR_COLUMNS, "rank"), on=PAIR_COLUMNS, how="left").join(
        list_stats, on="query_id", how="left"
    )
    z = (pl.col("score").cast(pl.Float64) - pl.col("mean")) / pl.col("deviation")
    ranked = ranked.join(tails, on="n", how="left").with_columns(
        random_z=pl.when(pl.col("deviation") > 0).then(z * pl.col("shrink") + pl.col("shift"))
    )
    return ranked.select(list(POSITIVE_RANKS_SCHEMA)).sort(PAIR_COLUMNS)


def truncated_normal_moments(share: float) -> tuple[float, float]:
    """Mean and standard deviation of the upper `share` of a standard normal distribution; 0 and 1 for all of it."""
    if share >= 1:
        return 0.0, 1.0
    normal = NormalDist()
    cutoff = normal.inv_cdf(1 - share)
    mean = normal.pdf(cutoff) / share
    return mean, max(1 + cutoff * mean - mean * mean, 0.0) ** 0.5


def find_low_ranked(positives: pl.DataFrame, max_rank: int, term_overlap: "CorpusIdfOverlap") -> pl.DataFrame:
    """Positives beyond `max_rank` that score like a random document and lack the query's terms.

    A positive that is ranked behind many similar documents scores far above a random one, so it is not listed.
    """
    is_low_ranked = pl.col("rank").is_null() | (pl.col("rank") > max_rank)
    found = term_overlap.add_overlap(positives.filter(is_low_ranked & (pl.col("random_z") < MAX_RANDOM_Z))).filter(
        pl.col("term_overlap") < MAX_TERM_OVERLAP
    )
    position = pl.when(pl.col("rank").is_null()).then(pl.lit("not among the candidates"))
    explanation = pl.concat_str(
        position.otherwise(pl.format("rank {}", "rank")),
        pl.format(
            "; its score {} is like a random document's ({} deviations above; the best has {}), and it contains {}% of "
            "the question's rare words: a wrong answer, or a text that does not name its subject",
            pl.col("score").round(3),
            pl.col("random_z").round(1),
            pl.col("score_max").round(3),
            (pl.col("term_overlap") * 100).round().cast(pl.Int64),
        ),
    )
    return found.with_columns(finding=pl.lit(LOW_RANKED), explanation=explanation).sort("random_z", *PAIR_COLUMNS)


def find_outranking_negatives(positives: pl.DataFrame, candidates: pl.DataFrame, n_negatives: int) -> pl.DataFrame:
    """query_id, doc_id, compared_doc_id: the query's `n_negatives` hardest negatives, if all of them score above the
    positive.

    `positives` is the result of `compute_positive_ranks`; `candidates` (query_id, doc_id, source, score, verdict) are
    those of the same queries.
    """
    is_negative = (is_found_by(DENSE_SOURCE) | (pl.col("source") == "curated_negative")) & (
        pl.col("verdict") == "negative"
    )
    hardest = candidates.filter(is_negative).sort("query_id", "score", "doc_id", descending=[False, True, False])
    hardest = hardest.group_by("query_id", maintain_order=True).head(n_negatives)
    lowest_negative = (
        hardest.group_by("query_id").agg(n=pl.len(), lowest=pl.col("score").min()).filter(pl.col("n") == n_negatives)
    )
    outranked = positives.join(lowest_negative, on="query_id").filter(pl.col("lowest") > pl.col("score"))
    pairs = outranked.select(PAIR_COLUMNS).join(hardest.select("query_id", compared_doc_id="doc_id"), on="query_id")
    return pairs.sort(*PAIR_COLUMNS, "compared_doc_id")


def find_outranked(positives: pl.DataFrame, outranking: pl.DataFrame, term_overlap: "CorpusIdfOverlap") -> pl.DataFrame:
    """Positives that lack the query's terms and contain less of them than each negative of `find_outranking_negatives`.

    The score alone would list 9% of bioasq and 45% of covid_faq (German, with an English encoder), nearly all of them
    right. With the terms it lists 0.6% and 1.4%, and 3.7% of medquad (mask learned, 7 negatives). Under a rule that
    only selects negatives below the positive, such as perc, it lists nothing.
    """
    low_overlap = term_overlap.add_overlap(positives.join(outranking, on=PAIR_COLUMNS, how="semi")).filter(
        pl.col("term_overlap") < MAX_TERM_OVERLAP
    )
    negatives = outranking.join(low_overlap.select(PAIR_COLUMNS), on=PAIR_COLUMNS, how="semi")
    negative_overlap = term_overlap.add_overlap(
        negatives.select("query_id", doc_id="compared_doc_id").unique().sort(PAIR_COLUMNS)
    )
    negatives = negatives.join(
        negative_overlap.select("query_id", compared_doc_id="doc_id", negative_overlap="term_overlap"),
        on=["query_id", "compared_doc_id"],
    )
    best_negative = (
        negatives.sort(*PAIR_COLUMNS, "negative_overlap", "compared_doc_id", descending=[False, False, True, False])
        .group_by(PAIR_COLUMNS, maintain_order=True)
        .agg(
            pl.col("compared_doc_id").first(),
            n_negatives=pl.len(),
            min_overlap=pl.col("negative_overlap").min(),
            max_overlap=pl.col("negative_overlap").first(),
        )
    )
    found = low_overlap.join(best_negative, on=PAIR_COLUMNS).filter(pl.col("min_overlap") > pl.col("term_overlap"))
    explanation = pl.format(
        "all of the {} hardest negatives score above it ({}) and contain more of the question's rare words (up to {}%, "
        "it contains {}%): is one of them the right answer?",
        "n_negatives",
        pl.col("score").round(3),
        (pl.col("max_overlap") * 100).round().cast(pl.Int64),
        (pl.col("term_overlap") * 100).round().cast(pl.Int64),
    )
    return found.with_columns(finding=pl.lit(OUTRANKED), explanation=explanation).sort(
        "term_overlap", "random_z", *PAIR_COLUMNS
    )


def find_inconsistent(
    positives: pl.DataFrame, queries: pl.DataFrame, vectorise: DocumentVectoriser, similarity_scaler: ZScaler
) -> pl.DataFrame:
    """Positives that are not similar to any other positive of their query or its paraphrases (equal match keys).

    A document that two of these queries share is confirmed and not listed. `vectorise` gives document vectors;
    `similarity_scaler` is fitted on the similarities of random documents. A query of an FAQ may have several right
    answers, but these are similar.
    """
    match_keys = [match_key(text) for text in queries["query"]]
    query_match_keys = queries.select("query_id", pl.Series("match_key", match_keys, dtype=pl.String))
    pool = positives.join(query_match_keys, on="query_id")
    pool = pool.filter(pl.col("doc_id").n_unique().over("match_key") > 1)
    documents = pool.select("match_key", "doc_id").unique().sort("match_key", "doc_id")
    nearest_positives = pl.concat(
        [
            pl.DataFrame(schema=_NEAREST_POSITIVE_SCHEMA),
            *(_find_nearest_positives(part, vectorise, similarity_scaler) for part in _split_by_match_key(documents)),
        ]
    )
    is_shared = pl.len().over("match_key", "doc_id") > 1
    n_queries = pl.col("query_id").n_unique().over("match_key")
    found = pool.with_columns(n_queries=n_queries, is_shared=is_shared).filter(~pl.col("is_shared"))
    found = found.join(nearest_positives, on=["match_key", "doc_id"]).filter(pl.col("similarity_z") < MIN_SIMILARITY_Z)
    explanation = pl.format(
        "{}, and none is similar to this one: the nearest, {}, is like a random document ({} deviations above)",
        pl.when(pl.col("n_queries") > 1)
        .then(pl.format("the question occurs {} times, with several positives", "n_queries"))
        .otherwise(pl.lit("the question has several positives")),
        "compared_doc_id",
        pl.col("similarity_z").round(1),
    )
    return (
        found.with_columns(finding=pl.lit(INCONSISTENT), explanation=explanation)
        .sort("similarity_z", *PAIR_COLUMNS)
        .drop("match_key", "n_queries", "is_shared")
    )


def _split_by_match_key(documents: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Split `documents` (match_key, doc_id; sorted) into parts of about `_POSITIVES_PER_BATCH` rows, each with whole
    match keys."""
    part = documents.with_columns(part=pl.int_range(pl.len()).first().over("match_key") // _POSITIVES_PER_BATCH)
    yield from (rows.drop("part") for rows in part.partition_by("part", maintain_order=True))


def _find_nearest_positives(
    documents: pl.DataFrame, vectorise: DocumentVectoriser, similarity_scaler: ZScaler
) -> pl.DataFrame:
    """match_key, doc_id, compared_doc_id, similarity_z: the nearest other document with the same match key."""
    ids = documents.select(pl.col("doc_id").unique().sort())
    vectors = l2_normalise(vectorise(ids).astype(np.float32, copy=False))
    indexed = documents.join(ids.with_row_index("vector"), on="doc_id", how="left", maintain_order="left")
    compared, similarity = [], []
    for group in indexed.partition_by("match_key", maintain_order=True):
        group_vectors, doc_ids = vectors[group["vector"].to_numpy()], group["doc_id"].to_list()
        for i in range(len(group_vectors)):
            cosine = group_vectors @ group_vectors[i]
            cosine[i] = -np.inf
            nearest = int(cosine.argmax())
            compared.append(doc_ids[nearest])
            similarity.append(float(similarity_scaler(cosine[nearest : nearest + 1])[0]))
    return documents.with_columns(
        pl.Series("compared_doc_id", compared), pl.Series("similarity_z", similarity, dtype=pl.Float64)
    )


class CorpusIdfOverlap:
    """The IDF-weighted term overlap of queries and documents; reads only the texts that it needs."""

    def __init__(self, queries: pl.DataFrame, corpus: pl.LazyFrame) -> None:
        self._queries, self._corpus = queries.select("query_id", "query"), corpus
        self._idf_overlap = IdfOverlap(queries["query"])

    def add_overlap(self, pairs: pl.DataFrame) -> pl.DataFrame:
        """`pairs` (query_id, doc_id, ...) with the column term_overlap."""
        parts = [pairs.clear().with_columns(term_overlap=pl.lit(None, pl.Float64))]
        for part in pairs.iter_slices(_OVERLAP_PAIRS_PER_BATCH):
            texts = self._corpus.filter(pl.col("doc_id").is_in(part["doc_id"].unique().implode())).collect()
            part_queries = self._queries.join(part, on="query_id", how="semi")
            overlaps = self._idf_overlap.compute_overlap(part, dict(part_queries.iter_rows()), dict(texts.iter_rows()))
            parts.append(part.with_columns(overlaps.alias("term_overlap")))
        return pl.concat(parts)
