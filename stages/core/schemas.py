"""The schemas of the tables between stages, and functions that read, check and write these tables."""

from collections.abc import Collection, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq


def _schema(required: dict[str, pa.DataType], optional: dict[str, pa.DataType] | None = None) -> pa.Schema:
    fields = [pa.field(name, kind, nullable=False) for name, kind in required.items()]
    return pa.schema(fields + [pa.field(name, kind) for name, kind in (optional or {}).items()])


_STR = pa.large_string()

PAIR_COLUMNS = ["query_id", "doc_id"]
"""The key of every table with a row for each pair of query and document."""

QUERIES = _schema({"query_id": _STR, "query": _STR, "split": _STR, "group": _STR})
CORPUS = _schema({"doc_id": _STR, "text": _STR}, {"title": _STR, "category": _STR, "group": _STR})
"""By doc_id. Pairs writes titles and texts normalised (`stages.core.text.normalise`), so equal ones are equal byte for
byte. The collections of a benchmark are not normalised."""
QRELS = _schema({"query_id": _STR, "doc_id": _STR, "relevance": pa.int32()})
NEAR_DUPLICATES = _schema({"doc_id": _STR, "cluster": _STR})
"""The documents that have a near duplicate; `cluster` is the smallest doc_id of those that are one document."""
ANSWERS = _schema({"query_id": _STR, "answer": _STR})
REJECTS = _schema({"source": _STR, "row": pa.int64(), "reason": _STR, "data": _STR})
CANDIDATES = _schema({"query_id": _STR, "doc_id": _STR, "source": _STR, "rank": pa.int32(), "score": pa.float32()})
DENSE_SOURCE = "dense"
"""The source of the scores that the masks use: the first encoder."""
QRELS_SCORED = _schema({"query_id": _STR, "doc_id": _STR, "relevance": pa.int32(), "score": pa.float32()})
FEATURES = (
    "score_z",
    "score_gap_max",
    "score_gap_min",
    "log_rank",
    "pos_sim_max",
    "pos_sim_mean",
    "topk_sim_mean",
    "bm25",
    "bm25_gap",
    "hubness",
    "hubness_gap",
    "positive_z",
    "log_n_positives",
    "nearest_query_similarity",
)
"""The features of the learned mask; `stages.mining.candidates.features` describes them."""
CANDIDATE_FEATURES = _schema(
    {"query_id": _STR, "doc_id": _STR, "source": _STR, "rank": pa.int32(), "score": pa.float32()},
    {
        "positive_kind": _STR,
        "curated_negative": pa.bool_(),
        "same_text": pa.bool_(),
        "contains_answer": pa.bool_(),
        "positive_similarity": pa.float32(),
    }
    | dict.fromkeys(("p_false_negative", *FEATURES), pa.float32()),
)
"""Facts and features of a candidate; null if not applicable. positive_kind: "own" for a positive of the query,
"paraphrase" for a positive of a paraphrase."""
HOLDOUT_CANDIDATES = _schema(
    {"query_id": _STR, "fold": pa.int32(), "doc_id": _STR, "rank": pa.int32(), "score": pa.float32()}
    | {"held_out": pa.bool_()}
    | dict.fromkeys(("weight", "p_false_negative", "positive_score_min", "positive_score_max"), pa.float32())
)
"""Candidates of queries with a held-out positive (another one in each fold), with a cross-validated p_false_negative.
weight: the number of positives of the query. positive_score_min, positive_score_max: of the kept positives."""
VERIFIER_SCORES = _schema(
    {"query_id": _STR, "doc_id": _STR},
    dict.fromkeys(("verifier_score", "verifier_positive_min", "verifier_positive_max"), pa.float32())
    | {"llm_judge": pa.bool_(), "p_false_negative": pa.float32()},
)
"""The verifier's logits (of the pair, of its query's lowest and best positive), the LLM judge's label, the updated
p."""
VERDICTS = _schema(
    {
        "query_id": _STR,
        "doc_id": _STR,
        "source": _STR,
        "rank": pa.int32(),
        "score": pa.float32(),
        "verdict": _STR,
        "reason": _STR,
    },
    dict.fromkeys(("p_false_negative", "threshold", "positive_similarity", "weight", *FEATURES), pa.float32())
    | {"verifier_score": pa.float32(), "llm_judge": pa.bool_()},
)
PER_QUERY_METRICS = _schema(
    {"split": _STR, "system": _STR, "query_id": _STR, "group": _STR, "metric": _STR, "value": pa.float64()}
)

