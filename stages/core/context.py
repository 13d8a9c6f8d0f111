"""What a stage is given to run, beside its parameters and inputs, and what it returns."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from stages.core.executor import Executor, InProcessExecutor

Summary = dict[str, Any]
"""What a stage returns: counts and choices, as JSON values. The manifest keeps it."""


class Progress(Protocol):
    """Receives how far a stage is. Calls are cheap: the receiver decides how often it shows something."""

    def advance(self, done: int, total: int | None, unit: str, tokens: int = 0) -> None:
        """`done` of `total` units (texts, queries, steps) so far; `total` is None if it is unknown.

        `tokens`: how many tokens these units held, if the stage counts them.
        """

    def log(self, message: str) -> None:
        """One line for a person: a choice that was made for them, or a loss."""


class NullProgress:
    """Shows nothing."""

    def advance(self, done: int, total: int | None, unit: str, tokens: int = 0) -> None:
        """Nothing is shown."""

    def log(self, message: str) -> None:
        """Nothing is shown."""

    def close(self) -> None:
        """Nothing to end."""


@dataclass(frozen=True)
class StageContext:
    """The context of a running stage; it has only the folders that the graph declares for the stage.

    Each folder is read through its property (`scratch_dir`, ...), which raises `RuntimeError` if it is not declared.
    """

    progress: Progress
    scratch: Path | None = None
    vectors: Path | None = None
    logs: Path | None = None
    executor: Executor = dataclasses.field(default_factory=InProcessExecutor)
    """Runs the work that other processes and machines can share."""
    scores: Path | None = None
    seconds_per_step: float | None = None
    """Of the last training in the workspace, to estimate the time of the next one."""
    may_ask_servers: bool = True
    """Whether a model behind a URL may be asked what it is; else it is taken for what it was."""

    @property
    def scratch_dir(self) -> Path:
        """A folder that survives a kill: the next run of the same key finds it again. Deleted after the commit."""
        return _require_declared("scratch", self.scratch)

    @property
    def vectors_dir(self) -> Path:
        """The root of the vector store, with one folder for each encoder."""
        return _require_declared("vectors", self.vectors)

    @property
    def logs_dir(self) -> Path:
        """For files that hold times, such as TensorBoard's event files; they can't be part of an artifact."""
        return _require_declared("logs", self.logs)

    @property
    def scores_dir(self) -> Path:
        """The verifier's scores and the LLM judge's verdicts, kept as long as the workspace."""
        return _require_declared("scores", self.scores)


def _require_declared(name: str, folder: Path | None) -> Path:
    if folder is None:
        raise RuntimeError(f"the store {name} is not declared for this stage in pipeline/workflow/graph.py")
    return folder
