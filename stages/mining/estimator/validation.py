"""Check: what a mask does with false negatives whose label is known, the positives that the estimate did not see."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from stages.core.schemas import Summary
from stages.mining import risk_budget, threshold_rules
from stages.mining.estimator import model
from stages.mining.risk_budget import Limit

SAMPLES = 500
ELSEWHERE = "0 to 5.1 % (median 1.6 %)"
"""`prep bench negatives stackfaq bioasq policyqa medquad medquad_liveqa covid_faq --left one`."""


def found_again(params: Any, limit: Limit | None, taught: pl.DataFrame) -> Summary | None:
    """What the mask of `params` writes for the questions of `taught` (TAUGHT), each judged by a fold that did not see
    it: how many negatives and how many hidden positives among them, the expected share of false ones and the observed
    one, with its 95 % interval (low, high; a bootstrap over questions), and the share that the learned mask accepts.

    One of a question's positives is hidden at a time, and stands for those that nobody labelled: MISSING for each that
    is left (`stages.mining.estimator.model`). Both shares are of what is chosen beside it, as much as each of that
    counts. None where nothing was hidden.
    """
    if taught.is_empty():
        return None
    rows = taught
    if limit is None:
        figures = {name: rows[name].to_numpy() for name in ("score", "rank", "lowest", "best")}
        threshold = threshold_rules.thresholds(params.mask, params.limit, figures["lowest"], figures["best"])
        window = params.window_start, params.window_end
        rows = rows.filter(
            pl.Series(threshold_rules.passes(params.mask, figures["score"], figures["rank"], threshold, window))
        )
    else:
        rows = rows.filter(pl.col("p_false_negative") <= risk_budget.LIKELY)
    p = rows["p_false_negative"].to_numpy()
    query = rows.select(pl.struct("query_id", "turn").rle_id()).to_series().cast(pl.Int64).to_numpy()
    room = np.full(int(query.max(initial=-1)) + 1, params.negatives)
    lists, at = risk_budget.padded(query, rows["score"].to_numpy(), p, room)
    chosen = risk_budget.choose(lists, limit.price if limit else 0.0)[at] & (p <= (limit.ceiling if limit else 1.0))
    wrong = chosen & rows["hidden"].to_numpy()
    known = rows["weight"].to_numpy().astype(np.float64) - 1
    left = np.where(chosen & ~wrong, model.counted(p.astype(np.float64), known), 0.0)
    expected = float((p * left).sum() / max(left.sum(), 1))
    asked = taught.select(pl.col("query_id").unique(maintain_order=True)).with_row_index("question")
    question = rows.join(asked, on="query_id", how="left", maintain_order="left")["question"].to_numpy()
    weighed = np.bincount(question, model.MISSING * known * wrong, len(asked))
    beside = np.bincount(question, left, len(asked))
    drawn = np.random.default_rng(0).integers(0, len(asked), (SAMPLES, len(asked)))
    low, high = np.quantile(_share(weighed[drawn].sum(axis=1), beside[drawn].sum(axis=1)), [0.025, 0.975])
    return {
        "questions": len(asked),
        "negatives": int(chosen.sum()),
        "hidden": int(wrong.sum()),
        "expected": round(expected, 5),
        "observed": round(float(_share(weighed.sum(), beside.sum())), 5),
        "low": round(float(low), 5),
        "high": round(float(high), 5),
        "accepted": params.max_false_negatives if limit else None,
    }


def _share(false: Any, others: Any) -> Any:
    return np.minimum(false / np.maximum(others, 1), 1.0)


def lines(estimate: Mapping[str, Any] | None) -> list[str]:
    """How it is known how many of the negatives are false, for a person; `estimate` is of the mask's summary."""
    if not estimate:
        return []
    if estimate["unfit"]:
        return [f"how many negatives are false can't be told on this table: {estimate['unfit']}"]
    if said := estimate["check"]:
        return [
            f"checked on {said['questions']:,} questions of this table by hiding positives, each judged by a model "
            f"that did not see it: expected {said['expected']:.2%} false negatives, found {found(said)} of "
            f"{said['negatives']:,} negatives",
            *_beyond(said),
        ]
    return [
        "the estimate of false negatives is not checked on this table, where too few questions have several positives: "
        f"it is the shipped prior's alone, which gave {ELSEWHERE} where 2 % were accepted, on collections new to it"
    ]


def found(check: Mapping[str, Any]) -> str:
    """The observed share of a check with its interval, and how many hidden positives it rests on."""
    if not check["hidden"]:
        return "none"
    return f"{check['observed']:.2%} [{check['low']:.2%}, {check['high']:.2%}], {check['hidden']:,} hidden positives"


def _beyond(check: Mapping[str, Any]) -> list[str]:
    """Where more was found than is accepted, and not by luck alone, that has to be said."""
    if check["accepted"] is None or check["low"] <= check["accepted"]:
        return []
    return [
        f"that is more than the {check['accepted']:.1%} that you accept: the estimate is too hopeful here. Lower "
        "max_false_negatives; `prep calibrate` shows what is found at each"
    ]
