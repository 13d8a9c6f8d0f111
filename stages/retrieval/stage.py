"""Search: the best documents of every query, exactly or by an index, by one retriever or several, in bounded memory."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from pydantic import field_validator, model_validator

from stages.core.device import Dtype, device_type, pick_device, use_bfloat16
from stages.core.errors import InputError
from stages.core.hashing import seed_option
from stages.core.params import Params as Base
from stages.core.params import option
from stages.core.schemas import (
    CANDIDATES,
    CORPUS,
    JUDGED,
    QRELS,
    QUERIES,
    Summary,
    Tools,
    read_table,
    to_arrow,
    write_table,
    writer,
)
from stages.embedding.lookup import Vectors, encoder_texts, encodings
from stages.retrieval.bm25 import Bm25Search
from stages.retrieval.dense import Dense
from stages.retrieval.faiss_index import check_factory, check_parameters
from stages.retrieval.faiss_search import EXACT, Approximate, Wanted
from stages.retrieval.incremental import Incremental
from stages.retrieval.random_documents import Ring
from stages.retrieval.results import Found, Ids, Source, parsed


class Params(Base):
    """Where to look, and how deep."""

    depth: int = option(
        200, "Candidates a query, known positives included, from each source that is given without an END.", ge=1
    )
    sources: tuple[str, ...] = option(
        ("dense",),
        "Where candidates come from; repeat it for several: dense (the encoder), dense2, dense3, ... (more_models), "
        "bm25 or random. NAME:END keeps the first END ranks of that source, NAME:START-END ranks START + 1 to END, as "
        "FlagEmbedding's range does. dense must be among them, from its first rank on.",
    )
    # These and the seed enter the key through `identity`, where there is an index.
    index: str | None = option(
        None,
        "Search the vectors through a FAISS index, for corpora where exact search does not pay: a string of "
        'faiss.index_factory, as "IVF4096,PQ64" or "HNSW32". Left out: exact search. exact: the same, '
        "whatever index_params says.",
        unkeyed=True,
    )
    index_params: str | None = option(
        None,
        'How the index is searched, as faiss.ParameterSpace takes it: "nprobe=32,k_factor_rf=4". Where nprobe (IVF) or '
        "efSearch (HNSW) is left open, the least power of two that reaches min_recall is taken.",
        unkeyed=True,
    )
    min_recall: float = option(
        0.95,
        "Refuse an index that finds less than this share of the exact candidates, measured on 200 sampled queries.",
        unkeyed=True,
        ge=0,
        le=1,
    )
    seed: int = seed_option(unkeyed=True)  # enters the key through `identity`, where something is drawn
    block: int = option(
        32_768, "Documents held in memory at once. It changes memory and speed only.", unkeyed=True, ge=1
    )
    search_device: Literal["auto", "cpu", "cuda"] = option(
        "auto",
        "Where exact search multiplies. auto: cuda where torch and the driver offer it, else cpu. It changes the speed "
        "only: what was found is scored again on the CPU.",
        unkeyed=True,
    )

    search_dtype: Dtype = option(
        "auto",
        "Number format that exact search multiplies in. auto: bfloat16 where the device has instructions for it and "
        "there is enough to multiply, else float32. It changes the speed only, as search_device does.",
        unkeyed=True,
    )

    @field_validator("sources")
    @classmethod
    def _spelled(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        parsed(given)
        return given

    @field_validator("index")
    @classmethod
    def _known(cls, given: str | None) -> str | None:
        if given and given not in EXACT:
            check_factory(given)
        return given

    @field_validator("index_params")
    @classmethod
    def _listed(cls, given: str | None) -> str | None:
        check_parameters(given or "")
        return given

    @model_validator(mode="after")
    def _fits(self) -> "Params":
        if self.index_params and not self.index:
            raise ValueError(
                f"index_params = {self.index_params!r} is how an index is searched, and there is none: give index too, "
                "or leave both out for exact search"
            )
        return self

    @property
    def windows(self) -> tuple[tuple[Source, int], ...]:
        """The sources, each with its last rank."""
        return tuple((source, self.depth if source.end is None else source.end) for source in parsed(self.sources))


VERSION = 1

_QUERIES = 16_384
"""Queries searched at once, or their lists read."""
_ROWS = 1_024
"""Queries written at once."""
_WORTH = 2**39
"""Products from which on a CPU's bfloat16 is worth loading torch: some 8 s of two cores in float32."""


