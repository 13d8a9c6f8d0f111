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

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.core.query_batches import collect_query_batch, map_query_batches
from stages.mining.params import RiskPolicy

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

LAMBDAS: Doubles = np.concatenate([[0.0], 2.0 ** np.arange(-12, 14.25, 0.25)])
"""In units of the scores' spread within a query (`estimate_score_scale`); at the last, only p counts."""

_BUDGET_QUERIES_PER_BATCH = 1_024
"""Queries looked at together at every price: their candidates stay in the cache."""


@dataclass(frozen=True)
class PaddedCandidates:
    """Some queries' candidates as padded tables [q, width], best score first; `eligible` marks what may be chosen."""

    score: Floats
    p: Floats
    eligible: Bools
    quota: Ints
    """[q]: negatives wanted."""


@dataclass(frozen=True)
class LambdaSums:
    """Sums over the negatives chosen at each price [len(PRICES)]; add up the choices of blocks of queries."""

    n_selected: Ints
    p_sum: Doubles
    score_sum: Doubles
    p_at_max_lambda: Floats
    """p of each negative chosen at the highest price."""

    def __add__(self, other: "LambdaSums") -> "LambdaSums":
        return LambdaSums(
            self.n_selected + other.n_selected,
            self.p_sum + other.p_sum,
            self.score_sum + other.score_sum,
            np.concatenate([self.p_at_max_lambda, other.p_at_max_lambda]),
        )


EMPTY_LAMBDA_SUMS = LambdaSums(
    np.zeros(len(LAMBDAS), np.int64), np.zeros(len(LAMBDAS)), np.zeros(len(LAMBDAS)), np.zeros(0, np.float32)
)


@dataclass(frozen=True)
class RiskSolution:
    """What the budget comes to: the price; and where even the highest is too low, the p up to which is taken."""

    lambda_: float
    max_p: float
    mean_p: float
    """Mean p of the negatives that are chosen so."""
    hardness: float
    n_selected: int


def select_at_lambda(candidates: PaddedCandidates, lambda_: float) -> Bools:
    """The chosen candidates [q, width]: in each query the `quota` best by score - price x p, of equals the first."""
    value = np.where(candidates.eligible, candidates.score.astype(np.float64) - lambda_ * candidates.p, -np.inf)
    max_quota = min(int(candidates.quota.max(initial=0)), value.shape[1])
    if not max_quota:
        return np.zeros_like(candidates.eligible)
    top_values = np.sort(
        np.partition(value, value.shape[1] - max_quota, axis=1)[:, value.shape[1] - max_quota :], axis=1
    )
    cutoff = np.where(
        candidates.quota > 0,
        top_values[np.arange(len(top_values)), np.clip(max_quota - candidates.quota, 0, max_quota - 1)],
        np.inf,
    )
    above, equal = value > cutoff[:, None], value == cutoff[:, None]
    remaining = candidates.quota - above.sum(axis=1)
    selected: Bools = candidates.eligible & (above | (equal & (equal.cumsum(axis=1) <= remaining[:, None])))
    return selected


def keep_pareto_candidates(candidates: PaddedCandidates) -> PaddedCandidates:
    """Only those candidates that some price could choose; `select_at_lambda` takes the same ones of them at any price.

    One that has as many others before it as there is room for, each no more probable than itself, comes after them at
    every price: of some 200 candidates a few dozen are left.
    """
    max_quota, queries = int(candidates.quota.max(initial=0)), np.arange(len(candidates.quota))
    smallest_p = np.full((max_quota, len(queries)), np.inf)  # the least p of those before, rising
    is_pareto = np.zeros_like(candidates.eligible)
    for place in range(candidates.eligible.shape[1] if max_quota else 0):
        p = np.where(candidates.eligible[:, place], candidates.p[:, place], np.inf)
        is_pareto[:, place] = (p < smallest_p[candidates.quota - 1, queries]) & (candidates.quota > 0)
        smallest_p[1:] = np.maximum(smallest_p[:-1], np.minimum(smallest_p[1:], p))
        smallest_p[0] = np.minimum(smallest_p[0], p)
    query, column = np.nonzero(is_pareto)
    return pad_by_query(query, candidates.score[query, column], candidates.p[query, column], candidates.quota)[0]


