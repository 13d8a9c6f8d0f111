"""How far a run is, on stderr: bars and rates on a terminal, plain timed lines in cron and CI."""

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_PLAIN_EVERY_SECONDS = 15.0


class Quiet:
    """Says nothing (-q)."""

    def advance(self, done: int, total: int | None, unit: str, tokens: int = 0) -> None:
        """Nothing is shown."""

    def say(self, message: str) -> None:
        """Nothing is shown."""

    def close(self) -> None:
        """Nothing to end."""


class Plain(Quiet):
    """One timed line for each thing said, and every 15 seconds one on how far the work is (each second with -v)."""

    def __init__(self, verbose: bool = False) -> None:
        self.every = 1.0 if verbose else _PLAIN_EVERY_SECONDS
        self.meter = Meter()
        self.last = time.monotonic()

    def advance(self, done: int, total: int | None, unit: str, tokens: int = 0) -> None:
        """Print the state if the last line is old enough."""
        rate = self.meter.rate(done, unit)
        now = time.monotonic()
        if now - self.last < self.every:
            return
        self.last = now
        of = f" of {total:,}" if total else ""
        left = f", {(total - done) / rate:,.0f} s left" if total and rate else ""
        speed = f", {_figure(rate)} {unit}/s{_reading(done, rate, tokens)}" if rate else ""
        self.say(f"  {done:,}{of} {unit}{speed}{left}")

    def say(self, message: str) -> None:
        """Print one line with the time of day."""
        print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


class Terminal(Quiet):
    """A live bar with rate and time left under the lines that were said."""

    def __init__(self) -> None:
        self.meter = Meter()
        self.bars = Progress(
            TextColumn("  {task.description:<8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self.bars.start()
        self.task: TaskID | None = None
        self.unit = ""

    def advance(self, done: int, total: int | None, unit: str, tokens: int = 0) -> None:
        """Move the bar; a new unit or a smaller count begins a new one."""
        rate = self.meter.rate(done, unit)
        rates = f"{_figure(rate)}/s{_reading(done, rate, tokens)}" if rate else ""
        if self.task is None or unit != self.unit or self.meter.restarted:
            self._drop()
            self.task = self.bars.add_task(unit, total=total, rate=rates)
            self.unit = unit
        self.bars.update(self.task, completed=done, total=total, rate=rates)

    def say(self, message: str) -> None:
        """Print one line above the bar."""
        self._drop()
        self.bars.console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {_escape(message)}", highlight=False)

    def close(self) -> None:
        """Take the bar away."""
        self._drop()
        self.bars.stop()

    def _drop(self) -> None:
        if self.task is not None:
            self.bars.remove_task(self.task)
            self.task = None


class Meter:
    """The rate since the count of a unit began."""

    def __init__(self) -> None:
        self.unit, self.first, self.done, self.since = "", 0, 0, time.monotonic()
        self.restarted = False

    def rate(self, done: int, unit: str) -> float:
        """Units a second so far; 0 where it is not known yet, as at the first that is heard of a unit."""
        now = time.monotonic()
        self.restarted = unit != self.unit or done < self.done
        if self.restarted:
            self.unit, self.first, self.since = unit, done, now
        self.done = done
        return (done - self.first) / (now - self.since) if now > self.since else 0.0


def _reading(done: int, rate: float, tokens: int) -> str:
    return f", {_figure(tokens / done * rate)} tokens/s" if tokens and done else ""


def _figure(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def _escape(message: str) -> str:
    from rich.markup import escape

    return escape(message)


def progress_for(quiet: bool, verbose: bool) -> Any:
    """The right progress for this run: quiet, a live bar on a terminal, or plain lines elsewhere."""
    if quiet:
        return Quiet()
    return Terminal() if sys.stderr.isatty() else Plain(verbose)
