"""From what the intake gathered to the five tables: judgements settled, ids given, sides drawn, rows written sorted."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from stages.core.context import Summary
from stages.core.errors import InputError
from stages.core.schemas import ANSWERS, CORPUS, QRELS, QUERIES, SPLITS, write_table
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
from stages.readers.base import TableSource

_SLICE_ROWS = 1 << 20
_NO_POSITIVE = "no positive document"


class TableWriter:
    """Turns an `Ingester` into queries, corpus, qrels and answers in `out`. Texts are known by keys, then by places:
    a question's or document's place is its number in the order of the ids."""

    def __init__(
        self,
        ingester: Ingester,
        reject_writer: RejectWriter,
        sources: Sequence[TableSource],
        out: Path,
        scratch_dir: Path,
    ) -> None:
        self._ingester, self._text_store, self._reject_writer, self._sources = (
            ingester,
            ingester.text_store,
            reject_writer,
            sources,
        )
        self._out, self._scratch_dir = out, scratch_dir
        self._standalone_queries = pl.DataFrame()
        self._replacements = pl.DataFrame()
        self._document_keys = pl.DataFrame()
        self.notes: list[str] = []

    def write(
        self, ratios: SplitRatios, id_column: str, trust_ids: bool, overrides_path: Path | None = None
    ) -> Summary:
        """Write the tables; returns their counts. Raises `InputError` where no row is usable.

        `trust_ids` says whether `id_column` was named by the user, or only recognised; `overrides_path` is a file of
        `stages.pairs.label_overrides`.
        """
        qrels, standalone_documents, deferred_rejects = self._resolve_qrels(id_column, trust_ids)
        if not len(qrels):
            self._reject_writer.add_deferred(dict(deferred_rejects.iter_rows()), self._sources)
            raise InputError(self._no_usable_rows_message())
        rows_used = qrels["row"].n_unique()
        queries, documents = self._assign_query_ids(qrels), self._assign_document_ids(qrels, standalone_documents)
        # a BEIR folder has rows that are only a document or only a question; a corpus has the former
        rows_alone = len(standalone_documents) + len(self._standalone_queries)
        named = qrels.select("row", "d").unique() if "chunk" in qrels.columns else qrels
        merged_documents = len(named) - qrels["d"].n_unique()
        indexed_qrels = qrels.join(queries.select("q", "question"), on="q").join(
            documents.select("d", "document"), on="d"
        )
        indexed_qrels = indexed_qrels.drop("row", "q", "d", "id", "document_id", strict=False)
        del qrels, standalone_documents, named
        positives = indexed_qrels.filter(pl.col("relevance") > 0).select("question", "document").unique()
        group_names = None
        if "group" in indexed_qrels.columns and indexed_qrels["group"].null_count() < len(indexed_qrels):
            group_names = indexed_qrels["group"].drop_nulls().unique().sort()
        assignment = self._assign_splits(queries, documents, indexed_qrels, positives, group_names, ratios)
        counts: Summary = {"rows_used": rows_used, "standalone_rows": rows_alone}
        counts |= {"merged_queries": rows_used - len(queries)}
        counts |= {"merged_documents": merged_documents, "queries": len(queries), "documents": len(documents)}
        counts |= summarise_splits(assignment, positives, queries["loose"])
        negative = indexed_qrels.filter(pl.col("relevance") == 0).select("question", "document").unique()
        counts["curated_negatives"] = len(negative)

        self._reject_writer.add_deferred(dict(deferred_rejects.iter_rows()), self._sources)
        self._write_queries(queries, documents, indexed_qrels, assignment, group_names)
        rows = build_corpus_rows(documents.drop("text"), bool(self._text_store.chunk_words))
        counts["chunks"] = len(rows) if self._text_store.chunk_words else 0
        self._write_corpus(rows, documents)
        chunk_qrels, n_unplaced = place_qrels_on_chunks(indexed_qrels, documents)
        if self._text_store.chunk_words:
            counts["positives_without_answer_chunk"] = n_unplaced
        counts["label_overrides"] = self._write_qrels(chunk_qrels, queries, rows, overrides_path)
        counts["answers"] = self._write_answers(queries, deferred_rejects)
        return counts

    def _resolve_qrels(self, id_column: str, trust_ids: bool) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
        intake = self._ingester
        late = [pl.DataFrame(schema={"row": pl.Int64, "reason": pl.String})]
        judgements, intake.judged = intake.judged, []
        if intake.id_qrels:
            by_id, unknown = resolve_id_qrels(
                pl.concat(intake.id_qrels), pl.concat(intake.standalone_queries), pl.concat(intake.standalone_documents)
            )
            judgements.append(by_id)
            late.append(unknown)
        nothing = {"row": pl.Int64, "q": pl.UInt64, "d": pl.UInt64, "relevance": pl.Int32}
        judged = pl.concat([pl.DataFrame(schema=nothing), *judgements], how="diagonal")
        ids = {"row": pl.Int64, "d": pl.UInt64, "document_id": pl.String}
        judged, listed = self._merge_documents(
            judged, pl.concat([pl.DataFrame(schema=ids), *intake.standalone_documents])
        )
        settled = resolve_qrels(judged, listed, trust_ids)
        if settled.has_dropped_ids:
            self.notes.append(f"{id_column} repeats for different questions, so it is not used: ids are text hashes")
        late.append(settled.rejected_rows)
        if intake.standalone_queries:
            asked = pl.concat(intake.standalone_queries)
            unused = asked.join(settled.qrels.select("q").unique(), on="q", how="anti")
            late.append(unused.select("row", reason=pl.lit(_NO_POSITIVE)))
            self._standalone_queries = asked.join(pl.concat(late), on="row", how="anti")
        return settled.qrels, settled.standalone_documents, pl.concat(late).unique("row", keep="first").sort("row")

    def _merge_documents(self, judged: pl.DataFrame, listed: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        keys = concat_unique_keys(self._text_store.document_keys or [pl.DataFrame(schema=_DOCUMENT_KEY_SCHEMA)], "d")
        self._text_store.document_keys = []
        judged, listed, self._replacements = merge_duplicate_documents(keys, judged, listed)
        self._document_keys, several = deduplicate_document_keys(keys)
        if len(several) and "chunk" in judged.columns:  # the chunk was found in another cut of title and text
            judged = judged.with_columns(
                chunk=pl.when(pl.col("d").is_in(several.implode())).then(-1).otherwise("chunk")
            )
        return judged, listed

    def _assign_query_ids(self, judged: pl.DataFrame) -> pl.DataFrame:
        keys = concat_unique_keys(self._text_store.query_keys, "key").join(
            judged.select(key="q").unique(), on="key", how="semi"
        )
        self._text_store.query_keys = []
        given = judged.select("id", key="q") if "id" in judged.columns else None
        return assign_ids(keys, given).select("loose", q="key", query_id="id").with_row_index("question")

    def _assign_document_ids(self, judged: pl.DataFrame, listed: pl.DataFrame) -> pl.DataFrame:
        used = pl.concat([judged.select(key="d"), listed.select(key="d")]).unique()
        keys = self._document_keys.rename({"d": "key"}).join(used, on="key", how="semi")
        self._document_keys = pl.DataFrame()
        named = [frame for frame in (judged, listed) if "document_id" in frame.columns]
        given = pl.concat([frame.select(key="d", id="document_id") for frame in named])
        return assign_ids(keys, given).select("chunks", "text", d="key", doc_id="id").with_row_index("document")

    def _assign_splits(
        self,
        queries: pl.DataFrame,
        documents: pl.DataFrame,
        places: pl.DataFrame,
        positives: pl.DataFrame,
        names: pl.Series | None,
        shares: SplitRatios,
    ) -> SplitAssignment:
        groups = own = None
        if names is not None:
            tied = places.select("question", "group").drop_nulls().unique()
            groups = (_to_int64(tied["question"]), np.asarray(names.search_sorted(tied["group"]), dtype=np.int64))
        if "split" in places.columns:
            own, several = resolve_table_splits(places.select("question", "split"), queries.select("question", "loose"))
            if several:
                where = "in several of the table's splits: kept in test, else dev"
                self.notes.append(f"{several:,} questions stand, some restated, {where}")
        ties = SplitConstraints(
            len(queries),
            queries["loose"].rank("dense").cast(pl.Int64).to_numpy(),
            (_to_int64(positives["question"]), _to_int64(positives["document"])),
            groups,
        )
        units = [names, documents["doc_id"], queries["query_id"]]

        def name(kind: int, number: int) -> str:
            series = units[kind]
            assert series is not None
            return str(series[number])

        assigned = assign_splits(ties, own, shares, name)
        self.notes += assigned.notes
        wanted = {"train": True, "dev": shares.dev > 0, "test": shares.test > 0}
        empty = [side for place, side in enumerate(SPLITS) if wanted[side] and place not in assigned.split_index]
        if empty:
            self.notes.append(f"no question falls into {' or '.join(empty)}: too few to divide, or all tied")
        return assigned

    def _write_queries(
        self,
        queries: pl.DataFrame,
        documents: pl.DataFrame,
        places: pl.DataFrame,
        assigned: SplitAssignment,
        names: pl.Series | None,
    ) -> None:
        units = pl.DataFrame({"side": assigned.split_index, "kind": assigned.unit_kind, "number": assigned.unit_number})
        wanted = queries.select("question", "q").hstack(units)
        if names is not None:  # a question's own group is its group, whatever the unit is named
            own = places.select("question", "group").drop_nulls().group_by("question").agg(pl.col("group").min())
            wanted = wanted.join(own, on="question", how="left")
        else:
            wanted = wanted.with_columns(group=pl.lit(None, dtype=pl.String))
        units_by_kind = (names, documents["doc_id"], queries["query_id"])

        def shape(bucket: pl.DataFrame) -> pl.DataFrame:
            frame = bucket.unique("key").join(wanted, left_on="key", right_on="q")
            parts = []
            for kind, series in enumerate(units_by_kind):
                part = frame.filter(pl.col("kind") == kind)
                if len(part) and series is not None:
                    unit = series.gather(part["number"])
                    parts.append(part.with_columns(group=part["group"].fill_null(unit)))
            frame = pl.concat(parts) if parts else frame
            split = pl.col("side").replace_strict(dict(enumerate(SPLITS)), return_dtype=pl.String)
            ids = queries["query_id"].gather(frame["question"])
            return frame.select("query", "group", position="question", split=split, query_id=ids)

        path = self._out / "queries.parquet"
        write_sorted(path, QUERIES, self._text_store.queries, shape, len(queries), self._scratch_dir / "queries-sorted")

    def _write_corpus(self, rows: pl.DataFrame, documents: pl.DataFrame) -> None:
        words, overlap = self._text_store.chunk_words, self._text_store.chunk_overlap
        texts = documents.select("d", key="text")

        def shape(bucket: pl.DataFrame) -> pl.DataFrame:
            meta = [pl.col(name).min() for name in ("title", "category", "group")]
            frame = replace_keys(bucket, self._replacements).join(texts, on=["d", "key"], how="semi")
            frame = frame.group_by("d").agg(pl.col("text").first(), *meta)
            frame = chunk_documents(frame, words, overlap).join(
                rows.select("position", "chunk", "d"), on=["d", "chunk"]
            )
            return frame.drop("d", "chunk").with_columns(doc_id=rows["doc_id"].gather(frame["position"]))

        path = self._out / "corpus.parquet"
        write_sorted(path, CORPUS, self._text_store.documents, shape, len(rows), self._scratch_dir / "corpus-sorted")

    def _write_qrels(
        self, judgements: pl.DataFrame, queries: pl.DataFrame, rows: pl.DataFrame, decisions: Path | None
    ) -> int:
        """Write qrels.parquet, and label_overrides.parquet: those that a person decided. Returns how many these are."""
        found = judgements.join(rows.select("document", "chunk", "position"), on=["document", "chunk"])
        found = found.select("question", "position", "relevance")
        known = pl.DataFrame(schema={name: OVERRIDE_SCHEMA[name] for name in QRELS.names})
        if decisions:
            made = read_label_overrides(decisions)
            found, unknown = apply_label_overrides(found, made, queries, rows)
            self.notes += reject_unknown_overrides(unknown, decisions, self._reject_writer)
            known = made.join(unknown, on="row", how="anti").select(known.columns)
        write_table(known.sort("query_id", "doc_id"), QRELS, self._out / "label_overrides.parquet")
        found = found.sort("question", "position")
        with pq.ParquetWriter(self._out / "qrels.parquet", QRELS, compression="zstd") as writer:
            for part in found.iter_slices(_SLICE_ROWS):
                query_id = queries["query_id"].gather(part["question"])
                doc_id = rows["doc_id"].gather(part["position"])
                frame = pl.DataFrame({"query_id": query_id, "doc_id": doc_id, "relevance": part["relevance"]})
                write_row_groups(writer, frame, QRELS)
        return len(known)

    def _write_answers(self, queries: pl.DataFrame, late: pl.DataFrame) -> int:
        unused = late.filter(pl.col("reason") != PARTLY_CONTRADICTORY).select("row")
        wanted = queries.select(position="question", key="q")

        def shape(bucket: pl.DataFrame) -> pl.DataFrame:
            kept = bucket.join(unused, on="row", how="anti").drop("row").unique().join(wanted, on="key").drop("key")
            return kept.with_columns(query_id=queries["query_id"].gather(kept["position"]))

        path = self._out / "answers.parquet"
        return write_sorted(
            path, ANSWERS, self._text_store.answers, shape, len(queries), self._scratch_dir / "answers-sorted"
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
