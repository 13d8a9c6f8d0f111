"""A machine as far as a plan needs it: what it takes for the work that counts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stages.planning.throughput import Rate, Shape, Sweep


@dataclass(frozen=True)
class Model:
    """A model at work: its rate by number format, what loading it takes (seconds), and the memory with it (bytes)."""

    rates: Mapping[str, Rate]
    start: float
    memory: int
    shape: Shape


@dataclass(frozen=True)
class Training:
    """The rate of a step forwards and backwards, the optimizer's update (seconds a step), and the memory that a step of
    `tokens` took."""

    rate: Rate
    update: float
    start: float
    memory: int
    tokens: float


@dataclass(frozen=True)
class Machine:
    """What the machine takes for the work that counts; no time for what no stage needs."""

    encoders: Sequence[Model]
    sweep: Sweep
    score: Model
    step: Training
    teacher: Model | None
    """That of [verify] verifier, where it is another model than the base of the reranker."""
    fresh_head: bool
    """The base of the reranker is an encoder, so its head learns the retriever's scores first."""
    yard: float
    """What the yardstick takes, in seconds: the stages without a model go by it."""
    tables: int
    """Memory of a process that has loaded no model yet, in bytes."""
    importing: float
    """Seconds to import the libraries that models need."""