def evaluate_lambdas(candidates: PaddedCandidates, score_scale: float) -> LambdaSums:
    """What each of PRICES chooses, in `score_scale`s of score."""
    total = EMPTY_LAMBDA_SUMS
    for start in range(0, len(candidates.quota), _BUDGET_QUERIES_PER_BATCH):
        pareto = keep_pareto_candidates(
            PaddedCandidates(*(part[start : start + _BUDGET_QUERIES_PER_BATCH] for part in vars(candidates).values()))
        )
        selected = [select_at_lambda(pareto, price * score_scale) for price in LAMBDAS]
        total += LambdaSums(
            np.array([c.sum() for c in selected]),
            np.array([pareto.p[c].sum(dtype=np.float64) for c in selected]),
            np.array([pareto.score[c].sum(dtype=np.float64) for c in selected]),
            pareto.p[selected[-1]],
        )
    return total


def solve_lambda(sums: LambdaSums, max_false_negative_rate: float, score_scale: float) -> RiskSolution:
    """The least price at which at most `max_false_negative_rate` of the negatives are expected to be false;
    `score_scale` is that of `evaluate_lambdas`.

    Where none is high enough, the highest, and of what it chooses the least probable up to `max_false_negative_rate` in
    the mean.
    """
    n = np.maximum(sums.n_selected, 1)
    for place in np.flatnonzero(sums.p_sum / n <= max_false_negative_rate):
        mean_p, hardness = float(sums.p_sum[place] / n[place]), float(sums.score_sum[place] / n[place])
        return RiskSolution(float(LAMBDAS[place] * score_scale), 1.0, mean_p, hardness, int(sums.n_selected[place]))
    sorted_p = np.sort(sums.p_at_max_lambda).astype(np.float64)
    running_mean = np.cumsum(sorted_p) / np.arange(1, len(sorted_p) + 1)
    n_kept = int((running_mean <= max_false_negative_rate).sum())
    if n_kept < len(sorted_p):  # of equal ones all are taken or none
        n_kept = int(np.searchsorted(sorted_p, sorted_p[n_kept]))
    max_p = float(sorted_p[n_kept - 1]) if n_kept else 0.0
    mean_p = float(running_mean[n_kept - 1]) if n_kept else 0.0
    return RiskSolution(float(LAMBDAS[-1] * score_scale), max_p, mean_p, float(sums.score_sum[-1] / n[-1]), n_kept)


