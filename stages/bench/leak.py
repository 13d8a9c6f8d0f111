"""Bench of negatives: hide half of each question's positives, mine under each rule, count how many come back.

What was hidden is a false negative whose label we know. *Leak* is the share of hidden positives among the negatives
mined; *hardness* the mean retriever score of the others; *fill* the share of the wanted negatives that was found. Rules
differ in hardness, and an easier negative is less often false; so the figure that counts is the leak of each rule
against the learned mask's at the same hardness (the price of `stages.mining.risk_budget` is set so that they agree).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.bench.collections import Collection
from stages.core.errors import InputError
from stages.mining import risk_budget, threshold_rules
from stages.mining.estimator import model
from stages.mining.risk_budget import Bools, Floats, Limit, Lists
from stages.mining.threshold_rules import RuleName


@dataclass(frozen=True)
class Fixed:
    """A fixed rule as one of the systems in use states it."""

    rule: RuleName
    value: float | None = None
    window: tuple[int, int] = (0, 0)
    source: str = ""
    bare: bool = False
    """The window's ranks are counted without the known positives."""


FIXED: dict[str, Fixed] = {
    "naive": Fixed("none", source="top-k"),
    "perc 0.95": Fixed("perc", 0.95, source="NV-Retriever TopK-PercPos, NeMo; sentence-transformers relative_margin"),
    "perc 0.9": Fixed("perc", 0.9, source="sentence-transformers relative_margin 0.1"),
    "perc_max 0.95": Fixed("perc_max", 0.95, source="on the best positive"),
    "perc_max 0.9": Fixed("perc_max", 0.9, source="on the best positive"),
    "margin 0.05": Fixed("margin", 0.05, source="NV-Retriever TopK-MarginPos, NeMo; s-t absolute_margin"),
    "margin 0.1": Fixed("margin", 0.1, source="sentence-transformers absolute_margin 0.1"),
    "abs 0.7": Fixed("abs", 0.7, source="NV-Retriever TopK-Abs; sentence-transformers max_score"),
    "infonce 0.1": Fixed("infonce", 0.1, source="SWIFT INFONCE_MASK_FAKE_NEGATIVE"),
    "window 10-210": Fixed("window", window=(10, 210), source="FlagEmbedding range_for_sampling"),
    "range_min 10": Fixed("window", window=(10, 10**9), source="sentence-transformers range_min", bare=True),
}  # fmt: skip
BUDGETS = (0.01, 0.02, 0.05)
NEAR = 0.98

Shown = tuple[Collection, Floats, Bools]
"""A collection, the features [n, len(FEATURES)] of its candidates, and which of these are hidden [n]."""


@dataclass(frozen=True)
class Mined:
    """The candidates of the questions mined for, as lists without the known positives, and what is known of them."""

    lists: Lists
    rank: NDArray[np.int32]
    """[q, width], the known positives counted among the ranks."""
    hidden: Bools
    wrong: Bools
    near: Bools
    """Nearly equal to a known positive."""
    lowest: Floats
    best: Floats
    """[q]: scores of the lowest and the best known positive."""


def as_lists(
    rows: pl.DataFrame,
    p: Floats,
    judged: pl.DataFrame,
    k: int,
    hidden: pl.DataFrame | None = None,
    wrong: pl.DataFrame | None = None,
    near: pl.DataFrame | None = None,
) -> Mined:
    """`rows` (query_id, doc_id, rank, score) in the order of lists, with p_false_negative [n], as `Mined`.

    `judged` holds the known positives' scores; `hidden`, `wrong` and `near` (query_id, doc_id) what is known besides.
    """
    query = rows["query_id"].rle_id().cast(pl.Int64).to_numpy()
    ids = rows.select(pl.col("query_id").unique(maintain_order=True))
    score = rows["score"].to_numpy()
    lists, at = risk_budget.padded(query, score, p, np.full(len(ids), k))
    pair = ["query_id", "doc_id"]
    marks = []
    for side in (hidden, wrong, near):
        known = rows.select(pair).clear() if side is None else side.select(pair)
        held = rows.join(known.with_columns(held=True), on=pair, how="left", maintain_order="left")["held"]
        marks.append(_table(held.fill_null(False).to_numpy(), lists.open.shape, at))
    anchors = judged.filter(pl.col("relevance") > 0).group_by("query_id")
    ends = ids.join(
        anchors.agg(lowest=pl.col("score").min(), best=pl.col("score").max()),
        on="query_id",
        how="left",
        maintain_order="left",
    )
    return Mined(
        lists,
        _table(rows["rank"].cast(pl.Int32).to_numpy(), lists.open.shape, at),
        marks[0],
        marks[1],
        marks[2],
        ends["lowest"].to_numpy(),
        ends["best"].to_numpy(),
    )


