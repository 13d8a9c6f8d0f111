"""The sources of one run, by kind, and their way into the intake."""

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from stages.core.context import Progress
from stages.pairs.beir import CORPUS_COLUMNS, QUERY_COLUMNS, find_qrels_columns
from stages.pairs.columns import choose_corpus_columns, choose_pair_columns, parse_split
from stages.pairs.ingest import Ingester
from stages.readers.base import TableSource


@dataclass(frozen=True)
class PairSources:
    """Tables of pairs, tables of documents, and a BEIR folder's files (corpus, queries, then qrels)."""

    tables: list[TableSource]
    corpora: list[TableSource] = field(default_factory=list)
    beir: list[TableSource] = field(default_factory=list)

    @property
    def all_sources(self) -> list[TableSource]:
        """Every source, in the order in which rows are numbered."""
        return [*self.tables, *self.corpora, *self.beir]


@contextmanager
def pause_garbage_collection() -> Iterator[None]:
    """Switch Python's cycle collector off: rows make no cycles, and it would look through millions of them in vain
    (measured: a third of the time of a table with short rows)."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def ingest_sources(
    inputs: PairSources, column_options: Mapping[str, str | None], ingester: Ingester, progress: Progress
) -> tuple[dict[str, str], list[str]]:
    """Read every source; returns the columns chosen in the first table, and what to say about the choices."""
    columns: dict[str, str] = {}
    notes: list[str] = []
    for source_number, source in enumerate(inputs.all_sources):
        beir_index = source_number - len(inputs.tables) - len(inputs.corpora)
        column_by_role: Mapping[str, str]
        if source_number < len(inputs.tables):
            mapping = choose_pair_columns(source, column_options)
            column_by_role = mapping.column_by_role
            columns = columns or mapping.column_by_role
            progress.log(f"{source.label}: " + ", ".join(f"{role} = {name!r}" for role, name in column_by_role.items()))
            notes += [f"{source.label}: {note}" for note in mapping.notes]
        elif beir_index < 0:
            column_by_role = choose_corpus_columns(source, column_options)
        else:
            column_by_role = (
                (CORPUS_COLUMNS, QUERY_COLUMNS)[beir_index] if beir_index < 2 else find_qrels_columns(source)
            )
        for batch in source.read():
            if source_number < len(inputs.tables):
                ingester.add_pairs(source_number, source, batch, column_by_role)
            elif beir_index <= 0:
                ingester.add_documents(source_number, source, batch, column_by_role)
            elif beir_index == 1:
                ingester.add_queries(source_number, source, batch, column_by_role)
            else:
                ingester.add_qrels(
                    source_number, source, batch, column_by_role, parse_split(Path(source.label).stem) or ""
                )
            progress.advance(ingester.counts["rows in"], None, "rows")
    return columns, notes