def identity(params: Params) -> dict[str, str]:
    """What shapes the candidates beyond the keyed parameters."""
    drawn = any(source.name == "random" for source, _ in params.windows)
    wanted = {"index": params.index, "index_params": params.index_params or "", "min_recall": params.min_recall}
    indexed = {} if params.index in EXACT else {name: str(value) for name, value in wanted.items()}
    return ({"seed": str(params.seed)} if drawn or indexed else {}) | indexed


def run(params: Params, inputs: Mapping[str, Path], out: Path, tools: Tools) -> Summary:
    """Search all queries in the whole corpus; write candidates.parquet and judged.parquet.

    candidates: by query (the tables are sorted by id), source in the order given, and rank: from 1 in the source's own
    ranking, where a window skips ranks; ties by doc_id. There is one row for each source that found the document, with
    that source's own score: dense the similarity, bm25 BM25, random 0. Where there are fewer documents than asked for
    a source gives all; bm25 only those that share a word with the query. judged: every row of qrels with its score by
    dense. Raises `InputError` where a vector is not finite (or far too large), a source has no encoder or a device is
    less exact than it says.

    A dense source goes on from its last search in this workspace, or is searched from nothing through an index, which
    is refused (`InputError`) where its recall is too low. bm25 is searched anew, because its weights change with every
    document, and so is random, which costs nothing.
    """
    for line in _idle_encoders(params.windows, [part["model"] for part in encodings(inputs["encoding"])]):
        tools.progress.say(line)
    queries = read_table(inputs["queries"], QUERIES, ["query_id", "query"])
    dense = _dense(queries, inputs, params, tools)
    retrievers = {
        source.name: _by_vectors(dense, end, params, tools)
        if source.name == "dense"
        else _retriever(source, end, params, queries, inputs, tools)
        for source, end in params.windows
    }
    total, done = queries.height, 0
    counts = dict.fromkeys(retrievers, 0)
    with writer(out / "candidates.parquet", CANDIDATES) as file:
        for part in np.array_split(np.arange(total), -(-total // _QUERIES) or 1):
            found = {}
            for source, end in params.windows:
                found[source.name] = retrievers[source.name].find(part, end).after(source.start)
                done += len(part)
                tools.progress.advance(done, total * len(retrievers), "searches")
            asked = queries["query_id"].gather(part)
            for start in range(0, len(part), _ROWS):
                some = {name: rows.of(slice(start, start + _ROWS)) for name, rows in found.items()}
                file.write_table(to_arrow(_candidates(asked, dense.doc_ids, some), CANDIDATES))
                for name, rows in some.items():
                    counts[name] += len(rows.document)
    qrels = read_table(inputs["qrels"], QRELS)
    pairs = _places(qrels["query_id"], queries["query_id"]), _places(qrels["doc_id"], dense.doc_ids)
    write_table(qrels.with_columns(pl.Series("score", dense.scores(*pairs))), JUDGED, out / "judged.parquet")
    lists = {name: one.summary for name, one in retrievers.items() if isinstance(one, Incremental)}
    indexes = {name: one.summary for name, one in retrievers.items() if isinstance(one, Approximate)}
    return {
        "queries": total,
        "documents": len(dense.doc_ids),
        "candidates": sum(counts.values()),
        "by_source": counts,
        "judged": qrels.height,
    } | {name: told for name, told in (("lists", lists), ("indexes", indexes)) if told}


class _Retriever(Protocol):
    def find(self, queries: Ids, end: int) -> Found:
        """The first `end` ranks of each of `queries`, which are places in the table."""


def _retriever(
    source: Source, end: int, params: Params, queries: pl.DataFrame, inputs: Mapping[str, Path], tools: Tools
) -> _Retriever:
    if source.encoder is not None:
        return _by_vectors(_dense(queries, inputs, params, tools, source.encoder), end, params, tools)
    if source.name == "bm25":
        return Bm25Search(queries["query"].to_list(), _texts(inputs["corpus"]))
    return Ring(params.seed, queries["query_id"], read_table(inputs["corpus"], CORPUS, ["doc_id"])["doc_id"])


def sweeping(params: Params, products: int) -> tuple[str, str]:
    """The device and the number format in which so many products (queries x documents x dimension) are swept.

    Raises `InputError` where there is no such device.
    """
    device = device_type() if params.search_device == "auto" else params.search_device
    if device != "cpu":
        pick_device(device, "search_device")
    worth = params.search_dtype != "auto" or device != "cpu" or products >= _WORTH
    return device, "bfloat16" if worth and use_bfloat16(device, params.search_dtype) else "float32"


def _dense(queries: pl.DataFrame, inputs: Mapping[str, Path], params: Params, tools: Tools, encoder: int = 0) -> Dense:
    vectors = Vectors(inputs["encoding"], tools.vectors, encoder)
    products = len(queries) * pq.read_metadata(inputs["corpus"]).num_rows * vectors.dimension
    return Dense(queries, inputs["corpus"], vectors, params.block, tools.engine, *sweeping(params, products))


def _by_vectors(dense: Dense, end: int, params: Params, tools: Tools) -> Incremental | Approximate:
    if params.index is None or params.index in EXACT:
        return Incremental(dense, end, VERSION, tools.progress)
    wanted = Wanted(params.index, params.index_params or "", params.min_recall, params.seed)
    return Approximate(dense, end, wanted, tools.progress)


def _idle_encoders(windows: Sequence[tuple[Source, int]], encoders: Sequence[str]) -> list[str]:
    """A line for each encoder that no source uses. Raises `InputError` for a source that has none."""
    used = {source.encoder: source.name for source, _ in windows}
    for place, name in used.items():
        if place is not None and place >= len(encoders):
            there = ", ".join(f"dense{number} is {model}" for number, model in enumerate(encoders[1:], 2)) or "none"
            raise InputError(
                f"the source {name} has no encoder: more_models under [encode] gives dense2, dense3, ... in its order "
                f"(now: {there}). Name a model there, or take {name} out of sources."
            )
    return [
        f"no source uses the encoder {model}: add dense{place + 1} to sources, or remove it from more_models"
        for place, model in enumerate(encoders)
        if place not in used
    ]


def _texts(corpus: Path) -> Iterator[str]:
    """The documents as models read them, a bounded number at a time."""
    with pq.ParquetFile(corpus) as file:
        for batch in file.iter_batches(8_192, columns=["text", "title"]):
            yield from encoder_texts(pl.DataFrame(pl.from_arrow(batch)), "document")


def _candidates(query_ids: pl.Series, doc_ids: pl.Series, found: Mapping[str, Found]) -> pl.DataFrame:
    """What the sources found, as rows by query, source and rank; the places in `found` are those in `query_ids`."""
    query = np.concatenate([rows.query for rows in found.values()])
    document = np.concatenate([rows.document for rows in found.values()])
    order = np.argsort(query, kind="stable")
    return pl.DataFrame(
        {
            "query_id": query_ids.gather(query[order]),
            "doc_id": doc_ids.gather(document[order]),
            "source": pl.concat(pl.repeat(n, len(f.query), eager=True) for n, f in found.items()).gather(order),
            "rank": np.concatenate([rows.rank for rows in found.values()])[order],
            "score": np.concatenate([rows.score for rows in found.values()])[order],
        }
    )


def _places(wanted: pl.Series, ids: pl.Series) -> Ids:
    """Where each of `wanted` stands in `ids`; `ValueError` names one that does not."""
    index = pl.DataFrame({"id": ids, "place": np.arange(len(ids))})
    found = pl.DataFrame({"id": wanted}).join(index, on="id", how="left", maintain_order="left")["place"]
    if found.null_count():
        raise ValueError(f"qrels names {wanted.filter(found.is_null())[0]!r}, which is not in its table")
    return found.to_numpy()
