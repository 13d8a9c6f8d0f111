"""The sources of one run, by kind, and their way into the intake."""

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from stages.core.schemas import Progress
from stages.pairs.beir import CORPUS, QUERIES, qrels_parts
from stages.pairs.columns import choose, choose_corpus, own_split
from stages.pairs.ingest import Intake
from stages.readers.base import Source


@dataclass(frozen=True)
class Inputs:
    """Tables of pairs, tables of documents, and a BEIR folder's files (corpus, queries, then qrels)."""

    tables: list[Source]
    corpora: list[Source] = field(default_factory=list)
    beir: list[Source] = field(default_factory=list)

    @property
    def all(self) -> list[Source]:
        """Every source, in the order in which rows are numbered."""
        return [*self.tables, *self.corpora, *self.beir]


@contextmanager
def no_collector() -> Iterator[None]:
    """Switch Python's cycle collector off: rows make no cycles, and it would look through millions of them in vain
    (measured: a third of the time of a table with short rows)."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def take_all(
    inputs: Inputs, named: Mapping[str, str | None], intake: Intake, progress: Progress
) -> tuple[dict[str, str], list[str]]:
    """Read every source; returns the columns chosen in the first table, and what to say about the choices."""
    columns: dict[str, str] = {}
    notes: list[str] = []
    for number, source in enumerate(inputs.all):
        place = number - len(inputs.tables) - len(inputs.corpora)
        parts: Mapping[str, str]
        if number < len(inputs.tables):
            choice = choose(source, named)
            parts = choice.parts
            columns = columns or choice.parts
            progress.say(f"{source.label}: " + ", ".join(f"{part} = {name!r}" for part, name in parts.items()))
            notes += [f"{source.label}: {note}" for note in choice.notes]
        elif place < 0:
            parts = choose_corpus(source, named)
        else:
            parts = (CORPUS, QUERIES)[place] if place < 2 else qrels_parts(source)
        for batch in source.read():
            if number < len(inputs.tables):
                intake.take_pairs(number, source, batch, parts)
            elif place <= 0:
                intake.take_documents(number, source, batch, parts)
            elif place == 1:
                intake.take_questions(number, source, batch, parts)
            else:
                intake.take_qrels(number, source, batch, parts, own_split(Path(source.label).stem) or "")
            progress.advance(intake.counts["rows in"], None, "rows")
    return columns, notes
