"""Pairs: tables of questions and documents become queries, corpus, qrels and answers, cleaned, merged and split."""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from stages.core.context import NullProgress, Progress, StageContext, Summary
from stages.core.errors import InputError
from stages.pairs.columns import PAIR_ROLES
from stages.pairs.ingest import Ingester
from stages.pairs.params import Params
from stages.pairs.rejects import RejectWriter
from stages.pairs.sources import (
    PairSources,
    find_input_files,
    ingest_sources,
    open_sources,
    pause_garbage_collection,
)
from stages.pairs.split import SplitRatios
from stages.pairs.text_store import TextStore
from stages.pairs.write_tables import TableWriter
from stages.readers.dataframe import dataframe_source

VERSION = 7


def key_extras(params: Params) -> dict[str, str]:
    """The content of the input: a digest for each file's name, and one for the rows of the SQL query."""
    digests = find_input_files(params).digest()
    if not digests:
        raise InputError(
            "there is no input: set tables under [pairs] in prep.toml, or name a table, as in prep build-pairs faq.csv"
        )
    return digests


def run(params: Params, inputs: Mapping[str, Path], out: Path, context: StageContext) -> Summary:
    """Write the tables of the pairs into `out`. The tables that are read may be larger than the memory."""
    scratch = context.scratch_dir / "pairs"
    shutil.rmtree(scratch, ignore_errors=True)
    files = find_input_files(params)
    try:
        return _build_tables(params, open_sources(files, params), files.label_overrides, out, scratch, context.progress)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@dataclass(frozen=True)
class PairTables:
    """The pairs as frames, under the schemas of `stages.core.schemas`, with the funnel in `summary`."""

    queries: pl.DataFrame
    corpus: pl.DataFrame
    qrels: pl.DataFrame
    label_overrides: pl.DataFrame
    answers: pl.DataFrame
    near_duplicates: pl.DataFrame
    rejects: pl.DataFrame
    summary: Summary


def build_pairs(frames: Any, params: Params | None = None) -> PairTables:
    """Pairs from a pandas or polars DataFrame, or a sequence of them, in Python.

    >>> import polars as pl
    >>> table = pl.DataFrame({"question": ["Who pays?"], "answer": ["The sender pays."]})
    >>> build_pairs(table).queries["query"].to_list()
    ['Who pays?']
    """
    several = list(frames) if isinstance(frames, (list, tuple)) else [frames]
    names = ["table" if len(several) == 1 else f"table {number}" for number in range(1, len(several) + 1)]
    sources = [dataframe_source(frame, name) for frame, name in zip(several, names, strict=True)]
    with tempfile.TemporaryDirectory(prefix="prep-pairs-") as folder:
        out = Path(folder) / "out"
        out.mkdir()
        params = params or Params()
        files = find_input_files(params.model_copy(update={"tables": (), "sql": None, "beir": None}))
        inputs = replace(open_sources(files, params), tables=sources)
        summary = _build_tables(params, inputs, files.label_overrides, out, Path(folder) / "scratch", NullProgress())
        tables = {path.stem: pl.read_parquet(path, memory_map=False) for path in out.iterdir()}
    return PairTables(**tables, summary=summary)


def _build_tables(
    params: Params, inputs: PairSources, overrides_path: Path | None, out: Path, scratch: Path, progress: Progress
) -> Summary:
    reject_writer = RejectWriter(out / "rejects.parquet")
    try:
        text_store = TextStore(scratch, params.chunk_words, params.chunk_overlap)
        ingester = Ingester(text_store, reject_writer, params.value_separator)
        column_options = {role: getattr(params, role) for role in PAIR_ROLES}
        with pause_garbage_collection():
            columns, notes = ingest_sources(inputs, column_options, ingester, progress)
        table_writer = TableWriter(ingester, reject_writer, inputs.all_sources, out, scratch)
        ratios = SplitRatios(params.dev_ratio, params.test_ratio, params.split_by, params.split_seed)
        counts = table_writer.write(
            ratios, f"column {columns.get('id')!r}", trust_ids=bool(params.id), overrides_path=overrides_path
        )
    finally:
        reject_writer.close()
    if n_large_cells := ingester.counts["cells over 1 MB"]:
        notes.append(f"{n_large_cells:,} cells are over 1 MB (kept whole)")
    if counts.get("positives_without_answer_chunk"):
        notes.append(
            f"{counts['positives_without_answer_chunk']:,} positives: no chunk holds an answer, so all chunks count"
        )
    notes += table_writer.notes
    for note in notes:
        progress.log(note)
    rejected = dict(sorted(reject_writer.counts.items()))
    return {"rows_in": ingester.counts["rows in"], "rejected": rejected, **counts, "columns": columns, "notes": notes}
