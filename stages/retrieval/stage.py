"""Search: the best documents of every query by one or more retrievers, exactly or with an index, in bounded memory."""

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from pydantic import field_validator, model_validator

from stages.core.arrays import Ints
from stages.core.context import StageContext, Summary
from stages.core.device import Device, Dtype, detect_device_type, pick_device, should_use_bfloat16
from stages.core.errors import InputError
from stages.core.params import BaseParams as Base
from stages.core.params import device_option, dtype_option, option, seed_option
from stages.core.schemas import (
    CANDIDATES,
    CORPUS,
    QRELS,
    QRELS_SCORED,
    QUERIES,
    open_parquet_writer,
    read_table,
    to_arrow_table,
    write_table,
)
from stages.embedding.encoder_fit import EncoderFit, describe_encoder_fit
from stages.embedding.lookup import VectorLookup, read_encodings, read_text_blocks
from stages.retrieval.bm25 import Bm25Search
from stages.retrieval.dense import DenseRetriever
from stages.retrieval.faiss_index import check_factory, check_parameters
from stages.retrieval.faiss_search import EXACT_INDEX_NAMES, FaissSearch, IndexSpec
from stages.retrieval.incremental import IncrementalSearch
from stages.retrieval.random_documents import RandomDocuments
from stages.retrieval.ranking_measures import measure_candidates, measure_ranking
from stages.retrieval.results import CandidateSource, SearchResults, parse_sources


