"""Bench of negatives: hide half of each question's positives, mine under each rule, count how many come back.

What was hidden is a false negative whose label we know. *Leak* is the share of hidden positives among the negatives
mined; *hardness* the mean retriever score of the others; *fill* the share of the wanted negatives that was found. Rules
differ in hardness, and an easier negative is less often false; so the figure that counts is the leak of each rule
against the learned mask's at the same hardness (the price of `stages.mining.risk_budget` is set so that they agree).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.bench.collections import HoldoutCollection
from stages.core.arrays import Bools, Floats, Ints
from stages.core.errors import InputError
from stages.core.schemas import PAIR_COLUMNS
from stages.mining import risk_budget, threshold_rules
from stages.mining.candidates.known_positives import compute_positive_score_range
from stages.mining.estimator.logistic_model import model_to_dict
from stages.mining.estimator.pretrained_model import fit_pretrained_model
from stages.mining.risk_budget import PaddedCandidates, RiskSolution
from stages.mining.threshold_rules import RuleName


@dataclass(frozen=True)
class RulePreset:
    """A fixed rule as one of the systems in use states it."""

    rule: RuleName
    threshold: float | None = None
    rank_window: tuple[int, int] = (0, 0)
    source: str = ""
    excludes_positives: bool = False
    """The window's ranks are counted without the known positives."""


RULE_PRESETS: dict[str, RulePreset] = {
    "naive": RulePreset("none", source="top-k"),
    "perc 0.95": RulePreset("perc", 0.95, source="NV-Retriever TopK-PercPos, NeMo; sentence-transformers "
                                                 "relative_margin"),
    "perc 0.9": RulePreset("perc", 0.9, source="sentence-transformers relative_margin 0.1"),
    "perc_max 0.95": RulePreset("perc_max", 0.95, source="on the best positive"),
    "perc_max 0.9": RulePreset("perc_max", 0.9, source="on the best positive"),
    "margin 0.05": RulePreset("margin", 0.05, source="NV-Retriever TopK-MarginPos, NeMo; s-t absolute_margin"),
    "margin 0.1": RulePreset("margin", 0.1, source="sentence-transformers absolute_margin 0.1"),
    "abs 0.7": RulePreset("abs", 0.7, source="NV-Retriever TopK-Abs; sentence-transformers max_score"),
    "infonce 0.1": RulePreset("infonce", 0.1, source="SWIFT INFONCE_MASK_FAKE_NEGATIVE"),
    "window 10-210": RulePreset("window", rank_window=(10, 210), source="FlagEmbedding range_for_sampling"),
    "range_min 10": RulePreset("window", rank_window=(10, 10**9), source="sentence-transformers "
                                                                         "range_min", excludes_positives=True),
}  # fmt: skip
LEAK_BUDGETS = (0.01, 0.02, 0.05)
NEAR_POSITIVE_COSINE = 0.98

EstimatorTrainingSet = tuple[HoldoutCollection, Floats, Bools]
"""A collection, the features [n, len(FEATURES)] of its candidates, and which of these are hidden [n]."""


@dataclass(frozen=True)
class CandidateMatrix:
    """The candidates of the questions mined for, as lists without the known positives, and what is known of them."""

    lists: PaddedCandidates
    rank: NDArray[np.int32]
    """[q, width], the known positives counted among the ranks."""
    is_held_out: Bools
    is_nonrelevant: Bools
    is_near_positive: Bools
    """Nearly equal to a known positive."""
    positive_score_min: Floats
    positive_score_max: Floats
    """[q]: scores of the lowest and the best known positive."""


def build_candidate_matrix(
    rows: pl.DataFrame,
    p_false_negative: Floats,
    qrels_scored: pl.DataFrame,
    n_negatives: int,
    held_out_positives: pl.DataFrame | None = None,
    nonrelevant: pl.DataFrame | None = None,
    near_positives: pl.DataFrame | None = None,
) -> CandidateMatrix:
    """`rows` (query_id, doc_id, rank, score) in the order of lists, with p_false_negative [n], as `CandidateMatrix`.

    `qrels_scored` holds the known positives' scores; `held_out_positives`, `nonrelevant` and `is_near_positive`
    (query_id, doc_id) what is known besides.
    """
    query = rows["query_id"].rle_id().cast(pl.Int64).to_numpy()
    ids = rows.select(pl.col("query_id").unique(maintain_order=True))
    score = rows["score"].to_numpy()
    candidates, at = risk_budget.pad_by_query(query, score, p_false_negative, np.full(len(ids), n_negatives))
    masks = []
    for pairs in (held_out_positives, nonrelevant, near_positives):
        marked_pairs = (rows.clear() if pairs is None else pairs).select(*PAIR_COLUMNS, is_marked=pl.lit(True))
        is_marked = rows.join(marked_pairs, on=PAIR_COLUMNS, how="left", maintain_order="left")["is_marked"]
        masks.append(_scatter_to_matrix(is_marked.fill_null(False).to_numpy(), candidates.eligible.shape, at))
    positive_scores = compute_positive_score_range(qrels_scored.filter(pl.col("relevance") > 0))
    positive_scores = ids.join(positive_scores, on="query_id", how="left", maintain_order="left")
    return CandidateMatrix(
        candidates,
        _scatter_to_matrix(rows["rank"].cast(pl.Int32).to_numpy(), candidates.eligible.shape, at),
        masks[0],
        masks[1],
        masks[2],
        positive_scores["positive_score_min"].to_numpy(),
        positive_scores["positive_score_max"].to_numpy(),
    )