def _table(
    values: NDArray[Any], shape: tuple[int, ...], at: tuple[NDArray[np.int64], NDArray[np.int64]]
) -> NDArray[Any]:
    table = np.zeros(shape, values.dtype)
    table[at] = values
    return table


def emitted(mined: Mined, fixed: Fixed) -> Bools:
    """What a fixed rule takes [q, width]: the best of those that it lets through."""
    limit = threshold_rules.thresholds(fixed.rule, fixed.value, mined.lowest, mined.best)
    shape = mined.lists.score.shape
    rank = np.broadcast_to(np.arange(1, shape[1] + 1, dtype=np.int32), shape) if fixed.bare else mined.rank
    passed = threshold_rules.passes(
        fixed.rule,
        mined.lists.score.ravel(),
        rank.ravel(),
        np.repeat(limit, shape[1]),
        fixed.window,
    ).reshape(shape)
    return risk_budget.choose(Lists(mined.lists.score, mined.lists.p, mined.lists.open & passed, mined.lists.room), 0.0)


def figures(mined: Mined, chosen: Bools) -> dict[str, float | None]:
    """negatives, how many; leak; rows, the share of questions with a leak; hardness; fill; near_duplicates, the share
    with a cosine of at least NEAR with a known positive; judged_negatives, those kept of the candidates that people
    judged not relevant."""
    n, false = int(chosen.sum()), chosen & mined.hidden
    true = chosen & ~mined.hidden
    wanted = int(mined.lists.room.sum())
    wrong = int(mined.wrong.sum())
    return {
        "negatives": n,
        "leak": int(false.sum()) / n if n else None,
        "rows": float(false.any(axis=1).mean()) if len(false) else None,
        "hardness": float(mined.lists.score[true].mean(dtype=np.float64)) if true.any() else None,
        "fill": n / wanted if wanted else None,
        "near_duplicates": int((chosen & mined.near).sum()) / n if n else None,
        "judged_negatives": int((chosen & mined.wrong).sum()) / wrong if wrong else None,
    }


def within(mined: Mined, shares: Sequence[float]) -> list[tuple[Limit, Bools]]:
    """What the learned mask takes within each of `shares`, as the mask does: the limit and the choice [q, width]."""
    unit = unit_of(mined)
    lists = replace(mined.lists, open=mined.lists.open & (mined.lists.p <= risk_budget.LIKELY))
    total = risk_budget.tried(lists, unit)
    limits = [risk_budget.settle(total, share, unit) for share in shares]
    return [(limit, risk_budget.choose(lists, limit.price) & (lists.p <= limit.ceiling)) for limit in limits]


def unit_of(mined: Mined) -> float:
    """`budget.spread` of the candidates."""
    query, column = np.nonzero(mined.lists.open)
    rows = pl.DataFrame({"query_id": query, "score": mined.lists.score[query, column]})
    return risk_budget.spread(rows.lazy())


def price_at(mined: Mined, hardness: float) -> float:
    """The price at which the learned mask's negatives are as hard, or just harder."""
    unit, low, high = unit_of(mined), -14.0, 16.0
    for _ in range(40):
        middle = (low + high) / 2
        found = figures(mined, risk_budget.choose(mined.lists, unit * 2.0**middle))["hardness"]
        low, high = (middle, high) if found is not None and found > hardness else (low, middle)
    return float(unit * 2.0**low)