class Params(Base):
    """The sources of candidates, and how many each one gives."""

    top_k: int = option(200, "Candidates per query from each source. Raise it if queries get too few negatives.", ge=1)
    sources: tuple[str, ...] = option(
        ("dense",),
        "Sources of candidates: dense, dense2, ..., bm25, random. NAME:END or NAME:START-END keeps those ranks.",
    )
    # These and the seed enter the key through `key_extras` if there is an index.
    faiss_index: str | None = option(
        None,
        "FAISS index to search with, as faiss.index_factory names it, such as IVF4096,PQ64. Exact search if unset.",
        advanced=True,
        exclude_from_key=True,
    )
    faiss_params: str | None = option(
        None,
        "Search parameters of the FAISS index, such as nprobe=32. Chosen to reach min_recall if unset.",
        flag=False,
        exclude_from_key=True,
    )
    min_recall: float = option(
        0.95,
        "Refuse a FAISS index that finds a smaller share of the exact candidates.",
        flag=False,
        exclude_from_key=True,
        ge=0,
        le=1,
    )
    seed: int = seed_option(exclude_from_key=True)  # enters the key through `key_extras` if something is random
    # Results are scored again on the CPU in float64, so these two change the speed only.
    device: Device = device_option()
    dtype: Dtype = dtype_option(exclude_from_key=True)

    @field_validator("sources")
    @classmethod
    def _check_sources(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        parse_sources(given)
        return given

    @field_validator("faiss_index")
    @classmethod
    def _check_index(cls, given: str | None) -> str | None:
        if given and given not in EXACT_INDEX_NAMES:
            check_factory(given)
        return given

    @field_validator("faiss_params")
    @classmethod
    def _check_index_params(cls, given: str | None) -> str | None:
        check_parameters(given or "")
        return given

    @model_validator(mode="after")
    def _check_index_is_given(self) -> "Params":
        if self.faiss_params and not self.faiss_index:
            raise ValueError(
                f"faiss_params = {self.faiss_params!r} is for an index, and there is none: give faiss_index "
                "too, or leave both out for exact search"
            )
        return self

    @property
    def source_depths(self) -> tuple[tuple[CandidateSource, int], ...]:
        """The sources, each with its last rank."""
        return tuple(
            (source, self.top_k if source.end is None else source.end) for source in parse_sources(self.sources)
        )


VERSION = 3
_TOPK_VERSION = 2
"""Of the top-k caches: raised if the code would find other documents."""

DOCUMENTS_PER_BLOCK = 32_768
"""Documents held in memory at once. It changes memory and speed only."""
_SEARCH_BATCH_QUERIES = 16_384
"""Queries searched at once."""
_WRITE_BATCH_QUERIES = 1_024
"""Queries written at once."""
_MIN_BFLOAT16_PRODUCTS = 2**39
"""Products from which bfloat16 on a CPU is worth loading torch: about 8 s of two cores in float32."""


def key_extras(params: Params) -> dict[str, str]:
    """What the candidates depend on besides the keyed parameters."""
    is_random = any(source.name == "random" for source, _ in params.source_depths)
    index_settings = {
        "faiss_index": params.faiss_index,
        "faiss_params": params.faiss_params or "",
        "min_recall": params.min_recall,
    }
    indexed = (
        {} if params.faiss_index in EXACT_INDEX_NAMES else {name: str(value) for name, value in index_settings.items()}
    )
    return ({"seed": str(params.seed)} if is_random or indexed else {}) | indexed


def run(params: Params, inputs: Mapping[str, Path], out: Path, context: StageContext) -> Summary:
    """Search all queries in the whole corpus; write candidates.parquet, qrels_scored.parquet and encoder_fit.json.

    candidates: ordered by query, source (in the order given) and rank. Ranks start at 1 in the ranking of the source,
    and a window skips some; ties are in the order of doc_id. There is one row for each source that found the document,
    with the score of that source: the similarity for dense, BM25 for bm25, 0 for random. A source gives all documents
    if there are fewer than requested; bm25 gives only those that share a word with the query. qrels_scored: every row
    of qrels with its score by dense. Raises `InputError` if a vector is not finite (or far too large), if a source has
    no encoder, or if a device is less exact than expected.

    A dense source updates its last search in this workspace, or uses an index, which is refused (`InputError`) if its
    recall is too low. bm25 is searched in full, because its weights change with every document, and so is random, which
    is cheap.
    """
    for line in _find_unused_encoders(
        params.source_depths, [part["model"] for part in read_encodings(inputs["encoder"])]
    ):
        context.progress.log(line)
    queries = read_table(inputs["queries"], QUERIES)
    dense = _make_dense_retriever(queries, inputs, params, context)
    retrievers = {
        source.name: _make_vector_search(dense, end, params, context)
        if source.name == "dense"
        else _make_retriever(source, end, params, queries, inputs, context)
        for source, end in params.source_depths
    }
    n_queries, n_done = queries.height, 0
    counts = dict.fromkeys(retrievers, 0)
    with open_parquet_writer(out / "candidates.parquet", CANDIDATES) as file:
        for part in np.array_split(np.arange(n_queries), -(-n_queries // _SEARCH_BATCH_QUERIES) or 1):
            results = {}
            for source, end in params.source_depths:
                results[source.name] = retrievers[source.name].search(part, end).skip(source.start)
                n_done += len(part)
                context.progress.advance(n_done, n_queries * len(retrievers), "searches")
            query_ids = queries["query_id"].gather(part)
            for start in range(0, len(part), _WRITE_BATCH_QUERIES):
                some = {
                    name: rows.select_queries(slice(start, start + _WRITE_BATCH_QUERIES))
                    for name, rows in results.items()
                }
                file.write_table(to_arrow_table(_build_candidate_rows(query_ids, dense.doc_ids, some), CANDIDATES))
                for name, rows in some.items():
                    counts[name] += len(rows.document_index)
    qrels = read_table(inputs["qrels"], QRELS)
    pairs = (
        _find_id_positions(qrels["query_id"], queries["query_id"]),
        _find_id_positions(qrels["doc_id"], dense.doc_ids),
    )
    write_table(
        qrels.with_columns(pl.Series("score", dense.score_pairs(*pairs))), QRELS_SCORED, out / "qrels_scored.parquet"
    )
    fit = _assess_encoder_fit(queries, qrels, dense, inputs, context)
    (out / "encoder_fit.json").write_text(json.dumps(fit.to_dict(), indent=1, ensure_ascii=False) + "\n")
    cache_summaries = {name: one.summary for name, one in retrievers.items() if isinstance(one, IncrementalSearch)}
    index_summaries = {name: one.summary for name, one in retrievers.items() if isinstance(one, FaissSearch)}
    return {
        "queries": n_queries,
        "documents": len(dense.doc_ids),
        "candidates": sum(counts.values()),
        "candidates_by_source": counts,
        "qrels_scored": qrels.height,
        "mrr_at_10": measure_mrr(pl.scan_parquet(out / "candidates.parquet"), qrels),
        "train_ranking": measure_candidates(pl.scan_parquet(out / "candidates.parquet"), queries, qrels),
        "model": read_encodings(inputs["encoder"])[0]["model"],
        "encoder_fit": fit.to_dict(),
    } | {
        name: summaries
        for name, summaries in (("topk_cache", cache_summaries), ("faiss_indexes", index_summaries))
        if summaries
    }


def measure_mrr(candidates: pl.LazyFrame, qrels: pl.DataFrame) -> dict[str, float]:
    """MRR@10 of each source that gives its first ranks, over all queries with a positive: source -> value.

    No encoder has learned from these queries, so all splits count. Random documents are left out.
    """
    positives = qrels.filter(pl.col("relevance") > 0).select("query_id", "doc_id")
    top = candidates.filter(pl.col("rank") <= 10, pl.col("source") != "random")
    sources = top.filter(pl.col("rank") == 1).select("source").unique()
    first_ranks = (
        top.join(positives.lazy(), on=["query_id", "doc_id"]).group_by("source", "query_id").agg(pl.col("rank").min())
    )
    sums = first_ranks.group_by("source").agg(total=(1 / pl.col("rank")).sum())
    found = sources.join(sums, on="source", how="left").sort("source").collect()
    n_queries = positives["query_id"].n_unique()
    return {source: (total or 0.0) / n_queries for source, total in found.rows()} if n_queries else {}


def _assess_encoder_fit(
    queries: pl.DataFrame, qrels: pl.DataFrame, dense: DenseRetriever, inputs: Mapping[str, Path], context: StageContext
) -> EncoderFit:
    """What encode found of the first encoder, with how it ranks; the verdict is logged unless encode logged it."""
    encoding = read_encodings(inputs["encoder"])[0]
    before = EncoderFit.from_dict(encoding["encoder_fit"])
    fit = before.add_ranking(measure_ranking(queries, qrels, dense, inputs["corpus"]))
    line = describe_encoder_fit(fit, encoding["model"])
    if line and fit.verdict != before.verdict:
        context.progress.log(line)
    return fit


class _Retriever(Protocol):
    def search(self, queries: Ints, top_k: int) -> SearchResults:
        """The first `top_k` ranks of each of `queries` (positions in the table)."""


def _make_retriever(
    source: CandidateSource,
    top_k: int,
    params: Params,
    queries: pl.DataFrame,
    inputs: Mapping[str, Path],
    context: StageContext,
) -> _Retriever:
    if source.encoder_index is not None:
        return _make_vector_search(
            _make_dense_retriever(queries, inputs, params, context, source.encoder_index), top_k, params, context
        )
    if source.name == "bm25":
        document_texts = chain.from_iterable(read_text_blocks(inputs["corpus"], "document"))
        return Bm25Search(queries["query"].to_list(), document_texts)
    return RandomDocuments(params.seed, queries["query_id"], read_table(inputs["corpus"], CORPUS, ["doc_id"])["doc_id"])


def choose_device_and_dtype(params: Params, n_products: int) -> tuple[str, str]:
    """The device and the dtype of a scan with `n_products` products (queries x documents x dimension).

    Raises `InputError` if there is no such device.
    """
    device = {"auto": detect_device_type(), "mps": "cpu"}.get(params.device, params.device)
    if device != "cpu":
        pick_device(device)
    is_bfloat16_worthwhile = params.dtype != "auto" or device != "cpu" or n_products >= _MIN_BFLOAT16_PRODUCTS
    return device, "bfloat16" if is_bfloat16_worthwhile and should_use_bfloat16(device, params.dtype) else "float32"


def _make_dense_retriever(
    queries: pl.DataFrame, inputs: Mapping[str, Path], params: Params, context: StageContext, encoder_index: int = 0
) -> DenseRetriever:
    vectors = VectorLookup(inputs, context.vectors_dir, encoder_index)
    products = len(queries) * pq.read_metadata(inputs["corpus"]).num_rows * vectors.dimension
    return DenseRetriever(
        queries,
        inputs["corpus"],
        vectors,
        DOCUMENTS_PER_BLOCK,
        context.executor,
        *choose_device_and_dtype(params, products),
    )


def _make_vector_search(
    dense: DenseRetriever, top_k: int, params: Params, context: StageContext
) -> IncrementalSearch | FaissSearch:
    if params.faiss_index is None or params.faiss_index in EXACT_INDEX_NAMES:
        return IncrementalSearch(dense, top_k, _TOPK_VERSION, context.progress)
    spec = IndexSpec(params.faiss_index, params.faiss_params or "", params.min_recall, params.seed)
    return FaissSearch(dense, top_k, spec, context.progress)


def _find_unused_encoders(source_depths: Sequence[tuple[CandidateSource, int]], encoders: Sequence[str]) -> list[str]:
    """A log line for each encoder that no source uses. Raises `InputError` for a source without an encoder."""
    used = {source.encoder_index: source.name for source, _ in source_depths}
    for encoder_index, name in used.items():
        if encoder_index is not None and encoder_index >= len(encoders):
            available = ", ".join(f"dense{number} is {model}" for number, model in enumerate(encoders[1:], 2)) or "none"
            raise InputError(
                f"the source {name} has no encoder: extra_models under [encode] gives dense2, dense3, ... in its order "
                f"(now: {available}). Name a model there, or take {name} out of sources."
            )
    return [
        f"no source uses the encoder {model}: add dense{i + 1} to sources, or remove it from extra_models"
        for i, model in enumerate(encoders)
        if i not in used
    ]


def _build_candidate_rows(
    query_ids: pl.Series, doc_ids: pl.Series, results: Mapping[str, SearchResults]
) -> pl.DataFrame:
    """The rows of candidates.parquet, ordered by query, source and rank. Positions in `results` are in `query_ids`."""
    query = np.concatenate([rows.query_index for rows in results.values()])
    document = np.concatenate([rows.document_index for rows in results.values()])
    order = np.argsort(query, kind="stable")
    return pl.DataFrame(
        {
            "query_id": query_ids.gather(query[order]),
            "doc_id": doc_ids.gather(document[order]),
            "source": pl.concat(pl.repeat(n, len(f.query_index), eager=True) for n, f in results.items()).gather(order),
            "rank": np.concatenate([rows.rank for rows in results.values()])[order],
            "score": np.concatenate([rows.score for rows in results.values()])[order],
        }
    )


def _find_id_positions(keys: pl.Series, ids: pl.Series) -> Ints:
    """The position of each of `keys` in `ids`. Raises `ValueError` if one is missing."""
    index = pl.DataFrame({"id": ids, "position": np.arange(len(ids))})
    positions = pl.DataFrame({"id": keys}).join(index, on="id", how="left", maintain_order="left")["position"]
    if positions.null_count():
        raise ValueError(f"qrels names {keys.filter(positions.is_null())[0]!r}, which is not in its table")
    return positions.to_numpy()