def _scatter_to_matrix(values: NDArray[Any], shape: tuple[int, ...], at: tuple[Ints, Ints]) -> NDArray[Any]:
    matrix = np.zeros(shape, values.dtype)
    matrix[at] = values
    return matrix


def select_by_preset(matrix: CandidateMatrix, preset: RulePreset) -> Bools:
    """What a fixed rule takes [q, width]: the best of those that it lets through."""
    limit = threshold_rules.compute_thresholds(
        preset.rule, preset.threshold, matrix.positive_score_min, matrix.positive_score_max
    )
    shape = matrix.lists.score.shape
    rank = (
        np.broadcast_to(np.arange(1, shape[1] + 1, dtype=np.int32), shape) if preset.excludes_positives else matrix.rank
    )
    is_accepted = threshold_rules.passes_rule(
        preset.rule,
        matrix.lists.score.ravel(),
        rank.ravel(),
        np.repeat(limit, shape[1]),
        preset.rank_window,
    ).reshape(shape)
    return risk_budget.select_at_lambda(matrix.lists.restrict(is_accepted), 0.0)


def compute_leak_metrics(matrix: CandidateMatrix, selection: Bools) -> dict[str, float | None]:
    """negatives, how many; leak; rows, the share of questions with a leak; hardness; fill; near_duplicates, the share
    with a cosine of at least NEAR with a known positive; judged_negatives, those kept of the candidates that people
    judged not relevant."""
    n, is_false_negative = int(selection.sum()), selection & matrix.is_held_out
    is_other_negative = selection & ~matrix.is_held_out
    n_requested = int(matrix.lists.quota.sum())
    n_nonrelevant = int(matrix.is_nonrelevant.sum())
    return {
        "negatives": n,
        "leak": int(is_false_negative.sum()) / n if n else None,
        "rows": float(is_false_negative.any(axis=1).mean()) if len(is_false_negative) else None,
        "hardness": float(matrix.lists.score[is_other_negative].mean(dtype=np.float64))
        if is_other_negative.any()
        else None,
        "fill": n / n_requested if n_requested else None,
        "near_duplicates": int((selection & matrix.is_near_positive).sum()) / n if n else None,
        "judged_negatives": int((selection & matrix.is_nonrelevant).sum()) / n_nonrelevant if n_nonrelevant else None,
    }


def select_within_budgets(matrix: CandidateMatrix, budgets: Sequence[float]) -> list[tuple[RiskSolution, Bools]]:
    """What the learned mask takes within each of `budgets`, as the mask does: the limit and the choice [q, width]."""
    score_scale = compute_matrix_score_scale(matrix)
    candidates = matrix.lists.restrict(matrix.lists.p <= risk_budget.MAX_P_FALSE_NEGATIVE)
    lambda_sums = risk_budget.evaluate_lambdas(candidates, score_scale)
    solutions = [risk_budget.solve_lambda(lambda_sums, share, score_scale) for share in budgets]
    return [(solution, solution.select(candidates)) for solution in solutions]


def compute_matrix_score_scale(matrix: CandidateMatrix) -> float:
    """`risk_budget.estimate_score_scale` of the candidates."""
    query, column = np.nonzero(matrix.lists.eligible)
    rows = pl.DataFrame({"query_id": query, "score": matrix.lists.score[query, column]})
    return risk_budget.estimate_score_scale(rows.lazy())


def find_lambda_at_hardness(matrix: CandidateMatrix, hardness: float) -> float:
    """The price at which the learned mask's negatives are as hard, or just harder."""
    unit, low, high = compute_matrix_score_scale(matrix), -14.0, 16.0
    for _ in range(40):
        middle = (low + high) / 2
        mean_hardness = compute_leak_metrics(matrix, risk_budget.select_at_lambda(matrix.lists, unit * 2.0**middle))[
            "hardness"
        ]
        low, high = (middle, high) if mean_hardness is not None and mean_hardness > hardness else (low, middle)
    return float(unit * 2.0**low)


def evaluate_at_hardness(matrix: CandidateMatrix, hardness: float) -> dict[str, float | None]:
    """The learned mask's figures at the price where its negatives are as hard, or just harder."""
    return compute_leak_metrics(
        matrix, risk_budget.select_at_lambda(matrix.lists, find_lambda_at_hardness(matrix, hardness))
    )