def at_hardness(mined: Mined, hardness: float) -> dict[str, float | None]:
    """The learned mask's figures at the price where its negatives are as hard, or just harder."""
    return figures(mined, risk_budget.choose(mined.lists, price_at(mined, hardness)))


def report(mined: Mined) -> dict[str, Any]:
    """A set's `rules`, `equal_hardness` and `budgets`."""
    found = {name: figures(mined, emitted(mined, fixed)) for name, fixed in FIXED.items()}
    equal = []
    for name, of_rule in found.items():
        if of_rule["hardness"] is None:
            continue
        ours = at_hardness(mined, of_rule["hardness"])
        equal.append(
            {
                "rule": name,
                "hardness": of_rule["hardness"],
                "leak_rule": of_rule["leak"],
                "leak_learned": ours["leak"],
                "fill_rule": of_rule["fill"],
                "fill_learned": ours["fill"],
                "negatives": ours["negatives"],
            }
        )
    budgets = [
        {"max_false_negatives": share, "expected": limit.expected, **figures(mined, chosen)}
        for share, (limit, chosen) in zip(BUDGETS, within(mined, BUDGETS), strict=True)
    ]
    return {"rules": found, "equal_hardness": equal, "budgets": budgets, "bins": bins(mined)}


def bins(mined: Mined, n: int = 10) -> list[dict[str, float]]:
    """Expected and observed share of hidden positives in `n` equally filled bins of rising p."""
    there = mined.lists.open
    p, hidden = mined.lists.p[there], mined.hidden[there]
    order = np.argsort(p, kind="stable")
    return [
        {"expected": float(p[part].mean(dtype=np.float64)), "observed": float(hidden[part].mean())}
        for part in np.array_split(order, n)
        if len(part)
    ]


def ratio(one: Mapping[str, Any]) -> float | None:
    """How many times lower the learned mask's leak is; where none leaks of its n negatives, one could have."""
    if not one["leak_rule"] or not one["negatives"]:
        return None
    return float(one["leak_rule"] / max(one["leak_learned"], 1 / one["negatives"]))


def medians(sets: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Rule -> the median of `ratio` over the sets where the rule leaks."""
    found: dict[str, list[float]] = {}
    for of_set in sets.values():
        for one in of_set["equal_hardness"]:
            if (value := ratio(one)) is not None:
                found.setdefault(one["rule"], []).append(value)
    return {rule: float(np.median(values)) for rule, values in found.items()}


def require_lessons(name: str, hidden: Bools) -> None:
    """Raise `InputError` where the candidates of a set, `hidden` [n], can't teach a prior: none is hidden, or all."""
    if not 0 < hidden.sum() < len(hidden):
        raise InputError(
            f"--write-prior: {name} teaches nothing, since {hidden.sum():,} of its {len(hidden):,} candidates are "
            "hidden positives: a prior needs questions with several positives that the encoder finds. Leave it out."
        )


def prior_file(half: Sequence[Shown], one: Sequence[Shown], command: str, encoder: str) -> dict[str, Any]:
    """prior.json: the models of all sets, and for each set those of the others, for reading them on that set.

    `half` and `one`: the same sets with as many positives left.
    """

    def fitted(sets: Sequence[int]) -> dict[str, Any]:
        return {
            name: model.written(model.fit_prior([side[place][1:] for place in sets]))
            for name, side in (("one", one), ("several", half))
        }

    every = list(range(len(half)))
    return {
        "what": "log odds that a candidate is a false negative: stages/mining/estimator/model.py reads this",
        "command": command,
        "encoder": encoder,
        "sets": {
            collection.name: {
                "candidates": len(hidden),
                "hidden": int(hidden.sum()),
                "hidden_all_but_one": int(single[2].sum()),
                "digest": collection.digest,
            }
            for (collection, _, hidden), single in zip(half, one, strict=True)
        },
        "all": fitted(every),
        "without": [
            {"digest": half[place][0].digest, "name": half[place][0].name}
            | fitted([other for other in every if other != place])
            for place in (every if len(every) > 1 else [])
        ],
    }
