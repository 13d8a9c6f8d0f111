"""Short measurements of this machine: real texts through the code that the stages run, a few seconds each."""

import importlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from stages.core.memory import peak_rss, reset_peak_rss
from stages.planning.machine import Training
from stages.planning.throughput import Floats, Ints, Rate, Sweep
from stages.planning.workload import Encoding, Table
from stages.reranking.cross_encoder import Dtype, load_reranker, score_pairs

if TYPE_CHECKING:
    from stages.training.params import Params as TrainParams

SECONDS = 6.0
"""What one probe should take; a model so large that one text takes longer is measured once."""
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Lengths are measured where these shares of all tokens are in shorter texts."""
_SCORED = {"cpu": 1 << 13}
_SCORED_ELSEWHERE = 1 << 18
"""Tokens that are scored at once: several forward passes, as there are in a list of thousands of pairs."""
_STEP = 1 << 11
"""Tokens of the training step that is timed."""


class Probed(NamedTuple):
    """A model's rate, what its loading took (with its libraries, seconds), and the peak of memory (bytes)."""

    rate: Rate
    start: float
    memory: int


def encode(encoding: Encoding, dtype: str, batch_tokens: int, seconds: float = SECONDS) -> Probed:
    """Encode texts of the sample in batches as large as the stage's are."""
    from stages.embedding.encoder import Encoder

    reset_peak_rss()
    started = time.monotonic()
    encoder = Encoder(replace(encoding.recipe, dtype=dtype), encoding.name)
    start = time.monotonic() - started
    tokens = np.minimum(encoding.tokens, encoding.limit)

    def run(place: int, rows: int) -> None:
        role, text = encoding.texts[place]
        for _ in encoder.encode([text] * rows, role, batch_tokens):
            pass

    def rows(place: int) -> int:
        alike = encoding.weight[-(-tokens // 8) == -(-tokens[place] // 8)].sum()  # what shares a batch in the end
        return max(1, min(batch_tokens // int(tokens[place]), round(float(alike))))

    rate = measured(run, tokens, middles(tokens, encoding.weight), rows, seconds)
    return Probed(rate, start, peak_rss())


def score(folder: Path, device: str, dtype: Dtype, max_length: int, table: Table, seconds: float = SECONDS) -> Probed:
    """Score pairs of the sample with a cross-encoder."""
    reset_peak_rss()
    started = time.monotonic()
    model = load_reranker(folder, device, max_length)
    start = time.monotonic() - started
    tokens = np.minimum(table.pair_tokens, max_length)
    at_once = _SCORED.get(model.device.type, _SCORED_ELSEWHERE)

    def run(place: int, rows: int) -> None:
        score_pairs(model, [table.pairs[place]] * rows, dtype)

    def rows(place: int, passes: int = 4) -> int:
        return max(8, at_once * passes // 4 // int(tokens[place]))

    found = middles(tokens, np.ones(len(tokens)), (0.2, 0.5, 0.8))
    rate = measured(run, tokens, found, rows, seconds, lambda place: rows(place, 1))
    return Probed(rate, start, peak_rss())


def step(params: "TrainParams", folder: Path, table: Table, seconds: float = SECONDS) -> Training:
    """Take training steps on groups of real pairs, as the trainer does: loss, gradient, AdamW."""
    reset_peak_rss()
    started = time.monotonic()
    import torch

    from stages.training.losses import GroupLoss

    importlib.import_module("stages.training.trainer")  # its libraries are part of the start
    model = load_reranker(folder, params.device, params.max_length, params.dropout)
    start = time.monotonic() - started
    if params.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    model.train()
    loss = GroupLoss(model, params.loss, params.dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9)
    tokens = np.minimum(table.pair_tokens, params.max_length)
    size = 1 + params.num_negatives
    groups = max(1, min(params.batch_size, round(_STEP / (float(tokens.mean()) * size))))
    spent: list[float] = []
    counts: list[int] = []
    updates: list[float] = []
    # the first step is slower everywhere, since memory is asked for and kernels are chosen: it is small, and left out
    for places in _rounds(len(tokens), [size, *[groups * size] * 3]):
        begun = time.monotonic()
        rows = [places[at : at + size] for at in range(0, len(places), size)]
        queries = [table.pairs[row[0]][0] for row in rows]
        loss([queries, [[table.pairs[place][1] for place in row] for row in rows]]).backward()
        between = _now(model)
        optimizer.step()
        optimizer.zero_grad()
        updates.append(_now(model) - between)
        spent.append(between - begun)
        counts.append(int(tokens[places].sum()))
        if sum(spent[1:]) >= seconds:
            break
    rate = sum(spent[1:]) / sum(counts[1:])
    size_of = float(max(counts))
    return Training(Rate((float(tokens.mean()),), (rate,)), statistics.median(updates[1:]), start, peak_rss(), size_of)


def sweep(dimension: int, queries: int, documents: int, k: int, device: str = "cpu", dtype: str = "float32") -> Sweep:
    """Search among random vectors, no more of them than there are: two sizes tell the sweep from what is kept."""
    from stages.retrieval.exact.search import exact_search

    generator = np.random.default_rng(0)
    asked, there = min(max(queries, 1), 1_024), min(max(documents, 2), 16_384)
    made = generator.standard_normal((asked + there, dimension), np.float32)
    vectors, blocks = made[:asked], made[asked:]
    exact_search(vectors[:8], [blocks[:64]], 8, device=device, dtype=dtype)  # the library is loaded
    sizes = (max(1, there // 4), there)
    find = partial(exact_search, device=device, dtype=dtype)
    times = [_median(partial(find, vectors, [blocks[:size]], min(k, size)), 3) for size in sizes]
    products = [asked * size * dimension for size in sizes]
    return sweep_of(times, products, [asked * min(k, size) for size in sizes])


def sweep_of(times: Sequence[float], products: Sequence[float], kept: Sequence[float]) -> Sweep:
    """The rates behind two times, solved; where noise makes one of them negative, all goes to the other."""
    determinant = products[0] * kept[1] - products[1] * kept[0]
    product = (times[0] * kept[1] - times[1] * kept[0]) / determinant if determinant else 0.0
    each = (products[0] * times[1] - products[1] * times[0]) / determinant if determinant else times[1] / kept[1]
    if each < 0:
        return Sweep(times[1] / products[1], 0.0)
    return Sweep(product, each) if product >= 0 else Sweep(0.0, times[1] / kept[1])


def middles(lengths: Ints, weight: Floats, shares: Sequence[float] = SHARES) -> list[int]:
    """The places of texts that stand at these shares of all tokens, when texts are laid out by length; each once."""
    order = np.argsort(lengths, kind="stable")
    reached = np.cumsum((lengths * weight)[order])
    places = order[np.searchsorted(reached, [share * reached[-1] for share in shares])]
    return list({int(lengths[place]): int(place) for place in places}.values())


def measured(
    run: Callable[[int, int], None],
    lengths: Ints,
    places: Sequence[int],
    rows: Callable[[int], int],
    seconds: float,
    least: Callable[[int], int] = lambda place: 1,
) -> Rate:
    """The median seconds a token of `run(place, rows)` at each of `places`, in some `seconds` altogether.

    The longest is run first, with the `least` rows: so the libraries are warm, and a model for which all `rows` would
    take too long gets fewer.
    """
    run(places[-1], least(places[-1]))
    single = _median(partial(run, places[-1], least(places[-1])), 1)
    fold = max(1.0, seconds / len(places) / max(single, 1e-9))
    found = []
    for place in places:
        height = max(1, min(rows(place), int(fold * least(place))))
        taken: list[float] = []
        while len(taken) < 3 and sum(taken) < seconds / len(places):
            taken.append(_median(partial(run, place, height), 1))
        found.append((float(lengths[place]), statistics.median(taken) / (height * float(lengths[place]))))
    found.sort()
    return Rate(tuple(length for length, _ in found), tuple(rate for _, rate in found))


def _median(run: Callable[[], Any], times: int) -> float:
    taken = []
    for _ in range(times):
        started = time.monotonic()
        run()
        taken.append(time.monotonic() - started)
    return statistics.median(taken)


def _rounds(total: int, sizes: Sequence[int]) -> Iterator[list[int]]:
    """Places below `sum`, so many at a time, one after another; beginning anew where they are used up."""
    start = 0
    for size in sizes:
        yield [place % total for place in range(start, start + size)]
        start += size


def _now(model: Any) -> float:
    if model.device.type == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.monotonic()
