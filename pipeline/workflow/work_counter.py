"""Counts what a stage does, by what it reports as its progress."""

from collections import Counter

from stages.core.context import Progress


class WorkCounter:
    """A progress that passes everything on and keeps the counts: of each unit, and of tokens."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._last: dict[str, int] = {}
        self.counts: Counter[str] = Counter()

    def advance(self, done: int, total: int | None, unit: str, tokens: int = 0) -> None:
        """Count what was done since the last report; one that starts again from below is work of its own."""
        for name, count in ((unit, done), *([("tokens", tokens)] if tokens else [])):
            last = self._last.get(name, 0)
            self.counts[name] += count - last if count >= last else count
            self._last[name] = count
        self._progress.advance(done, total, unit, tokens)

    def log(self, message: str) -> None:
        """Pass a line on."""
        self._progress.log(message)
