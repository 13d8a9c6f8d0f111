"""Select negatives that are hard, under a limit on the expected share of false negatives among them.

Each query needs n negatives with high scores. The expected number of false negatives is the sum of p_false_negative
over the selected ones. To maximise the sum of scores under a limit on the sum of p is a linear programme. Its solution
takes in each query the n candidates with the highest score - lambda x p, with one lambda for all queries: the Lagrange
multiplier of the limit. So risk is taken where it buys the most hardness, and every query gets its negatives.

Lambda is searched on a geometric grid, and the smallest one that keeps the limit is taken. So a small change of the
table rarely changes lambda.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from stages.core.arrays import Bools, Doubles, Floats, Ints
from stages.core.query_batches import collect_query_batch, map_query_batches
from stages.mining.params import RiskPolicy

MAX_P_FALSE_NEGATIVE = 0.5
"""A candidate with a higher p_false_negative is never selected, whatever its score and the limit."""
LAMBDAS: Doubles = np.concatenate([[0.0], 2.0 ** np.arange(-12, 14.25, 0.25)])
"""The values of lambda that are tried, in units of `estimate_score_scale`. At the last one only p matters."""

_BUDGET_QUERIES_PER_BATCH = 1_024
"""Queries that are evaluated at once for all values of lambda, so that their candidates stay in the CPU cache."""
_EXCLUDING_FLAGS = ("same_text", "curated_negative", "contains_answer", "llm_judge")
_BUDGET_COLUMNS = ["query_id", "score", "p_false_negative", "positive_similarity", "positive_kind", *_EXCLUDING_FLAGS]


@dataclass(frozen=True)
class PaddedCandidates:
    """The candidates of some queries as padded tables [q, width], the best score first in each row."""

    score: Floats
    p: Floats
    """p_false_negative."""
    eligible: Bools
    """The cells that hold a candidate that may be selected."""
    quota: Ints
    """[q]: the number of negatives that each query needs."""

    def restrict(self, mask: Bools) -> "PaddedCandidates":
        """The same candidates, of which only those in `mask` [q, width] stay eligible."""
        return replace(self, eligible=self.eligible & mask)


@dataclass(frozen=True)
class LambdaSums:
    """Sums over the negatives that each lambda selects: [len(LAMBDAS)]. The sums of several batches can be added."""

    n_selected: Ints
    p_sum: Doubles
    score_sum: Doubles
    p_at_max_lambda: Floats
    """p_false_negative of each negative that the last lambda selects."""

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
    """How negatives are selected so that the limit holds: lambda, and a limit on p if no lambda is enough."""

    max_false_negative_rate: float
    """The limit on the expected share of false negatives."""
    lambda_: float
    max_p: float
    """No candidate with a higher p_false_negative is selected; 1 if lambda alone keeps the limit."""
    mean_p: float
    """The mean p_false_negative of the selected negatives: the expected share of false ones."""
    hardness: float
    """The mean score of the selected negatives."""
    n_selected: int

    def select(self, candidates: PaddedCandidates) -> Bools:
        """The selected candidates [q, width]."""
        return select_at_lambda(candidates, self.lambda_) & (candidates.p <= self.max_p)

    def compute_limits(self, candidates: PaddedCandidates) -> Floats:
        """The highest p_false_negative [q, width] with which each candidate may still be a negative.

        For candidates up to the last one that lambda selects in the row it is the p at which the candidate's value
        equals the lowest selected value: (score - lowest selected value) / lambda. For candidates after it, from which
        random samples are drawn, it is `max_false_negative_rate`, so that samples keep the limit too. It is never above
        `max_p`.
        """
        selected = select_at_lambda(candidates, self.lambda_)
        value = candidates.score.astype(np.float64) - self.lambda_ * candidates.p
        lowest_value = np.where(selected, value, np.inf).min(axis=1, keepdims=True, initial=np.inf)
        limits = np.ones_like(candidates.p, np.float64)
        if self.lambda_:
            has_selection = np.isfinite(lowest_value)
            excess = candidates.score - np.where(has_selection, lowest_value, 0)
            limits = np.where(has_selection, np.clip(excess / self.lambda_, 0, 1), 1.0)
        # rounding must not change which candidates are selected
        below_p = np.nextafter(candidates.p, np.float32(-1))
        limits = np.where(selected, np.maximum(limits, candidates.p), np.minimum(limits, below_p))
        out = np.where(mark_through_last_selected(selected), limits, self.max_false_negative_rate)
        return np.minimum(out, self.max_p).astype(np.float32)


def select_at_lambda(candidates: PaddedCandidates, lambda_: float) -> Bools:
    """Select in each query the `quota` eligible candidates with the highest score - lambda x p: [q, width].

    Of candidates with equal values the first are selected.
    """
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


def mark_through_last_selected(selection: Bools) -> Bools:
    """The cells [q, width] from each row's first to its last selected candidate; none in a row without one."""
    out: Bools = np.logical_or.accumulate(selection[:, ::-1], axis=1)[:, ::-1]
    return out