TABLES = {
    "queries": QUERIES,
    "corpus": CORPUS,
    "qrels": QRELS,
    "label_overrides": QRELS,
    "near_duplicates": NEAR_DUPLICATES,
    "answers": ANSWERS,
    "rejects": REJECTS,
    "candidates": CANDIDATES,
    "qrels_scored": QRELS_SCORED,
    "features": CANDIDATE_FEATURES,
    "holdout_candidates": HOLDOUT_CANDIDATES,
    "holdout_verified": HOLDOUT_CANDIDATES,
    "verifier_scores": VERIFIER_SCORES,
    "verdicts": VERDICTS,
    "per_query": PER_QUERY_METRICS,
}
"""Name of a table's file -> its schema."""

SPLITS = ("train", "dev", "test")


def write_table(frame: pl.DataFrame, schema: pa.Schema, path: Path) -> None:
    """Write `frame` as Parquet under `schema`; columns are put in its order, missing optional ones become null.

    Raises `ValueError` if a required column is missing or holds a null, or if there is an unknown column.
    """
    table = to_arrow_table(frame, schema)
    with open_parquet_writer(path, schema) as file:
        file.write_table(table)


def open_parquet_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer of a Parquet file of `schema`. Float columns get no dictionary: few values repeat, and the attempt takes
    most of the time."""
    dictionary_columns = [field.name for field in schema if not pa.types.is_floating(field.type)]
    return pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=dictionary_columns)


def to_arrow_table(frame: pl.DataFrame, schema: pa.Schema) -> pa.Table:
    """`frame` as an Arrow table of exactly `schema`. Raises `ValueError` if a column does not fit."""
    unknown = set(frame.columns) - set(schema.names)
    if unknown:
        raise ValueError(f"columns {sorted(unknown)} are not in the schema {schema.names}")
    arrow = frame.to_arrow()
    columns = []
    for field in schema:
        if field.name not in arrow.column_names:
            if not field.nullable:
                raise ValueError(f"column {field.name!r} is missing")
            columns.append(pa.nulls(arrow.num_rows, field.type))
            continue
        column = arrow[field.name].cast(field.type)
        if column.null_count and not field.nullable:
            raise ValueError(f"column {field.name!r} holds {column.null_count} nulls")
        columns.append(column)
    return pa.table(columns, schema=schema)


def scan_table(path: Path, schema: pa.Schema) -> pl.LazyFrame:
    """Scan a Parquet file lazily after checking that its columns are those of `schema`."""
    found = pq.read_schema(path)
    if found.names != schema.names:
        raise ValueError(f"{path}: columns {found.names}, expected {schema.names}")
    return pl.scan_parquet(path)


def read_table(path: Path, schema: pa.Schema, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """Read a Parquet file after checking its columns; reads only `columns` if given."""
    lazy = scan_table(path, schema)
    return (lazy.select(columns) if columns else lazy).collect()


def document_text(columns: Sequence[str]) -> pl.Expr:
    """A document as every model reads it: its title (if it has one), a space and its text, as in BEIR.

    `columns` are those of the frame. Encoders, BM25, rerankers and mined.jsonl all use this.
    """
    if "title" not in columns:
        return pl.col("text")
    has_title = pl.col("title").is_not_null() & (pl.col("title") != "")
    return pl.when(has_title).then(pl.col("title") + " " + pl.col("text")).otherwise(pl.col("text")).alias("text")


def scan_documents(corpus: Path) -> pl.LazyFrame:
    """doc_id and text of a corpus file, as models read it."""
    return scan_table(corpus, CORPUS).select("doc_id", document_text(CORPUS.names))


def read_document_texts(corpus: Path, doc_ids: Collection[str]) -> dict[str, str]:
    """doc_id -> text of some documents of a corpus file, as models read them."""
    is_requested = pl.col("doc_id").is_in(pl.Series(list(doc_ids), dtype=pl.String).implode())
    return dict(scan_documents(corpus).filter(is_requested).collect().iter_rows())
