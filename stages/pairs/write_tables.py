"""Turn what an `Ingester` read into the five tables: resolve the qrels, assign ids and splits, write sorted rows."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from stages.core.context import Summary
from stages.core.errors import InputError
from stages.core.schemas import ANSWERS, CORPUS, NEAR_DUPLICATES, QRELS, QUERIES, SPLITS, document_text, write_table
from stages.pairs.chunking import build_corpus_rows, chunk_documents, place_qrels_on_chunks
from stages.pairs.deduplicate import deduplicate_document_keys, merge_duplicate_documents, replace_keys
from stages.pairs.external_sort import write_row_groups, write_sorted
from stages.pairs.ingest import Ingester
from stages.pairs.label_overrides import (
    OVERRIDE_SCHEMA,
    apply_label_overrides,
    read_label_overrides,
    reject_unknown_overrides,
)
from stages.pairs.near_duplicates import find_near_duplicates
from stages.pairs.qrels import PARTLY_CONTRADICTORY, assign_ids, concat_unique_keys, resolve_id_qrels, resolve_qrels
from stages.pairs.rejects import RejectWriter
from stages.pairs.split import (
    SplitAssignment,
    SplitConstraints,
    SplitRatios,
    assign_splits,
    resolve_table_splits,
    summarise_splits,
)
from stages.pairs.text_store import METADATA_COLUMNS
from stages.readers.base import TableSource

_SLICE_ROWS = 1 << 20
_CORPUS_BATCH_ROWS = 1 << 14
_NO_POSITIVE = "no positive document"


class TableWriter:
    """Writes queries, corpus, qrels, answers and label_overrides of an `Ingester` to `out`.

    A query or document is known by the key of its text, then by `query_index` or `document_index`, its position in the
    order of the ids.
    """

    def __init__(
        self,
        ingester: Ingester,
        reject_writer: RejectWriter,
        sources: Sequence[TableSource],
        out: Path,
        scratch_dir: Path,
    ) -> None:
        self._ingester, self._text_store = ingester, ingester.text_store
        self._reject_writer, self._sources = reject_writer, sources
        self._out, self._scratch_dir = out, scratch_dir
        self._standalone_queries = pl.DataFrame()
        self._replacements = pl.DataFrame()
        self._document_keys = pl.DataFrame()
        self.notes: list[str] = []

    def write(
        self, ratios: SplitRatios, id_column: str, trust_ids: bool, overrides_path: Path | None = None
    ) -> Summary:
        """Write the tables and return their counts. Raises `InputError` if no row is usable.

        `trust_ids` says whether the user named `id_column`, or it was only recognised; `overrides_path` is a file of
        `stages.pairs.label_overrides`.
        """
        qrels, standalone_documents, deferred_rejects = self._resolve_qrels(id_column, trust_ids)
        self._reject_writer.add_deferred(dict(deferred_rejects.iter_rows()), self._sources)
        if not len(qrels):
            raise InputError(self._no_usable_rows_message())
        rows_used = qrels["row"].n_unique()
        queries, documents = self._assign_query_ids(qrels), self._assign_document_ids(qrels, standalone_documents)
        # rows with only a document or only a query, as in a BEIR folder or a corpus
        standalone_rows = len(standalone_documents) + len(self._standalone_queries)
        row_documents = qrels.select("row", "d").unique() if "chunk" in qrels.columns else qrels
        merged_documents = len(row_documents) - qrels["d"].n_unique()
        indexed_qrels = qrels.join(queries.select("q", "query_index"), on="q").join(
            documents.select("d", "document_index"), on="d"
        )
        indexed_qrels = indexed_qrels.drop("row", "q", "d", "id", "document_id", strict=False)
        del qrels, standalone_documents, row_documents
        positives = indexed_qrels.filter(pl.col("relevance") > 0).select("query_index", "document_index").unique()
        group_names = None
        if "group" in indexed_qrels.columns and indexed_qrels["group"].null_count() < len(indexed_qrels):
            group_names = indexed_qrels["group"].drop_nulls().unique().sort()
        rows = build_corpus_rows(documents.drop("text"), bool(self._text_store.chunk_words))
        self._write_corpus(rows, documents)
        clusters = self._write_near_duplicates(rows)
        near_duplicates = positives.join(clusters, on="document_index")
        assignment = self._assign_splits(
            queries, documents, indexed_qrels, positives, near_duplicates, group_names, ratios
        )
        negatives = indexed_qrels.filter(pl.col("relevance") == 0).select("query_index", "document_index").unique()
        counts: Summary = {
            "rows_used": rows_used,
            "standalone_rows": standalone_rows,
            "merged_queries": rows_used - len(queries),
            "merged_documents": merged_documents,
            "queries": len(queries),
            "documents": len(documents),
            "near_duplicate_documents": len(clusters),
            **summarise_splits(assignment, positives, near_duplicates, queries["match_key"]),
            "curated_negatives": len(negatives),
        }
        self._write_queries(queries, documents, indexed_qrels, assignment, group_names)
        counts["chunks"] = len(rows) if self._text_store.chunk_words else 0
        chunk_qrels, n_unplaced = place_qrels_on_chunks(indexed_qrels, documents)
        if self._text_store.chunk_words:
            counts["positives_without_answer_chunk"] = n_unplaced
        counts["label_overrides"] = self._write_qrels(chunk_qrels, queries, rows, overrides_path)
        counts["answers"] = self._write_answers(queries, deferred_rejects)
        return counts

    def _resolve_qrels(self, id_column: str, trust_ids: bool) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
        """The resolved qrels, the documents without one, and the rejected rows (row, reason)."""
        ingester = self._ingester
        rejected = [pl.DataFrame(schema={"row": pl.Int64, "reason": pl.String})]
        frames, ingester.qrels = ingester.qrels, []
        if ingester.id_qrels:
            by_id, unknown = resolve_id_qrels(
                pl.concat(ingester.id_qrels),
                pl.concat(ingester.standalone_queries),
                pl.concat(ingester.standalone_documents),
            )
            frames.append(by_id)
            rejected.append(unknown)
        qrels_schema = {"row": pl.Int64, "q": pl.UInt64, "d": pl.UInt64, "relevance": pl.Int32}
        documents_schema = {"row": pl.Int64, "d": pl.UInt64, "document_id": pl.String}
        qrels, standalone_documents = self._merge_documents(
            pl.concat([pl.DataFrame(schema=qrels_schema), *frames], how="diagonal"),
            pl.concat([pl.DataFrame(schema=documents_schema), *ingester.standalone_documents]),
        )
        resolved = resolve_qrels(qrels, standalone_documents, trust_ids)
        if resolved.has_dropped_ids:
            self.notes.append(f"{id_column} repeats for different questions, so it is not used: ids are text hashes")
        rejected.append(resolved.rejected_rows)
        if ingester.standalone_queries:
            queries = pl.concat(ingester.standalone_queries)
            unused = queries.join(resolved.qrels.select("q").unique(), on="q", how="anti")
            rejected.append(unused.select("row", reason=pl.lit(_NO_POSITIVE)))
            self._standalone_queries = queries.join(pl.concat(rejected), on="row", how="anti")
        rejected_rows = pl.concat(rejected).unique("row", keep="first").sort("row")
        return resolved.qrels, resolved.standalone_documents, rejected_rows

    def _merge_documents(
        self, qrels: pl.DataFrame, standalone_documents: pl.DataFrame
    ) -> tuple[pl.DataFrame, pl.DataFrame]:
        keys = concat_unique_keys(self._text_store.document_keys or [pl.DataFrame(schema=_DOCUMENT_KEY_SCHEMA)], "d")
        self._text_store.document_keys = []
        qrels, standalone_documents, self._replacements = merge_duplicate_documents(keys, qrels, standalone_documents)
        self._document_keys, ambiguous_keys = deduplicate_document_keys(keys)
        if (
            len(ambiguous_keys) and "chunk" in qrels.columns
        ):  # the chunk was found with another division into title and text
            qrels = qrels.with_columns(
                chunk=pl.when(pl.col("d").is_in(ambiguous_keys.implode())).then(-1).otherwise("chunk")
            )
        return qrels, standalone_documents

    def _assign_query_ids(self, qrels: pl.DataFrame) -> pl.DataFrame:
        keys = concat_unique_keys(self._text_store.query_keys, "key").join(
            qrels.select(key="q").unique(), on="key", how="semi"
        )
        self._text_store.query_keys = []
        given_ids = qrels.select("id", key="q") if "id" in qrels.columns else None
        return assign_ids(keys, given_ids).select("match_key", q="key", query_id="id").with_row_index("query_index")

    def _assign_document_ids(self, qrels: pl.DataFrame, standalone_documents: pl.DataFrame) -> pl.DataFrame:
        used = pl.concat([qrels.select(key="d"), standalone_documents.select(key="d")]).unique()
        keys = self._document_keys.rename({"d": "key"}).join(used, on="key", how="semi")
        self._document_keys = pl.DataFrame()
        with_ids = [frame for frame in (qrels, standalone_documents) if "document_id" in frame.columns]
        given_ids = pl.concat([frame.select(key="d", id="document_id") for frame in with_ids])
        frame = assign_ids(keys, given_ids).select("chunks", "text", d="key", doc_id="id")
        return frame.with_row_index("document_index")

    def _assign_splits(
        self,
        queries: pl.DataFrame,
        documents: pl.DataFrame,
        indexed_qrels: pl.DataFrame,
        positives: pl.DataFrame,
        near_duplicates: pl.DataFrame,
        group_names: pl.Series | None,
        ratios: SplitRatios,
    ) -> SplitAssignment:
        groups = table_splits = None
        if group_names is not None:
            members = indexed_qrels.select("query_index", "group").drop_nulls().unique()
            group_index = np.asarray(group_names.search_sorted(members["group"]), dtype=np.int64)
            groups = (_to_int64(members["query_index"]), group_index)
        if "split" in indexed_qrels.columns:
            table_splits, n_ambiguous = resolve_table_splits(
                indexed_qrels.select("query_index", "split"), queries.select("query_index", "match_key")
            )
            if n_ambiguous:
                self.notes.append(
                    f"{n_ambiguous:,} questions (restated ones included) are in several of the table's splits: "
                    f"kept in test, else dev"
                )
        constraints = SplitConstraints(
            len(queries),
            _to_int64(queries["match_key"].rank("dense")),
            (_to_int64(positives["query_index"]), _to_int64(positives["document_index"])),
            groups,
            (_to_int64(near_duplicates["query_index"]), _to_int64(near_duplicates["cluster"].rank("dense"))),
        )
        unit_names = [group_names, documents["doc_id"], queries["query_id"]]

        def unit_name(kind: int, number: int) -> str:
            names = unit_names[kind]
            assert names is not None
            return str(names[number])

        assignment = assign_splits(constraints, table_splits, ratios, unit_name)
        self.notes += assignment.notes
        expected = {"train": True, "dev": ratios.dev > 0, "test": ratios.test > 0}
        empty = [name for i, name in enumerate(SPLITS) if expected[name] and i not in assignment.split_index]
        if empty:
            self.notes.append(f"no question falls into {' or '.join(empty)}: too few to divide, or all tied")
        return assignment

    def _write_queries(
        self,
        queries: pl.DataFrame,
        documents: pl.DataFrame,
        indexed_qrels: pl.DataFrame,
        assignment: SplitAssignment,
        group_names: pl.Series | None,
    ) -> None:
        query_info = queries.select("query_index", "q").with_columns(
            split=pl.Series(assignment.split_index).replace_strict(dict(enumerate(SPLITS)), return_dtype=pl.String),
            unit_kind=pl.Series(assignment.unit_kind),
            unit_number=pl.Series(assignment.unit_number),
        )
        if group_names is not None:  # a query's group cell takes precedence over the name of its unit
            group_cells = indexed_qrels.select("query_index", "group").drop_nulls()
            group = group_cells.group_by("query_index").agg(pl.col("group").min())
            query_info = query_info.join(group, on="query_index", how="left")
        else:
            query_info = query_info.with_columns(group=pl.lit(None, dtype=pl.String))
        unit_names = (group_names, documents["doc_id"], queries["query_id"])

        def to_rows(bucket: pl.DataFrame) -> pl.DataFrame:
            frame = bucket.unique("key").join(query_info, left_on="key", right_on="q")
            parts = []
            for kind, names in enumerate(unit_names):
                part = frame.filter(pl.col("unit_kind") == kind)
                if len(part) and names is not None:
                    parts.append(part.with_columns(group=part["group"].fill_null(names.gather(part["unit_number"]))))
            frame = pl.concat(parts) if parts else frame
            ids = queries["query_id"].gather(frame["query_index"])
            return frame.select("query", "group", "split", position="query_index", query_id=ids)

        path = self._out / "queries.parquet"
        write_sorted(
            path, QUERIES, self._text_store.queries, to_rows, len(queries), self._scratch_dir / "queries-sorted"
        )

    def _write_corpus(self, rows: pl.DataFrame, documents: pl.DataFrame) -> None:
        words, overlap = self._text_store.chunk_words, self._text_store.chunk_overlap
        texts = documents.select("d", key="text")

        def to_rows(bucket: pl.DataFrame) -> pl.DataFrame:
            metadata = [pl.col(name).min() for name in METADATA_COLUMNS]
            frame = replace_keys(bucket, self._replacements).join(texts, on=["d", "key"], how="semi")
            frame = frame.group_by("d").agg(pl.col("text").first(), *metadata)
            frame = chunk_documents(frame, words, overlap).join(
                rows.select("position", "chunk", "d"), on=["d", "chunk"]
            )
            return frame.drop("d", "chunk").with_columns(doc_id=rows["doc_id"].gather(frame["position"]))

        path = self._out / "corpus.parquet"
        write_sorted(path, CORPUS, self._text_store.documents, to_rows, len(rows), self._scratch_dir / "corpus-sorted")

    def _read_documents(self) -> Iterator[pl.DataFrame]:
        with pq.ParquetFile(self._out / "corpus.parquet") as file:
            for batch in file.iter_batches(_CORPUS_BATCH_ROWS, columns=["doc_id", "text", "title"]):
                yield pl.DataFrame(pl.from_arrow(batch)).select("doc_id", document_text(CORPUS.names))

    def _write_near_duplicates(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Write near_duplicates.parquet; returns the clusters as (document_index, cluster)."""
        clusters = find_near_duplicates(self._read_documents)
        write_table(clusters, NEAR_DUPLICATES, self._out / "near_duplicates.parquet")
        if len(clusters):
            self.notes.append(
                f"{len(clusters):,} documents are the same as another but for punctuation, markup, letter case, a "
                f"greeting or a footer ({clusters['cluster'].n_unique():,} clusters): a cluster is one document in "
                "the split, the mask and the metrics"
            )
        return clusters.join(rows.select("doc_id", "document_index"), on="doc_id").select("document_index", "cluster")

    def _write_qrels(
        self, qrels: pl.DataFrame, queries: pl.DataFrame, rows: pl.DataFrame, overrides_path: Path | None
    ) -> int:
        """Write qrels.parquet and label_overrides.parquet; returns the number of label overrides."""
        qrels = qrels.join(rows.select("document_index", "chunk", "position"), on=["document_index", "chunk"])
        qrels = qrels.select("query_index", "position", "relevance")
        overrides = pl.DataFrame(schema={name: OVERRIDE_SCHEMA[name] for name in QRELS.names})
        if overrides_path:
            read = read_label_overrides(overrides_path)
            qrels, unknown = apply_label_overrides(qrels, read, queries, rows)
            self.notes += reject_unknown_overrides(unknown, overrides_path, self._reject_writer)
            overrides = read.join(unknown, on="row", how="anti").select(overrides.columns)
        write_table(overrides.sort("query_id", "doc_id"), QRELS, self._out / "label_overrides.parquet")
        with pq.ParquetWriter(self._out / "qrels.parquet", QRELS, compression="zstd") as writer:
            for part in qrels.sort("query_index", "position").iter_slices(_SLICE_ROWS):
                query_id = queries["query_id"].gather(part["query_index"])
                doc_id = rows["doc_id"].gather(part["position"])
                frame = pl.DataFrame({"query_id": query_id, "doc_id": doc_id, "relevance": part["relevance"]})
                write_row_groups(writer, frame, QRELS)
        return len(overrides)

    def _write_answers(self, queries: pl.DataFrame, rejected_rows: pl.DataFrame) -> int:
        unused = rejected_rows.filter(pl.col("reason") != PARTLY_CONTRADICTORY).select("row")
        positions = queries.select(position="query_index", key="q")

        def to_rows(bucket: pl.DataFrame) -> pl.DataFrame:
            answers = bucket.join(unused, on="row", how="anti").drop("row").unique()
            answers = answers.join(positions, on="key").drop("key")
            return answers.with_columns(query_id=queries["query_id"].gather(answers["position"]))

        path = self._out / "answers.parquet"
        return write_sorted(
            path, ANSWERS, self._text_store.answers, to_rows, len(queries), self._scratch_dir / "answers-sorted"
        )

    def _no_usable_rows_message(self) -> str:
        counts = self._reject_writer.counts
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in counts.most_common())
        rows = self._ingester.counts["rows in"]
        names = ", ".join(source.label for source in self._sources)
        if not rows:
            return f"{names}: there are column names but no rows."
        return f"{names}: none of {rows:,} rows is usable: {reasons}. Check which columns are named."


_DOCUMENT_KEY_SCHEMA = {"d": pl.UInt64, "low": pl.UInt64, "chunks": pl.Int32, "text": pl.UInt64}


def _to_int64(series: pl.Series) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    return series.cast(pl.Int64).to_numpy()