def keep_pareto_candidates(candidates: PaddedCandidates) -> PaddedCandidates:
    """Only the candidates that some lambda could select; `select_at_lambda` gives the same for them at any lambda.

    A candidate is dropped if at least `quota` others have a score that is not lower and a p that is not higher. Of 200
    candidates a query a few dozen are left.
    """
    max_quota, queries = int(candidates.quota.max(initial=0)), np.arange(len(candidates.quota))
    smallest_p = np.full((max_quota, len(queries)), np.inf)  # the smallest p so far in each query, ascending
    is_pareto = np.zeros_like(candidates.eligible)
    for column in range(candidates.eligible.shape[1] if max_quota else 0):
        p = np.where(candidates.eligible[:, column], candidates.p[:, column], np.inf)
        is_pareto[:, column] = (p < smallest_p[candidates.quota - 1, queries]) & (candidates.quota > 0)
        smallest_p[1:] = np.maximum(smallest_p[:-1], np.minimum(smallest_p[1:], p))
        smallest_p[0] = np.minimum(smallest_p[0], p)
    query, column_of = np.nonzero(is_pareto)
    return pad_by_query(query, candidates.score[query, column_of], candidates.p[query, column_of], candidates.quota)[0]


def evaluate_lambdas(candidates: PaddedCandidates, score_scale: float) -> LambdaSums:
    """The sums over what each of LAMBDAS, times `score_scale`, selects."""
    total = EMPTY_LAMBDA_SUMS
    for start in range(0, len(candidates.quota), _BUDGET_QUERIES_PER_BATCH):
        pareto = keep_pareto_candidates(
            PaddedCandidates(*(part[start : start + _BUDGET_QUERIES_PER_BATCH] for part in vars(candidates).values()))
        )
        selected = [select_at_lambda(pareto, lambda_ * score_scale) for lambda_ in LAMBDAS]
        total += LambdaSums(
            np.array([c.sum() for c in selected]),
            np.array([pareto.p[c].sum(dtype=np.float64) for c in selected]),
            np.array([pareto.score[c].sum(dtype=np.float64) for c in selected]),
            pareto.p[selected[-1]],
        )
    return total


def solve_lambda(sums: LambdaSums, max_false_negative_rate: float, score_scale: float) -> RiskSolution:
    """The smallest lambda that selects negatives of which at most `max_false_negative_rate` are expected to be false.

    If no lambda does, the last one is taken with a limit on p: of what it selects, the candidates with the smallest p
    whose mean p is at most `max_false_negative_rate`. `score_scale` is that of `evaluate_lambdas`.
    """
    n = np.maximum(sums.n_selected, 1)
    for i in np.flatnonzero(sums.p_sum / n <= max_false_negative_rate):
        mean_p, hardness = float(sums.p_sum[i] / n[i]), float(sums.score_sum[i] / n[i])
        lambda_ = float(LAMBDAS[i] * score_scale)
        return RiskSolution(max_false_negative_rate, lambda_, 1.0, mean_p, hardness, int(sums.n_selected[i]))
    sorted_p = np.sort(sums.p_at_max_lambda).astype(np.float64)
    running_mean = np.cumsum(sorted_p) / np.arange(1, len(sorted_p) + 1)
    n_kept = int((running_mean <= max_false_negative_rate).sum())
    if n_kept < len(sorted_p):  # of candidates with equal p all are kept, or none
        n_kept = int(np.searchsorted(sorted_p, sorted_p[n_kept]))
    max_p = float(sorted_p[n_kept - 1]) if n_kept else 0.0
    mean_p = float(running_mean[n_kept - 1]) if n_kept else 0.0
    lambda_, hardness = float(LAMBDAS[-1] * score_scale), float(sums.score_sum[-1] / n[-1])
    return RiskSolution(max_false_negative_rate, lambda_, max_p, mean_p, hardness, n_kept)


