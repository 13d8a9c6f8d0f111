"""Stand-ins that several tests share."""

from collections.abc import Callable

from stages.core.context import NullProgress
from stages.core.text import normalise
from stages.pairs.cells import text_digest


def text_id(text: str) -> str:
    """The id that the pairs stage gives a text which came without one."""
    return text_digest(normalise(text)).hex()


class RecordedProgress(NullProgress):
    """A progress that records its calls: `messages`, and `reports` as (done, total, unit, tokens).

    `on_report` is called with the count of each report, and may end the process there.
    """

    def __init__(self, on_report: Callable[[int], None] | None = None) -> None:
        self.messages: list[str] = []
        self.reports: list[tuple[int, int | None, str, int]] = []
        self.on_report = on_report

    def advance(self, done: int, total: int | None, unit: str, tokens: int = 0) -> None:
        """Keep a report."""
        self.reports.append((done, total, unit, tokens))
        if self.on_report:
            self.on_report(done)

    def log(self, message: str) -> None:
        """Keep a message."""
        self.messages.append(message)
