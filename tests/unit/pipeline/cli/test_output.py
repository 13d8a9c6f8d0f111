"""Tables fit the terminal: numbers stay whole, text wraps, and a very narrow terminal gets a list of each row."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from pipeline.cli.output import ResultTable, fit_column_widths, format_bytes, format_duration
from tests.conftest import ROOT

TABLE = ResultTable("quality", ["", "nDCG@10", "remark"], [["embedder", "0.706", "a " * 30], ["tuned", "0.771", "b"]])


def test_text_gets_the_width_that_numbers_leave() -> None:
    # 8 (embedder) + 7 (nDCG@10) + 3 between two columns each
    assert fit_column_widths(TABLE, 80) == [8, 7, 59]
    assert fit_column_widths(TABLE, 61) == [8, 7, 40]
    assert fit_column_widths(TABLE, 33) == [8, 7, 12]
    assert fit_column_widths(TABLE, 32) is None


def test_long_columns_share_the_remaining_width() -> None:
    table = ResultTable("", ["n", "short", "long"], [["1,234", "x" * 20, "y" * 90]])
    assert fit_column_widths(table, 101) == [5, 20, 70]
    assert fit_column_widths(table, 41) == [5, 15, 15]


def test_a_table_without_rows_is_as_wide_as_its_header() -> None:
    assert fit_column_widths(ResultTable("", ["stage", "peak memory"], []), 80) == [5, 6]


def print_on_terminal(width: int, **environment: str) -> list[str]:
    """What a process prints for TABLE on a terminal of this width, line by line."""
    script = "from tests.unit.pipeline.cli.test_output import TABLE\nfrom pipeline.cli.output import print_parts\n"
    script += "print_parts(['a line', TABLE])"
    reader, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    settings = {**kept, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **environment}
    process = subprocess.Popen([sys.executable, "-c", script], stdin=terminal, stdout=terminal, env=settings)
    os.close(terminal)
    output = b""
    try:
        while block := os.read(reader, 4096):
            output += block
    except OSError:  # the process has ended
        pass
    os.close(reader)
    assert process.wait() == 0
    return output.decode().splitlines()


@pytest.mark.parametrize("width", [100, 60, 33, 20])
def test_no_line_is_wider_than_the_terminal_and_no_number_is_cut(width: int) -> None:
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in print_on_terminal(width)]
    assert max(map(len, lines)) <= width
    assert {"0.706", "0.771", "embedder", "tuned"} <= set(" ".join(lines).split())


def test_no_color_is_honoured() -> None:
    assert not [line for line in print_on_terminal(60, NO_COLOR="1") if re.search(r"\x1b\[[\d;]*3\d", line)]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0.0 s"), (59.94, "59.9 s"), (90, "1.5 min"), (5_399, "90.0 min"), (7_200, "2.0 h")]
)
def test_durations_have_the_unit_that_fits(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_sizes_have_the_unit_that_fits() -> None:
    assert [format_bytes(count) for count in (1_500_000, 2_340_000_000)] == ["2 MB", "2.3 GB"]