def pad_by_query(query: Ints, score: Floats, p: Floats, quota: Ints) -> tuple[PaddedCandidates, tuple[Ints, Ints]]:
    """Rows [n] sorted by query as `PaddedCandidates`, and the (row, column) of each in these tables.

    `query` [n] are numbers from 0 to len(quota) - 1.
    """
    counts = np.bincount(query, minlength=len(quota))
    column = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
    shape = (len(quota), int(counts.max(initial=0)))
    scores, ps, eligible = np.zeros(shape, np.float32), np.ones(shape, np.float32), np.zeros(shape, np.bool_)
    scores[query, column], ps[query, column], eligible[query, column] = score, p, True
    return PaddedCandidates(scores, ps, eligible, quota), (query, column)


def pad_eligible_candidates(
    policy: RiskPolicy, rows: pl.DataFrame, max_p: float = MAX_P_FALSE_NEGATIVE
) -> tuple[PaddedCandidates, tuple[Ints, Ints], Bools]:
    """The candidates among `rows` (CANDIDATE_FEATURES of some queries) that may be selected by their p_false_negative.

    These have a p of at most `max_p`, are no known positive and are not excluded for another reason. Returned are the
    tables and cells of `pad_by_query`, and which of the rows [n] are in them. A query's quota is what its curated
    negatives leave of `policy.num_negatives`.
    """
    rows = rows.with_columns(
        quota=(
            policy.num_negatives - pl.col("curated_negative").fill_null(False).sum().over("query_id").cast(pl.Int64)
        ).clip(0)
    )
    flags = [pl.col(flag).fill_null(False) for flag in _EXCLUDING_FLAGS if flag in rows.columns]
    is_excluded = pl.any_horizontal(pl.col("positive_kind").is_not_null(), *flags)
    min_similarity = pl.lit(policy.near_duplicate_similarity, pl.Float32)
    is_excluded |= (pl.col("positive_similarity") >= min_similarity).fill_null(False)
    is_eligible = (
        rows.select((pl.col("p_false_negative") <= max_p).fill_null(False) & ~is_excluded).to_series().to_numpy()
    )
    eligible_rows = rows.filter(is_eligible)
    query = eligible_rows["query_id"].rle_id().cast(pl.Int64).to_numpy()
    quota = eligible_rows.group_by("query_id", maintain_order=True).agg(pl.col("quota").first())["quota"].to_numpy()
    candidates, cells = pad_by_query(
        query, eligible_rows["score"].to_numpy(), eligible_rows["p_false_negative"].to_numpy(), quota
    )
    return candidates, cells, is_eligible


def estimate_score_scale(rows: pl.LazyFrame) -> float:
    """The mean over queries of the standard deviation of their candidates' scores, rounded to a power of 2.

    It is rounded so that a small change of the table rarely changes lambda. It is 1 if all scores of each query are
    equal. `rows`: query_id, score.
    """
    deviations = rows.group_by("query_id").agg(pl.col("score").cast(pl.Float64).std(ddof=0)).sort("query_id").collect()
    mean = float(deviations["score"].fill_null(0.0).to_numpy().mean()) if len(deviations) else 0.0
    return float(2.0 ** round(np.log2(mean))) if mean > 0 else 1.0


def solve_risk_budget(
    policy: RiskPolicy, candidate_features: pl.LazyFrame, queries: pl.DataFrame, batches: Iterable[pl.Series]
) -> RiskSolution:
    """The solution for the train queries of `queries` (query_id, split), whose candidates are read batch by batch.

    The mask solves it for the final p_false_negative. If a verifier or an LLM judge is asked, the verify step solves it
    before that, for the p of the estimator, to find the candidates that may be selected.
    """
    train = queries.filter(pl.col("split") == "train")["query_id"]
    columns = [name for name in _BUDGET_COLUMNS if name in candidate_features.collect_schema().names()]
    score_scale = estimate_score_scale(candidate_features.select("query_id", "score"))

    def evaluate_batch(batch: pl.Series) -> LambdaSums:
        rows = collect_query_batch(candidate_features.select(columns), batch)
        rows = rows.filter(pl.col("query_id").is_in(train.implode()))
        return evaluate_lambdas(pad_eligible_candidates(policy, rows)[0], score_scale)

    total = sum(map_query_batches(evaluate_batch, batches), start=EMPTY_LAMBDA_SUMS)
    return solve_lambda(total, policy.max_false_negatives, score_scale)
