"""Calibrate: what each budget and each fixed rule would give on the candidates at hand, by the learned mask's estimate.

Nothing is mined again: the probabilities stand in verdicts.parquet. The expected share of false negatives is the mean
of p_false_negative over what would be written; its interval is a bootstrap over questions, so it holds the luck of
the questions and not an error of the model.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from stages.bench.leak import FIXED, as_lists, emitted, within
from stages.core import schemas
from stages.core.errors import InputError
from stages.core.hashing import draw
from stages.core.query_batches import ordered
from stages.core.schemas import Summary
from stages.mining.estimator.validation import found_again
from stages.mining.mask import NEGATIVE, Params
from stages.mining.risk_budget import Bools, Ints, Limit, Lists

BUDGETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
QUERIES = 20_000
"""Train questions looked at, drawn by hash."""
SAMPLES = 500


def trade(inputs: Mapping[str, Path], params: Params) -> dict[str, Any]:
    """`budgets` and `rules`, a line each: expected, low, high, hardness, fill, and check, which says what was found
    again of positives that were hidden (`check.found_again`); and how many questions they are of.

    `inputs` holds the files queries, judged, verdicts and shown of the learned mask of `params`. Only what the mask
    leaves to a rule is looked at: known positives, documents with the answer and the like are no rule's business.
    """
    queries = schemas.read_table(inputs["queries"], schemas.QUERIES, ["query_id", "split"])
    train = queries.filter(pl.col("split") == "train")["query_id"].to_list()
    drawn = sorted(train, key=lambda query: (draw(0, "calibrate", query), query))[:QUERIES]
    verdicts = schemas.scan_table(inputs["verdicts"], schemas.VERDICTS)
    left = (pl.col("verdict") == NEGATIVE) & (pl.col("reason") != "curated") | (pl.col("reason") == "learned")
    rows = verdicts.filter(left & pl.col("p_false_negative").is_not_null() & pl.col("query_id").is_in(drawn))
    table = rows.select("query_id", "doc_id", "rank", "score", "p_false_negative").collect()
    if table.is_empty():
        raise InputError("there is no candidate with an estimate: no train question has a positive and a candidate")
    table = ordered(table)
    judged = schemas.read_table(inputs["judged"], schemas.JUDGED)
    mined = as_lists(table, table["p_false_negative"].to_numpy(), judged, params.negatives)
    mined = replace(mined, lists=replace(mined.lists, room=rooms(table, judged, params.negatives)))
    taught = schemas.read_table(inputs["shown"], schemas.TAUGHT)

    def checked(limit: Limit | None, **given: Any) -> Summary | None:
        return found_again(params.model_copy(update=given), limit, taught)

    budgets = [
        {"max_false_negatives": share, **line(mined.lists, chosen), "check": checked(limit, max_false_negatives=share)}
        for share, (limit, chosen) in zip(BUDGETS, within(mined, BUDGETS), strict=True)
    ]
    found = []
    for name, fixed in FIXED.items():
        start, end = fixed.window
        again = checked(None, mask=fixed.rule, threshold=fixed.value, window_start=start, window_end=end)
        known = None if fixed.bare else again  # the ranks of what was hidden count the known positives
        found.append({"rule": name, **line(mined.lists, emitted(mined, fixed)), "check": known})
    return {"queries": len(mined.lists.room), "of": len(train), "budgets": budgets, "rules": found}


def rooms(table: pl.DataFrame, judged: pl.DataFrame, room: int) -> Ints:
    """What a query's curated negatives leave of `room`, for each query of `table` in its order: [q]."""
    curated = judged.filter(pl.col("relevance") == 0).group_by("query_id").agg(curated=pl.len())
    queries = table.select(pl.col("query_id").unique(maintain_order=True))
    taken = queries.join(curated, on="query_id", how="left", maintain_order="left")["curated"]
    return (room - taken.fill_null(0).cast(pl.Int64)).clip(0).to_numpy()


def line(lists: Lists, chosen: Bools) -> dict[str, float | None]:
    """The expected share of false negatives among `chosen`, its 95 % interval, their mean score, and the fill."""
    n = chosen.sum(axis=1)
    p = np.where(chosen, lists.p, 0).sum(axis=1, dtype=np.float64)
    whole = int(n.sum())
    if not whole:
        return {"expected": None, "low": None, "high": None, "hardness": None, "fill": 0.0}
    drawn = np.random.default_rng(0).integers(0, len(n), (SAMPLES, len(n)))
    shares = p[drawn].sum(axis=1) / np.maximum(n[drawn].sum(axis=1), 1)
    low, high = np.quantile(shares, [0.025, 0.975])
    return {
        "expected": float(p.sum() / whole),
        "low": float(low),
        "high": float(high),
        "hardness": float(lists.score[chosen].mean(dtype=np.float64)),
        "fill": whole / int(lists.room.sum()),
    }
