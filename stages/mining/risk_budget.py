"""Which candidates may be emitted, so that the negatives are hard and no more than a given share of them is false.

Of each query n negatives are wanted with high scores; the expected number of false ones is the sum of their
p_false_negative. To maximise the sum of scores under a limit on the sum of p is a linear programme, whose solution
takes the n candidates with the highest score - price x p in every query, at one price for all (the limit's Lagrange
multiplier). So risk is taken where it buys the most hardness, and every query is filled.

Prices are tried on a geometric grid, and the least that keeps the limit is taken; a small change of the table rarely
moves it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.core.params import Params, option
from stages.core.query_batches import in_order, of_block

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

PRICES: Doubles = np.concatenate([[0.0], 2.0 ** np.arange(-12, 14.25, 0.25)])
"""In units of the scores' spread within a query (`spread`); at the last, only p counts."""

_AT_ONCE = 1_024
"""Queries looked at together at every price: their candidates stay in the cache."""


def negatives_option() -> Any:
    """The parameter `negatives`: mask and compose both go by it."""
    return option(7, "Negatives a query; one that has fewer trustworthy ones keeps what it has.", ge=1)


class Limits(Params):
    """What of a query's candidates may be emitted: verify and mask both go by it."""

    max_false_negatives: float = option(
        0.02,
        "learned: the share of false ones that you accept among the negatives written, as expected.",
        gt=0,
        lt=1,
    )
    negatives: int = negatives_option()
    # Looked at with MiniLM on medical FAQs: from 0.98 up texts differ in a detail at most, below begin true negatives
    # (the advice on an overdose of two drugs at 0.97, "Bardet-Biedl syndrome 6" and "7" at 0.965).
    duplicate_similarity: float = option(
        0.98,
        "Set documents aside whose vector has at least this cosine with a positive's; above 1 switches it off.",
        gt=0,
        le=2,
    )


@dataclass(frozen=True)
class Lists:
    """Some queries' candidates as padded tables [q, width], best score first; `open` marks what may be chosen."""

    score: Floats
    p: Floats
    open: Bools
    room: Ints
    """[q]: negatives wanted."""


@dataclass(frozen=True)
class Choice:
    """Sums over the negatives chosen at each price [len(PRICES)]; add up the choices of blocks of queries."""

    n: Ints
    p: Doubles
    score: Doubles
    dearest: Floats
    """p of each negative chosen at the highest price."""

    def __add__(self, other: "Choice") -> "Choice":
        return Choice(
            self.n + other.n,
            self.p + other.p,
            self.score + other.score,
            np.concatenate([self.dearest, other.dearest]),
        )


NOTHING = Choice(np.zeros(len(PRICES), np.int64), np.zeros(len(PRICES)), np.zeros(len(PRICES)), np.zeros(0, np.float32))


@dataclass(frozen=True)
class Limit:
    """What the budget comes to: the price; and where even the highest is too low, the p up to which is taken."""

    price: float
    ceiling: float
    expected: float
    """Mean p of the negatives that are chosen so."""
    hardness: float
    n: int


def choose(lists: Lists, price: float) -> Bools:
    """The chosen candidates [q, width]: in each query the `room` best by score - price x p, of equals the first."""
    value = np.where(lists.open, lists.score.astype(np.float64) - price * lists.p, -np.inf)
    most = min(int(lists.room.max(initial=0)), value.shape[1])
    if not most:
        return np.zeros_like(lists.open)
    best = np.sort(np.partition(value, value.shape[1] - most, axis=1)[:, value.shape[1] - most :], axis=1)
    last = np.where(lists.room > 0, best[np.arange(len(best)), np.clip(most - lists.room, 0, most - 1)], np.inf)
    above, equal = value > last[:, None], value == last[:, None]
    left = lists.room - above.sum(axis=1)
    chosen: Bools = lists.open & (above | (equal & (equal.cumsum(axis=1) <= left[:, None])))
    return chosen