def compute_risk_limits(candidates: PaddedCandidates, solution: RiskSolution, max_false_negative_rate: float) -> Floats:
    """The highest p [q, width] with which each candidate may be a negative; above it, it is set aside.

    Down to the last that is chosen: what its hardness is worth, (score - the last chosen value) / price. Below that,
    where random draws go: `max_false_negative_rate`, so that these keep the limit too. Never above the ceiling.
    """
    if not candidates.score.size:
        return np.zeros(candidates.score.shape, np.float32)
    selected = select_at_lambda(candidates, solution.lambda_)
    value = candidates.score.astype(np.float64) - solution.lambda_ * candidates.p
    cutoff = np.where(selected, value, np.inf).min(axis=1, keepdims=True)
    width = candidates.score.shape[1]
    last_selected = np.where(selected.any(axis=1), width - 1 - selected[:, ::-1].argmax(axis=1), -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        break_even_p = (
            np.where(np.isfinite(cutoff), (candidates.score - cutoff) / solution.lambda_, 1.0)
            if solution.lambda_
            else None
        )
    limits = (
        np.ones_like(candidates.p, np.float64)
        if break_even_p is None
        else np.clip(np.nan_to_num(break_even_p, nan=0.0), 0, 1)
    )
    # the last bits of what is chosen and what is not must not hang on this arithmetic
    limits = np.where(
        selected, np.maximum(limits, candidates.p), np.minimum(limits, np.nextafter(candidates.p, np.float32(-1)))
    )
    out = np.where(np.arange(width)[None] <= last_selected[:, None], limits, max_false_negative_rate)
    return np.minimum(out, solution.max_p).astype(np.float32)


def pad_by_query(
    query: NDArray[np.int64], score: Floats, p: Floats, quota: Ints
) -> tuple[PaddedCandidates, tuple[Ints, Ints]]:
    """Rows sorted by query as `PaddedCandidates`, and the (row, column) of each; `query` counts 0 to len(room) -
    1."""
    counts = np.bincount(query, minlength=len(quota))
    column = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
    shape = (len(quota), int(counts.max(initial=0)))
    scores, ps, eligible = np.zeros(shape, np.float32), np.ones(shape, np.float32), np.zeros(shape, np.bool_)
    scores[query, column], ps[query, column], eligible[query, column] = score, p, True
    return PaddedCandidates(scores, ps, eligible, quota), (query, column)


MAX_P_FALSE_NEGATIVE = 0.5
"""What is likelier false than not is never emitted, however hard it is and however much the budget leaves."""
_EXCLUDING_FLAGS = ("same_text", "curated_negative", "contains_answer", "verifier_false_negative", "llm_judge")
_BUDGET_COLUMNS = ["query_id", "score", "p_false_negative", "positive_similarity", "positive_kind", *_EXCLUDING_FLAGS]


def pad_eligible_candidates(
    policy: RiskPolicy, rows: pl.DataFrame, max_p: float = MAX_P_FALSE_NEGATIVE
) -> tuple[PaddedCandidates, tuple[Ints, Ints], Bools]:
    """What of some queries' EVIDENCE may be emitted by the estimate, as `pad_by_query` gives it, and which of the rows
    [n]
    that is: what has a p of at most `max_p`. The room of a query is what its curated negatives leave."""
    rows = rows.with_columns(
        room=(
            policy.num_negatives - pl.col("curated_negative").fill_null(False).sum().over("query_id").cast(pl.Int64)
        ).clip(0)
    )
    flags = [pl.col(flag).fill_null(False) for flag in _EXCLUDING_FLAGS if flag in rows.columns]
    is_excluded = pl.any_horizontal(pl.col("positive_kind").is_not_null(), *flags)
    is_excluded |= (pl.col("positive_similarity") >= pl.lit(policy.duplicate_similarity, pl.Float32)).fill_null(False)
    is_eligible = (
        rows.select((pl.col("p_false_negative") <= max_p).fill_null(False) & ~is_excluded).to_series().to_numpy()
    )
    eligible_rows = rows.filter(is_eligible)
    query = eligible_rows["query_id"].rle_id().cast(pl.Int64).to_numpy()
    quota = eligible_rows.group_by("query_id", maintain_order=True).agg(pl.col("room").first())["room"].to_numpy()
    candidates, cells = pad_by_query(
        query, eligible_rows["score"].to_numpy(), eligible_rows["p_false_negative"].to_numpy(), quota
    )
    return candidates, cells, is_eligible


def estimate_score_scale(rows: pl.LazyFrame) -> float:
    """The mean standard deviation of the scores of a query's candidates (query_id, score), rounded to a power of 2 so
    that a price rarely moves when the table does; 1 where all scores of each query are equal."""
    deviations = rows.group_by("query_id").agg(pl.col("score").cast(pl.Float64).std(ddof=0)).sort("query_id").collect()
    mean = float(deviations["score"].fill_null(0.0).to_numpy().mean()) if len(deviations) else 0.0
    return float(2.0 ** round(np.log2(mean))) if mean > 0 else 1.0


def solve_risk_budget(
    policy: RiskPolicy, candidate_features: pl.LazyFrame, queries: pl.DataFrame, blocks: Iterable[pl.Series]
) -> RiskSolution:
    """The limit under which the train questions of `queries` (query_id, split) are served, block by block."""
    train = queries.filter(pl.col("split") == "train")["query_id"]
    columns = [name for name in _BUDGET_COLUMNS if name in candidate_features.collect_schema().names()]
    score_scale = estimate_score_scale(candidate_features.select("query_id", "score"))

    def evaluate_block(block: pl.Series) -> LambdaSums:
        rows = collect_query_batch(candidate_features.select(columns), block).filter(
            pl.col("query_id").is_in(train.implode())
        )
        return evaluate_lambdas(pad_eligible_candidates(policy, rows)[0], score_scale)

    total = sum(map_query_batches(evaluate_block, blocks), start=EMPTY_LAMBDA_SUMS)
    return solve_lambda(total, policy.max_false_negatives, score_scale)
