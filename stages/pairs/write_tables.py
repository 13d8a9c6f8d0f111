"""From what the intake gathered to the five tables: judgements settled, ids given, sides drawn, rows written sorted."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from stages.core.errors import InputError
from stages.core.schemas import ANSWERS, CORPUS, QRELS, QUERIES, SPLITS, Summary, write_table
from stages.pairs.beir import resolve
from stages.pairs.chunking import best_judgements, corpus_rows, cut_frame
from stages.pairs.deduplicate import merge_titles, one_text, replaced
from stages.pairs.external_sort import write_groups, write_sorted
from stages.pairs.ingest import Intake
from stages.pairs.label_overrides import DECISION, decided, read_decisions, reject
from stages.pairs.qrels import PARTLY, final_ids, settle, unique_keys
from stages.pairs.rejects import Rejects
from stages.pairs.split import Assigned, Shares, Ties, assign, own_sides, split_counts
from stages.readers.base import Source

_SLICE = 1 << 20
_NO_POSITIVE = "no positive document"


class Assembler:
    """Turns an `Intake` into queries, corpus, qrels and answers in `out`. Texts are known by keys, then by places:
    a question's or document's place is its number in the order of the ids."""

    def __init__(self, intake: Intake, rejects: Rejects, sources: Sequence[Source], out: Path, scratch: Path) -> None:
        self._intake, self._texts, self._rejects, self._sources = intake, intake.texts, rejects, sources
        self._out, self._scratch = out, scratch
        self._asked = pl.DataFrame()
        self._became = pl.DataFrame()
        self._document_keys = pl.DataFrame()
        self.notes: list[str] = []

    def write(self, shares: Shares, id_column: str, trust_ids: bool, decisions: Path | None = None) -> Summary:
        """Write the tables; returns their counts. Raises `InputError` where no row is usable.

        `trust_ids` says whether `id_column` was named by the user, or only recognised; `decisions` is a file of
        `stages.pairs.label_overrides`.
        """
        judged, listed, late = self._settled(id_column, trust_ids)
        if not len(judged):
            self._rejects.add_late(dict(late.iter_rows()), self._sources)
            raise InputError(self._nothing_left())
        rows_used = judged["row"].n_unique()
        queries, documents = self._query_ids(judged), self._document_ids(judged, listed)
        # a BEIR folder has rows that are only a document or only a question; a corpus has the former
        rows_alone = len(listed) + len(self._asked)
        named = judged.select("row", "d").unique() if "chunk" in judged.columns else judged
        merged_documents = len(named) - judged["d"].n_unique()
        places = judged.join(queries.select("q", "question"), on="q").join(documents.select("d", "document"), on="d")
        places = places.drop("row", "q", "d", "id", "document_id", strict=False)
        del judged, listed, named
        positives = places.filter(pl.col("relevance") > 0).select("question", "document").unique()
        names = None
        if "group" in places.columns and places["group"].null_count() < len(places):
            names = places["group"].drop_nulls().unique().sort()
        assigned = self._assign(queries, documents, places, positives, names, shares)
        counts: Summary = {"rows_used": rows_used, "rows_of_one_text": rows_alone}
        counts |= {"merged_questions": rows_used - len(queries)}
        counts |= {"merged_documents": merged_documents, "queries": len(queries), "documents": len(documents)}
        counts |= split_counts(assigned, positives, queries["loose"])
        negative = places.filter(pl.col("relevance") == 0).select("question", "document").unique()
        counts["curated_negatives"] = len(negative)

        self._rejects.add_late(dict(late.iter_rows()), self._sources)
        self._write_queries(queries, documents, places, assigned, names)
        rows = corpus_rows(documents.drop("text"), bool(self._texts.words))
        counts["chunks"] = len(rows) if self._texts.words else 0
        self._write_corpus(rows, documents)
        judgements, whole = best_judgements(places, documents)
        if self._texts.words:
            counts["positives_by_all_chunks"] = whole
        counts["decided"] = self._write_qrels(judgements, queries, rows, decisions)
        counts["answers"] = self._write_answers(queries, late)
        return counts

    def _settled(self, id_column: str, trust_ids: bool) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
        intake = self._intake
        late = [pl.DataFrame(schema={"row": pl.Int64, "reason": pl.String})]
        judgements, intake.judged = intake.judged, []
        if intake.qrels:
            by_id, unknown = resolve(intake)
            judgements += by_id
            late.append(unknown)
        nothing = {"row": pl.Int64, "q": pl.UInt64, "d": pl.UInt64, "relevance": pl.Int32}
        judged = pl.concat([pl.DataFrame(schema=nothing), *judgements], how="diagonal")
        ids = {"row": pl.Int64, "d": pl.UInt64, "document_id": pl.String}
        judged, listed = self._merged(judged, pl.concat([pl.DataFrame(schema=ids), *intake.listed]))
        settled = settle(judged, listed, trust_ids)
        if settled.ids_dropped:
            self.notes.append(f"{id_column} repeats for different questions, so it is not used: ids are text hashes")
        late.append(settled.rejected)
        if intake.asked:
            asked = pl.concat(intake.asked)
            unused = asked.join(settled.judged.select("q").unique(), on="q", how="anti")
            late.append(unused.select("row", reason=pl.lit(_NO_POSITIVE)))
            self._asked = asked.join(pl.concat(late), on="row", how="anti")
        return settled.judged, settled.listed, pl.concat(late).unique("row", keep="first").sort("row")

    def _merged(self, judged: pl.DataFrame, listed: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        keys = unique_keys(self._texts.document_keys or [pl.DataFrame(schema=_DOCUMENT)], "d")
        self._texts.document_keys = []
        judged, listed, self._became = merge_titles(keys, judged, listed)
        self._document_keys, several = one_text(keys)
        if len(several) and "chunk" in judged.columns:  # the chunk was told from another cut of title and text
            judged = judged.with_columns(
                chunk=pl.when(pl.col("d").is_in(several.implode())).then(-1).otherwise("chunk")
            )
        return judged, listed

    def _query_ids(self, judged: pl.DataFrame) -> pl.DataFrame:
        keys = unique_keys(self._texts.query_keys, "key").join(judged.select(key="q").unique(), on="key", how="semi")
        self._texts.query_keys = []
        given = judged.select("id", key="q") if "id" in judged.columns else None
        return final_ids(keys, given).select("loose", q="key", query_id="id").with_row_index("question")

    def _document_ids(self, judged: pl.DataFrame, listed: pl.DataFrame) -> pl.DataFrame:
        used = pl.concat([judged.select(key="d"), listed.select(key="d")]).unique()
        keys = self._document_keys.rename({"d": "key"}).join(used, on="key", how="semi")
        self._document_keys = pl.DataFrame()
        named = [frame for frame in (judged, listed) if "document_id" in frame.columns]
        given = pl.concat([frame.select(key="d", id="document_id") for frame in named])
        return final_ids(keys, given).select("chunks", "text", d="key", doc_id="id").with_row_index("document")

    def _assign(
        self,
        queries: pl.DataFrame,
        documents: pl.DataFrame,
        places: pl.DataFrame,
        positives: pl.DataFrame,
        names: pl.Series | None,
        shares: Shares,
    ) -> Assigned:
        groups = own = None
        if names is not None:
            tied = places.select("question", "group").drop_nulls().unique()
            groups = (_ints(tied["question"]), np.asarray(names.search_sorted(tied["group"]), dtype=np.int64))
        if "split" in places.columns:
            own, several = own_sides(places.select("question", "split"), queries.select("question", "loose"))
            if several:
                where = "in several of the table's splits: kept in test, else dev"
                self.notes.append(f"{several:,} questions stand, some restated, {where}")
        ties = Ties(
            len(queries),
            queries["loose"].rank("dense").cast(pl.Int64).to_numpy(),
            (_ints(positives["question"]), _ints(positives["document"])),
            groups,
        )
        units = [names, documents["doc_id"], queries["query_id"]]

        def name(kind: int, number: int) -> str:
            series = units[kind]
            assert series is not None
            return str(series[number])

        assigned = assign(ties, own, shares, name)
        self.notes += assigned.notes
        wanted = {"train": True, "dev": shares.dev > 0, "test": shares.test > 0}
        empty = [side for place, side in enumerate(SPLITS) if wanted[side] and place not in assigned.side]
        if empty:
            self.notes.append(f"no question falls into {' or '.join(empty)}: too few to divide, or all tied")
        return assigned

    def _write_queries(
        self,
        queries: pl.DataFrame,
        documents: pl.DataFrame,
        places: pl.DataFrame,
        assigned: Assigned,
        names: pl.Series | None,
    ) -> None:
        units = pl.DataFrame({"side": assigned.side, "kind": assigned.kind, "number": assigned.number})
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
        write_sorted(path, QUERIES, self._texts.queries, shape, len(queries), self._scratch / "queries-sorted")

    def _write_corpus(self, rows: pl.DataFrame, documents: pl.DataFrame) -> None:
        words, overlap = self._texts.words, self._texts.overlap
        texts = documents.select("d", key="text")

        def shape(bucket: pl.DataFrame) -> pl.DataFrame:
            meta = [pl.col(name).min() for name in ("title", "category", "group")]
            frame = replaced(bucket, self._became).join(texts, on=["d", "key"], how="semi")
            frame = frame.group_by("d").agg(pl.col("text").first(), *meta)
            frame = cut_frame(frame, words, overlap).join(rows.select("position", "chunk", "d"), on=["d", "chunk"])
            return frame.drop("d", "chunk").with_columns(doc_id=rows["doc_id"].gather(frame["position"]))

        path = self._out / "corpus.parquet"
        write_sorted(path, CORPUS, self._texts.documents, shape, len(rows), self._scratch / "corpus-sorted")

    def _write_qrels(
        self, judgements: pl.DataFrame, queries: pl.DataFrame, rows: pl.DataFrame, decisions: Path | None
    ) -> int:
        """Write qrels.parquet, and decided.parquet: those that a person decided. Returns how many these are."""
        found = judgements.join(rows.select("document", "chunk", "position"), on=["document", "chunk"])
        found = found.select("question", "position", "relevance")
        known = pl.DataFrame(schema={name: DECISION[name] for name in QRELS.names})
        if decisions:
            made = read_decisions(decisions)
            found, unknown = decided(found, made, queries, rows)
            self.notes += reject(unknown, decisions, self._rejects)
            known = made.join(unknown, on="row", how="anti").select(known.columns)
        write_table(known.sort("query_id", "doc_id"), QRELS, self._out / "decided.parquet")
        found = found.sort("question", "position")
        with pq.ParquetWriter(self._out / "qrels.parquet", QRELS, compression="zstd") as writer:
            for part in found.iter_slices(_SLICE):
                query_id = queries["query_id"].gather(part["question"])
                doc_id = rows["doc_id"].gather(part["position"])
                frame = pl.DataFrame({"query_id": query_id, "doc_id": doc_id, "relevance": part["relevance"]})
                write_groups(writer, frame, QRELS)
        return len(known)

    def _write_answers(self, queries: pl.DataFrame, late: pl.DataFrame) -> int:
        unused = late.filter(pl.col("reason") != PARTLY).select("row")
        wanted = queries.select(position="question", key="q")

        def shape(bucket: pl.DataFrame) -> pl.DataFrame:
            kept = bucket.join(unused, on="row", how="anti").drop("row").unique().join(wanted, on="key").drop("key")
            return kept.with_columns(query_id=queries["query_id"].gather(kept["position"]))

        path = self._out / "answers.parquet"
        return write_sorted(path, ANSWERS, self._texts.answers, shape, len(queries), self._scratch / "answers-sorted")

    def _nothing_left(self) -> str:
        counts = self._rejects.counts
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in counts.most_common())
        rows = self._intake.counts["rows in"]
        names = ", ".join(source.label for source in self._sources)
        if not rows:
            return f"{names}: there are column names but no rows."
        return f"{names}: none of {rows:,} rows is usable: {reasons}. Check which columns are named."


_DOCUMENT = {"d": pl.UInt64, "low": pl.UInt64, "chunks": pl.Int32, "text": pl.UInt64}


def _ints(series: pl.Series) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    return series.cast(pl.Int64).to_numpy()