def contenders(lists: Lists) -> Lists:
    """Only those candidates that some price could choose; `choose` takes the same ones of them at any price.

    One that has as many others before it as there is room for, each no more probable than itself, comes after them at
    every price: of some 200 candidates a few dozen are left.
    """
    rooms, queries = int(lists.room.max(initial=0)), np.arange(len(lists.room))
    least = np.full((rooms, len(queries)), np.inf)  # the least p of those before, rising
    wanted = np.zeros_like(lists.open)
    for place in range(lists.open.shape[1] if rooms else 0):
        p = np.where(lists.open[:, place], lists.p[:, place], np.inf)
        wanted[:, place] = (p < least[lists.room - 1, queries]) & (lists.room > 0)
        least[1:] = np.maximum(least[:-1], np.minimum(least[1:], p))
        least[0] = np.minimum(least[0], p)
    query, column = np.nonzero(wanted)
    return padded(query, lists.score[query, column], lists.p[query, column], lists.room)[0]


def tried(lists: Lists, unit: float) -> Choice:
    """What each of PRICES chooses, in `unit`s of score."""
    total = NOTHING
    for start in range(0, len(lists.room), _AT_ONCE):
        some = contenders(Lists(*(part[start : start + _AT_ONCE] for part in vars(lists).values())))
        chosen = [choose(some, price * unit) for price in PRICES]
        total += Choice(
            np.array([c.sum() for c in chosen]),
            np.array([some.p[c].sum(dtype=np.float64) for c in chosen]),
            np.array([some.score[c].sum(dtype=np.float64) for c in chosen]),
            some.p[chosen[-1]],
        )
    return total


def settle(total: Choice, share: float, unit: float) -> Limit:
    """The least price at which at most `share` of the negatives are expected to be false; `unit` is that of `tried`.

    Where none is high enough, the highest, and of what it chooses the least probable up to `share` in the mean.
    """
    n = np.maximum(total.n, 1)
    for place in np.flatnonzero(total.p / n <= share):
        expected, hardness = float(total.p[place] / n[place]), float(total.score[place] / n[place])
        return Limit(float(PRICES[place] * unit), 1.0, expected, hardness, int(total.n[place]))
    rising = np.sort(total.dearest).astype(np.float64)
    means = np.cumsum(rising) / np.arange(1, len(rising) + 1)
    kept = int((means <= share).sum())
    if kept < len(rising):  # of equal ones all are taken or none
        kept = int(np.searchsorted(rising, rising[kept]))
    ceiling = float(rising[kept - 1]) if kept else 0.0
    expected = float(means[kept - 1]) if kept else 0.0
    return Limit(float(PRICES[-1] * unit), ceiling, expected, float(total.score[-1] / n[-1]), kept)


