"""Results on stdout, for a person: lines as they are, tables drawn by rich."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import rich.table
from rich.console import Console
from rich.text import Text


@dataclass(frozen=True)
class ResultTable:
    """A table to print: column names and rows of already formatted cells; numbers stand right-aligned."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    wrapped_columns: frozenset[str] = field(default_factory=frozenset)
    """Columns that hold prose and may wrap."""


@dataclass(frozen=True)
class CommandResult:
    """What a command found: `data` for --json, `parts` for a person."""

    data: dict[str, Any]
    parts: Sequence[str | ResultTable]


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """A reader that has seen enough is no failure; rich would exit with 1."""
        raise BrokenPipeError


def print_parts(parts: Sequence[str | ResultTable]) -> None:
    """Print lines and tables; wide output is not cut where stdout is a file or a pipe."""
    if sys.stdout is None:  # closed by whoever started us
        return
    console = _Console(width=None if sys.stdout.isatty() else 160, highlight=False, soft_wrap=False)
    for part in parts:
        if isinstance(part, str):
            console.print(Text(part), soft_wrap=True)
            continue
        table = rich.table.Table(title=part.title, title_justify="left", title_style="bold", box=rich.box.SIMPLE_HEAD)
        for name, cells in zip(
            part.columns, zip(*part.rows, strict=True) if part.rows else [()] * len(part.columns), strict=True
        ):
            is_numeric = all(_is_numeric_cell(cell) for cell in cells) and bool(cells)
            table.add_column(
                name,
                justify="right" if is_numeric else "left",
                no_wrap=name not in part.wrapped_columns,
                overflow="fold",
            )
        for row in part.rows:
            table.add_row(*(Text(cell) for cell in row))
        console.print(table)


def _is_numeric_cell(cell: str) -> bool:
    return (
        not cell
        or cell.lstrip("+-").replace(",", "").replace(".", "", 1).replace("%", "").strip().isdigit()
        or cell == "-"
    )