def build_leak_report(matrix: CandidateMatrix) -> dict[str, Any]:
    """A set's `rules`, `equal_hardness` and `budgets`."""
    metrics_by_rule = {
        name: compute_leak_metrics(matrix, select_by_preset(matrix, fixed)) for name, fixed in RULE_PRESETS.items()
    }
    equal_hardness = []
    for name, rule_metrics in metrics_by_rule.items():
        if rule_metrics["hardness"] is None:
            continue
        learned_metrics = evaluate_at_hardness(matrix, rule_metrics["hardness"])
        equal_hardness.append(
            {
                "rule": name,
                "hardness": rule_metrics["hardness"],
                "leak_rule": rule_metrics["leak"],
                "leak_learned": learned_metrics["leak"],
                "fill_rule": rule_metrics["fill"],
                "fill_learned": learned_metrics["fill"],
                "negatives": learned_metrics["negatives"],
            }
        )
    budgets = [
        {"max_false_negatives": share, "expected": limit.mean_p, **compute_leak_metrics(matrix, chosen)}
        for share, (limit, chosen) in zip(LEAK_BUDGETS, select_within_budgets(matrix, LEAK_BUDGETS), strict=True)
    ]
    return {
        "rules": metrics_by_rule,
        "equal_hardness": equal_hardness,
        "budgets": budgets,
        "bins": compute_reliability_bins(matrix),
    }


def compute_reliability_bins(matrix: CandidateMatrix, n_bins: int = 10) -> list[dict[str, float]]:
    """Expected and observed share of hidden positives in `n_bins` equally filled bins of rising p."""
    is_candidate = matrix.lists.eligible
    p, hidden = matrix.lists.p[is_candidate], matrix.is_held_out[is_candidate]
    order = np.argsort(p, kind="stable")
    return [
        {"expected": float(p[part].mean(dtype=np.float64)), "observed": float(hidden[part].mean())}
        for part in np.array_split(order, n_bins)
        if len(part)
    ]


def compute_leak_ratio(comparison: Mapping[str, Any]) -> float | None:
    """How many times lower the learned mask's leak is; where none leaks of its n negatives, one could have."""
    if not comparison["leak_rule"] or not comparison["negatives"]:
        return None
    return float(comparison["leak_rule"] / max(comparison["leak_learned"], 1 / comparison["negatives"]))


def compute_median_leak_ratios(sets: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Rule -> the median of `compute_leak_ratio` over the sets where the rule leaks."""
    ratios_by_rule: dict[str, list[float]] = {}
    for set_report in sets.values():
        for comparison in set_report["equal_hardness"]:
            if (value := compute_leak_ratio(comparison)) is not None:
                ratios_by_rule.setdefault(comparison["rule"], []).append(value)
    return {rule: float(np.median(values)) for rule, values in ratios_by_rule.items()}


def require_both_classes(name: str, is_held_out: Bools) -> None:
    """Raise `InputError` where the candidates of a set, `held_out_positives` [n], can't teach a prior: none is hidden,
    or all."""
    if not 0 < is_held_out.sum() < len(is_held_out):
        raise InputError(
            f"--write-model: {name} teaches nothing, since {is_held_out.sum():,} of its {len(is_held_out):,} "
            f"candidates are "
            "hidden positives: a prior needs questions with several positives that the encoder finds. Leave it out."
        )


def build_pretrained_model_json(
    sets_keep_half: Sequence[EstimatorTrainingSet],
    sets_keep_one: Sequence[EstimatorTrainingSet],
    command: str,
    encoder: str,
) -> dict[str, Any]:
    """pretrained_model.json: the models of all sets, and for each set those of the others, to test on that set.

    `sets_keep_half` and `comparison`: the same sets with as many positives left.
    """

    def fit_models(sets: Sequence[int]) -> dict[str, Any]:
        return {
            name: model_to_dict(fit_pretrained_model([side[place][1:] for place in sets]))
            for name, side in (("single_positive", sets_keep_one), ("multi_positive", sets_keep_half))
        }

    all_sets = list(range(len(sets_keep_half)))
    return {
        "description": "log odds that a candidate is a false negative (stages/mining/estimator/pretrained_model.py)",
        "command": command,
        "encoder": encoder,
        "sets": {
            collection.name: {
                "candidates": len(hidden),
                "n_held_out": int(hidden.sum()),
                "n_held_out_keep_one": int(single[2].sum()),
                "digest": collection.digest,
            }
            for (collection, _, hidden), single in zip(sets_keep_half, sets_keep_one, strict=True)
        },
        "all_sets": fit_models(all_sets),
        "leave_one_out": [
            {"digest": sets_keep_half[place][0].digest, "name": sets_keep_half[place][0].name}
            | fit_models([other for other in all_sets if other != place])
            for place in (all_sets if len(all_sets) > 1 else [])
        ],
    }
