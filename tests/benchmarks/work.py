"""A work of the side-by-side bench: what is prepared, who does it, and which ratio is the goal.

Modules that define one import nothing heavy at the top: the process that starts the sides stays small, since the kernel
counts what a parent holds towards its child's peak.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Sizes = Mapping[str, int]
Result = dict[str, Any]
"""What a side says of one turn: the figures that goals ask for; `peak_gb` is added by who waits for its process."""
Step = Callable[[Path, Sizes], Result]
"""Is given the folder that `prepare` filled, and the sizes."""


@dataclass(frozen=True)
class Goal:
    """The ratio `over` / `under` of one figure of two sides; of one side alone where `under` is None."""

    name: str
    over: str
    under: str | None
    figure: str = "seconds"
    at_least: float | None = None
    at_most: float | None = None

    @property
    def words(self) -> str:
        """The goal as it stands in the table."""
        return f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"

    def met(self, ratio: float) -> bool:
        """Whether `ratio` is as good as asked for."""
        return ratio >= self.at_least if self.at_least is not None else ratio <= (self.at_most or 0.0)


@dataclass(frozen=True)
class Work:
    """One work, done by several sides, each turn of each in a process of its own."""

    about: str
    sizes: Sizes
    """At scale 1."""
    scaled: frozenset[str]
    """The sizes that --scale multiplies."""
    prepare: Step
    sides: Mapping[str, Step]
    """In the order of their turns; ours is "ours"."""
    goals: tuple[Goal, ...]
    check: Step | None = None
    """Looks at what the sides left in the folder; raises `AssertionError` where they disagree, and says how far."""
    gpu: bool = False

    def at(self, scale: float, given: Sizes) -> dict[str, int]:
        """The sizes at a scale; what is `given` by name goes before it."""
        sizes = {n: max(1, round(value * scale)) if n in self.scaled else value for n, value in self.sizes.items()}
        return sizes | {name: value for name, value in given.items() if name in sizes}
