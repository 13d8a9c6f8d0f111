"""Progress on stderr: a bar and a rate on a terminal, plain timed lines in cron and CI."""

import sys
import time

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from stages.core.context import NullProgress

_LINE_INTERVAL_SECONDS = 15.0


class LineProgress(NullProgress):
    """One timed line for each message, and one every 15 seconds with the state of the work (every second with -v)."""

    def __init__(self, verbose: bool = False) -> None:
        self.interval_seconds = 1.0 if verbose else _LINE_INTERVAL_SECONDS
        self.rate_meter = RateMeter()
        self.last_logged_at = time.monotonic()

    def advance(self, done: int, total: int | None, unit: str, tokens: int = 0) -> None:
        """Print the state if the last line is old enough."""
        rate = self.rate_meter.update_rate(done, unit)
        now = time.monotonic()
        if now - self.last_logged_at < self.interval_seconds:
            return
        self.last_logged_at = now
        total_text = f" of {total:,}" if total else ""
        remaining_text = f", {(total - done) / rate:,.0f} s left" if total and rate else ""
        rate_text = f", {_format_rate(rate)} {unit}/s{_format_token_rate(done, rate, tokens)}" if rate else ""
        self.log(f"  {done:,}{total_text} {unit}{rate_text}{remaining_text}")

    def log(self, message: str) -> None:
        """Print one line with the time of day."""
        print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


class BarProgress(NullProgress):
    """A live bar with rate and time left, under the messages."""

    def __init__(self) -> None:
        self.rate_meter = RateMeter()
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
        rate = self.rate_meter.update_rate(done, unit)
        rate_text = f"{_format_rate(rate)}/s{_format_token_rate(done, rate, tokens)}" if rate else ""
        if self.task is None or unit != self.unit or self.rate_meter.is_restarted:
            self._remove_bar()
            self.task = self.bars.add_task(unit, total=total, rate=rate_text)
            self.unit = unit
        self.bars.update(self.task, completed=done, total=total, rate=rate_text)

    def log(self, message: str) -> None:
        """Print one line above the bar."""
        self._remove_bar()
        self.bars.console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {escape(message)}", highlight=False)

    def close(self) -> None:
        """Take the bar away."""
        self._remove_bar()
        self.bars.stop()

    def _remove_bar(self) -> None:
        if self.task is not None:
            self.bars.remove_task(self.task)
            self.task = None


class RateMeter:
    """The rate of a unit since its count began."""

    def __init__(self) -> None:
        self.unit, self.initial_count, self.last_count, self.started_at = "", 0, 0, time.monotonic()
        self.is_restarted = False

    def update_rate(self, done: int, unit: str) -> float:
        """Units a second so far; 0 if it is not known yet, as at the first call for a unit."""
        now = time.monotonic()
        self.is_restarted = unit != self.unit or done < self.last_count
        if self.is_restarted:
            self.unit, self.initial_count, self.started_at = unit, done, now
        self.last_count = done
        return (done - self.initial_count) / (now - self.started_at) if now > self.started_at else 0.0


def _format_token_rate(done: int, rate: float, tokens: int) -> str:
    return f", {_format_rate(tokens / done * rate)} tokens/s" if tokens and done else ""


def _format_rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def make_progress(quiet: bool, verbose: bool) -> NullProgress:
    """Nothing if `quiet`, a live bar on a terminal, plain lines elsewhere."""
    if quiet:
        return NullProgress()
    return BarProgress() if sys.stderr.isatty() else LineProgress(verbose)