def allowed(lists: Lists, limit: Limit, share: float) -> Floats:
    """The highest p [q, width] with which each candidate may be a negative; above it, it is set aside.

    Down to the last that is chosen: what its hardness is worth, (score - the last chosen value) / price. Below that,
    where random draws go: `share`, so that these keep the limit too. Never above the ceiling.
    """
    if not lists.score.size:
        return np.zeros(lists.score.shape, np.float32)
    chosen = choose(lists, limit.price)
    value = lists.score.astype(np.float64) - limit.price * lists.p
    least = np.where(chosen, value, np.inf).min(axis=1, keepdims=True)
    width = lists.score.shape[1]
    last = np.where(chosen.any(axis=1), width - 1 - chosen[:, ::-1].argmax(axis=1), -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        worth = np.where(np.isfinite(least), (lists.score - least) / limit.price, 1.0) if limit.price else None
    above = np.ones_like(lists.p, np.float64) if worth is None else np.clip(np.nan_to_num(worth, nan=0.0), 0, 1)
    # the last bits of what is chosen and what is not must not hang on this arithmetic
    above = np.where(chosen, np.maximum(above, lists.p), np.minimum(above, np.nextafter(lists.p, np.float32(-1))))
    out = np.where(np.arange(width)[None] <= last[:, None], above, share)
    return np.minimum(out, limit.ceiling).astype(np.float32)


def padded(query: NDArray[np.int64], score: Floats, p: Floats, room: Ints) -> tuple[Lists, tuple[Ints, Ints]]:
    """Rows sorted by query as `Lists`, and the (row, column) of each; `query` counts 0 to len(room) - 1."""
    counts = np.bincount(query, minlength=len(room))
    column = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
    shape = (len(room), int(counts.max(initial=0)))
    scores, ps, opens = np.zeros(shape, np.float32), np.ones(shape, np.float32), np.zeros(shape, np.bool_)
    scores[query, column], ps[query, column], opens[query, column] = score, p, True
    return Lists(scores, ps, opens, room), (query, column)


LIKELY = 0.5
"""What is likelier false than not is never emitted, however hard it is and however much the budget leaves."""
_SHUT = ("same_text", "curated", "contains_answer", "teacher_false", "judge")
_READ = ["query_id", "score", "p_false_negative", "positive_similarity", "own", *_SHUT]


def open_lists(limits: Limits, rows: pl.DataFrame, likely: float = LIKELY) -> tuple[Lists, tuple[Ints, Ints], Bools]:
    """What of some queries' EVIDENCE may be emitted by the estimate, as `padded` gives it, and which of the rows [n]
    that is: what has a p of at most `likely`. The room of a query is what its curated negatives leave."""
    rows = rows.with_columns(
        room=(limits.negatives - pl.col("curated").fill_null(False).sum().over("query_id").cast(pl.Int64)).clip(0)
    )
    flags = [pl.col(flag).fill_null(False) for flag in _SHUT if flag in rows.columns]
    shut = pl.any_horizontal(pl.col("own").is_not_null(), *flags)
    shut |= (pl.col("positive_similarity") >= pl.lit(limits.duplicate_similarity, pl.Float32)).fill_null(False)
    here = rows.select((pl.col("p_false_negative") <= likely).fill_null(False) & ~shut).to_series().to_numpy()
    listed = rows.filter(here)
    query = listed["query_id"].rle_id().cast(pl.Int64).to_numpy()
    room = listed.group_by("query_id", maintain_order=True).agg(pl.col("room").first())["room"].to_numpy()
    lists, at = padded(query, listed["score"].to_numpy(), listed["p_false_negative"].to_numpy(), room)
    return lists, at, here


def spread(rows: pl.LazyFrame) -> float:
    """The mean standard deviation of the scores of a query's candidates (query_id, score), rounded to a power of 2 so
    that a price rarely moves when the table does; 1 where all scores of each query are equal."""
    deviations = rows.group_by("query_id").agg(pl.col("score").cast(pl.Float64).std(ddof=0)).sort("query_id").collect()
    mean = float(deviations["score"].fill_null(0.0).to_numpy().mean()) if len(deviations) else 0.0
    return float(2.0 ** round(np.log2(mean))) if mean > 0 else 1.0


def settled(limits: Limits, evidence: pl.LazyFrame, queries: pl.DataFrame, blocks: Iterable[pl.Series]) -> Limit:
    """The limit under which the train questions of `queries` (query_id, split) are served, block by block."""
    train = queries.filter(pl.col("split") == "train")["query_id"]
    found = [name for name in _READ if name in evidence.collect_schema().names()]
    unit = spread(evidence.select("query_id", "score"))

    def choice(block: pl.Series) -> Choice:
        rows = of_block(evidence.select(found), block).filter(pl.col("query_id").is_in(train.implode()))
        return tried(open_lists(limits, rows)[0], unit)

    total = sum(in_order(choice, blocks), start=NOTHING)
    return settle(total, limits.max_false_negatives, unit)
