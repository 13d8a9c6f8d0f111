"""Results on stdout for a person: lines as they are, tables that fit the terminal. NO_COLOR is honoured (by rich)."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import rich.table
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

PIPE_WIDTH = 160
"""Columns of a table's text if stdout is a file or a pipe."""
_MIN_TEXT_WIDTH = 12
"""A column of text is never made narrower; if there is no room for it, each row is printed as a list."""


@dataclass(frozen=True)
class ResultTable:
    """A table to print: column names, and rows of formatted cells. Numbers stand right-aligned."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


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
    """Print lines and tables."""
    if sys.stdout is None:  # closed by whoever started us
        return
    console = _Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False, soft_wrap=False)
    for number, part in enumerate(parts):
        if number and ResultTable in (type(part), type(parts[number - 1])):
            console.print()
        if isinstance(part, str):
            console.print(Text(part), soft_wrap=True)
        elif widths := fit_column_widths(part, console.width):
            _print_table(console, part, widths)
        else:
            _print_row_lists(console, part)


def fit_column_widths(table: ResultTable, max_width: int) -> list[int] | None:
    """The width of each column, so that the table takes at most `max_width`; None if that leaves text too little room.

    Numbers and short cells are never broken. Longer text shares what is left, and wraps.
    """
    columns = list(zip(table.columns, _list_column_cells(table), strict=True))
    widths = [max(_measure_longest_word(name), *map(cell_len, cells), 0) for name, cells in columns]
    room = max_width - 3 * (len(widths) - 1)  # a space, a divider and a space between two columns
    wrapped = [
        number
        for number, (_, cells) in enumerate(columns)
        if widths[number] > _MIN_TEXT_WIDTH and not all(map(_is_numeric_cell, cells))
    ]
    room -= sum(width for number, width in enumerate(widths) if number not in wrapped)
    for n_left, number in zip(range(len(wrapped), 0, -1), sorted(wrapped, key=widths.__getitem__), strict=True):
        widths[number] = min(widths[number], max(room // n_left, _MIN_TEXT_WIDTH))
        room -= widths[number]
    return widths if room >= 0 else None


def _print_table(console: Console, table: ResultTable, widths: Sequence[int]) -> None:
    drawn = rich.table.Table(
        title=table.title or None, title_justify="left", title_style="bold", box=rich.box.SIMPLE_HEAD, show_edge=False,
        pad_edge=False,
    )  # fmt: skip
    for name, cells, width in zip(table.columns, _list_column_cells(table), widths, strict=True):
        is_numeric = bool(cells) and all(map(_is_numeric_cell, cells))
        drawn.add_column(name, justify="right" if is_numeric else "left", width=width, overflow="fold")
    for row in table.rows:
        drawn.add_row(*map(Text, row))
    console.print(drawn)


def _print_row_lists(console: Console, table: ResultTable) -> None:
    if table.title:
        console.print(Text(table.title, "bold"))
    for number, row in enumerate(table.rows):
        if number or table.title:
            console.print()
        for name, cell in zip(table.columns, row, strict=True):
            if cell:
                console.print(Text(f"{name.strip()}: {cell}" if name.strip() else cell))


def _list_column_cells(table: ResultTable) -> list[list[str]]:
    return [[row[number] for row in table.rows] for number in range(len(table.columns))]


def _measure_longest_word(text: str) -> int:
    return max(map(cell_len, text.split()), default=0)


def _is_numeric_cell(cell: str) -> bool:
    digits = cell.lstrip("+-").replace(",", "").replace(".", "", 1).replace("%", "").strip()
    return cell in ("", "-") or digits.isdigit()


def format_duration(seconds: float) -> str:
    """A time as people say it: 4.2 s, 12 min, 3.1 h."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def format_bytes(n_bytes: float) -> str:
    """Bytes as people say them: 25 MB, 1.2 GB."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"
