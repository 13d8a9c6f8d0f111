"""How long a token takes: measured at some lengths of a text, or from what a model computes and a GPU is sold for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stages.core.errors import InputError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MEASURED = "measured"
KNOWN = "known rate x yardstick"


@dataclass(frozen=True)
class Rate:
    """Seconds a token of texts of some lengths (tokens, rising); in between they lie on straight lines.

    Outside of what was measured the nearest length holds.
    """

    lengths: tuple[float, ...]
    seconds: tuple[float, ...]
    source: str = MEASURED

    def total(self, lengths: Ints, weight: Floats | float = 1.0) -> float:
        """Seconds for texts of these lengths [n], each `weight` times."""
        return float((weight * lengths * np.interp(lengths, self.lengths, self.seconds)).sum())

    def scaled(self, factor: float) -> "Rate":
        """The same, with `factor` times the seconds."""
        return Rate(self.lengths, tuple(rate * factor for rate in self.seconds), self.source)

    def at_least(self, seconds: float) -> "Rate":
        """The same, but no token takes less than `seconds`."""
        return Rate(self.lengths, tuple(max(rate, seconds) for rate in self.seconds), self.source)


@dataclass(frozen=True)
class Sweep:
    """What exact search takes: `product`, seconds a query, document and dimension; `kept`, seconds a candidate."""

    product: float
    kept: float
    source: str = MEASURED

    def total(self, products: float, kept: float) -> float:
        """Seconds for so many products (queries x documents x dimension) and candidates."""
        return products * self.product + kept * self.kept


class Shape(NamedTuple):
    """What a transformer computes."""

    parameters: int
    """Those that a token is multiplied with: embedding tables are only looked up."""
    weights: int
    """All of them."""
    layers: int
    hidden: int

    def flops(self, length: float) -> float:
        """Of one token in a text of `length` tokens, forwards: 2 a parameter, and 4 x layers x hidden x length in
        attention (Kaplan et al. 2020, arXiv 2001.08361, 2.1: products with keys, sums of values)."""
        return 2.0 * self.parameters + 4.0 * self.layers * self.hidden * length


class Gpu(NamedTuple):
    """As the maker's data sheet has it."""

    name: str
    bf16: float
    """FLOP/s in bfloat16, dense (data sheets often print the double, for sparse matrices)."""


GPUS: Mapping[str, Gpu] = {
    "l4": Gpu("NVIDIA L4", 121e12),
    "a10": Gpu("NVIDIA A10", 125e12),
    "a100": Gpu("NVIDIA A100", 312e12),
    "l40s": Gpu("NVIDIA L40S", 362e12),
    "h100": Gpu("NVIDIA H100 SXM", 989e12),
    "h200": Gpu("NVIDIA H200", 989e12),
}
EFFICIENCY = 0.3
"""Of the published rate a transformer, or a search, is assumed to get so much. Not measured: see `prep plan` on such a
machine."""
PUBLISHED = f"published rate x {EFFICIENCY:g}"
BACKWARD = 3
"""A training step computes so many times what the forward pass does (Kaplan et al. 2020: twice as much backwards)."""


def gpu_named(name: str) -> Gpu:
    """One of `GPUS`, or `InputError` with their names."""
    found = GPUS.get(name.lower())
    if found is None:
        raise InputError(f"--gpu {name}: its rate is not known here; there are {', '.join(GPUS)}.")
    return found


def published(gpu: Gpu, shape: Shape, longest: int, gpus: int = 1, passes: int = 1) -> Rate:
    """The rate of a model on `gpus` of these GPUs; `passes`: forward passes' worth of work a token."""
    rate = gpu.bf16 * EFFICIENCY * gpus
    lengths = (1.0, float(max(longest, 2)))
    return Rate(lengths, tuple(passes * shape.flops(length) / rate for length in lengths), PUBLISHED)


def published_sweep(gpu: Gpu, kept: float, gpus: int = 1) -> Sweep:
    """Search on these GPUs: two operations a product. What is kept of it is scored again on the CPU: `kept`."""
    return Sweep(2 / (gpu.bf16 * EFFICIENCY * gpus), kept, PUBLISHED)
