"""Judged collections, read from a folder: Parquet files, or a BEIR folder."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl
import xxhash

from stages.core import schemas
from stages.core.errors import InputError
from stages.core.hashing import sample_by_hash
from stages.core.schemas import PAIR_COLUMNS
from stages.mining.estimator.holdout import KeptPositives, hold_out_positives
from stages.readers.base import read_columns
from stages.readers.beir import find_beir_files
from stages.readers.files import file_source


@dataclass(frozen=True)
class HoldoutCollection:
    """A judged collection with some positives held out."""

    name: str
    digest: str
    """Hash of its qrels: it identifies a collection that the pretrained model was fitted on."""
    queries: pl.DataFrame
    corpus: pl.DataFrame
    known_positives: pl.DataFrame
    """query_id, doc_id, relevance: the positives that are kept."""
    held_out_positives: pl.DataFrame
    """query_id, doc_id."""
    nonrelevant: pl.DataFrame
    """query_id, doc_id that people judged not relevant."""


@dataclass(frozen=True)
class JudgedCollection:
    """All qrels of a collection, nothing held out."""

    digest: str
    queries: pl.DataFrame
    """query_id, query."""
    corpus: pl.DataFrame
    """doc_id, text, and title and category if the collection has them."""
    positives: pl.DataFrame
    """query_id, doc_id, relevance."""
    nonrelevant: pl.DataFrame
    """query_id, doc_id that people judged not relevant."""


def read_judged_collection(folder: Path) -> JudgedCollection:
    """Read a folder of queries, corpus and qrels, as Parquet files or as a BEIR folder.

    If grades go up to 3, positives begin at 2, as in TREC; a 1 is neither positive nor negative. Raises `InputError`
    with what is missing.
    """
    queries, corpus, qrels = (
        _read_beir_folder(folder) if any(folder.glob("corpus.jsonl*")) else _read_parquet_folder(folder)
    )
    if "relevance" not in qrels.columns:
        qrels = qrels.with_columns(relevance=pl.lit(1))
    judgements = qrels.select("query_id", "doc_id", pl.col("relevance").cast(pl.Int32))
    judgements = judgements.join(queries, on="query_id", how="semi").join(corpus, on="doc_id", how="semi")
    judgements = judgements.sort(*PAIR_COLUMNS, "relevance").unique(PAIR_COLUMNS, keep="last", maintain_order=True)
    min_relevance = 2 if (judgements["relevance"].max() or 0) >= 3 else 1  # type: ignore[operator]
    lines = "\n".join(f"{query}\t{doc}\t{grade}" for query, doc, grade in judgements.iter_rows())
    optional = [name for name in ("title", "category") if name in corpus.columns]
    return JudgedCollection(
        xxhash.xxh3_128_hexdigest(lines.encode()),
        queries.select("query_id", "query").sort("query_id"),
        corpus.select("doc_id", "text", *optional).sort("doc_id"),
        judgements.filter(pl.col("relevance") >= min_relevance),
        judgements.filter(pl.col("relevance") == 0).select(PAIR_COLUMNS),
    )


def read_holdout_collection(
    folder: Path, seed: int, max_queries: int, keep: KeptPositives = "half"
) -> HoldoutCollection:
    """The qrels in `folder` with half of each query's positives held out, or all but one.

    Negatives are mined for queries with two positives or more, at most `max_queries` of them (sampled by hash). Raises
    `InputError` with what is missing.
    """
    judged_collection = read_judged_collection(folder)
    positives = hold_out_positives(judged_collection.positives, seed, "bench", keep)
    sampled_queries = sample_by_hash(positives.filter("held_out")["query_id"], max_queries, "bench", seed)
    is_sampled = pl.col("query_id").is_in(sampled_queries)
    split = pl.when(is_sampled).then(pl.lit("train")).otherwise(pl.lit("test"))
    return HoldoutCollection(
        folder.name,
        judged_collection.digest,
        judged_collection.queries.with_columns(split=split, group="query_id"),
        judged_collection.corpus,
        positives.filter(~pl.col("held_out")).select("query_id", "doc_id", "relevance"),
        positives.filter(pl.col("held_out") & is_sampled).select("query_id", "doc_id"),
        judged_collection.nonrelevant.filter(is_sampled),
    )


def _read_parquet_folder(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    required_columns = {"queries": ("query_id", "query"), "corpus": ("doc_id", "text"), "qrels": ("query_id", "doc_id")}
    frames = []
    for name, columns in required_columns.items():
        path = folder / f"{name}.parquet"
        if not path.is_file():
            raise InputError(
                f"{path} is missing: a bench folder holds queries, corpus and qrels as Parquet, or is a BEIR folder"
            )
        frames.append(pl.read_parquet(path))
        if missing := [column for column in columns if column not in frames[-1].columns]:
            raise InputError(f"{path} has no column {missing[0]!r}; it has {', '.join(frames[-1].columns)}")
    return frames[0], frames[1], frames[2]


def _read_beir_folder(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    files = find_beir_files(folder, str(folder))
    corpus = _read_columns(files.corpus, {"_id": "doc_id", "title": "title", "text": "text"})
    queries = _read_columns(files.queries, {"_id": "query_id", "text": "query"})
    columns = {"query-id": "query_id", "corpus-id": "doc_id", "score": "relevance"}
    qrels = pl.concat([_read_columns(path, columns) for path in files.qrels])
    try:
        return queries, corpus, qrels.with_columns(pl.col("relevance").cast(pl.Int32))
    except pl.exceptions.InvalidOperationError as error:
        raise InputError(f"{folder}/qrels: a score is not a whole number: {error}") from error


def _read_columns(path: Path, columns: dict[str, str]) -> pl.DataFrame:
    return read_columns(file_source(path, path.name), columns, optional={"title"})


def write_stage_inputs(collection: HoldoutCollection, folder: Path) -> dict[str, Path]:
    """Write the collection as the steps read it, with the known positives as its only qrels."""
    frames = {"queries": collection.queries, "corpus": collection.corpus, "qrels": collection.known_positives}
    for name, frame in frames.items():
        schemas.write_table(frame, schemas.TABLES[name], folder / f"{name}.parquet")
    return {name: folder / f"{name}.parquet" for name in frames}
