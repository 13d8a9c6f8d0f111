"""The leak benchmark: hold out positives, mine negatives under each rule, and count the held-out positives among them.

A held-out positive is a false negative with a known label. *Leak* is the share of held-out positives among the mined
negatives, *hardness* the mean retriever score of the other negatives, *fill* the share of the requested negatives that
was found. Easier negatives are less often false. So each rule's leak is compared with that of the learned mask at the
same hardness, by a choice of lambda (`stages.mining.risk_budget`).
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
    """A fixed rule with the settings of another system."""

    rule: RuleName
    threshold: float | None = None
    rank_window: tuple[int, int] = (0, 0)
    source: str = ""
    excludes_positives: bool = False
    """Whether the ranks of the window are counted without the known positives."""


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
"""A collection, the features [n, len(FEATURES)] of its candidates, and which of these are held out [n]."""


@dataclass(frozen=True)
class CandidateMatrix:
    """The candidates of the mined queries without the known positives: [q, width], scores of positives [q]."""

    lists: PaddedCandidates
    rank: NDArray[np.int32]
    """Known positives are counted."""
    is_held_out: Bools
    is_nonrelevant: Bools
    is_near_positive: Bools
    """Near-duplicates of a known positive."""
    positive_score_min: Floats
    positive_score_max: Floats


def build_candidate_matrix(
    rows: pl.DataFrame,
    p_false_negative: Floats,
    qrels_scored: pl.DataFrame,
    n_negatives: int,
    held_out_positives: pl.DataFrame | None = None,
    nonrelevant: pl.DataFrame | None = None,
    near_positives: pl.DataFrame | None = None,
) -> CandidateMatrix:
    """`rows` (query_id, doc_id, rank, score; sorted by query and falling score) as `CandidateMatrix`.

    `p_false_negative` is [n]. `qrels_scored` holds the scores of the known positives. `held_out_positives`,
    `nonrelevant` and `near_positives` are pairs (query_id, doc_id).
    """
    query = rows["query_id"].rle_id().cast(pl.Int64).to_numpy()
    ids = rows.select(pl.col("query_id").unique(maintain_order=True))
    score = rows["score"].to_numpy()
    candidates, cells = risk_budget.pad_by_query(query, score, p_false_negative, np.full(len(ids), n_negatives))
    masks = []
    for pairs in (held_out_positives, nonrelevant, near_positives):
        marked_pairs = (rows.clear() if pairs is None else pairs).select(*PAIR_COLUMNS, is_marked=pl.lit(True))
        is_marked = rows.join(marked_pairs, on=PAIR_COLUMNS, how="left", maintain_order="left")["is_marked"]
        masks.append(_scatter_to_matrix(is_marked.fill_null(False).to_numpy(), candidates.eligible.shape, cells))
    positive_scores = compute_positive_score_range(qrels_scored.filter(pl.col("relevance") > 0))
    positive_scores = ids.join(positive_scores, on="query_id", how="left", maintain_order="left")
    return CandidateMatrix(
        candidates,
        _scatter_to_matrix(rows["rank"].cast(pl.Int32).to_numpy(), candidates.eligible.shape, cells),
        masks[0],
        masks[1],
        masks[2],
        positive_scores["positive_score_min"].to_numpy(),
        positive_scores["positive_score_max"].to_numpy(),
    )


def _scatter_to_matrix(values: NDArray[Any], shape: tuple[int, ...], cells: tuple[Ints, Ints]) -> NDArray[Any]:
    matrix = np.zeros(shape, values.dtype)
    matrix[cells] = values
    return matrix


def select_by_preset(matrix: CandidateMatrix, preset: RulePreset) -> Bools:
    """The best candidates that a fixed rule accepts: [q, width]."""
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
    """The metrics of a selection: negatives (their number), leak, hardness and fill; rows: the share of queries with a
    leak; near_duplicates: the share of near-duplicates of a known positive; judged_negatives: the share of the
    candidates labelled not relevant that was selected."""
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
    """The solution and the selection [q, width] of the learned mask for each of `budgets`."""
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
    """The largest lambda at which the learned mask's negatives are at least as hard."""
    unit, low, high = compute_matrix_score_scale(matrix), -14.0, 16.0
    for _ in range(40):
        middle = (low + high) / 2
        mean_hardness = compute_leak_metrics(matrix, risk_budget.select_at_lambda(matrix.lists, unit * 2.0**middle))[
            "hardness"
        ]
        low, high = (middle, high) if mean_hardness is not None and mean_hardness > hardness else (low, middle)
    return float(unit * 2.0**low)


def evaluate_at_hardness(matrix: CandidateMatrix, hardness: float) -> dict[str, float | None]:
    """The metrics of the learned mask at a hardness."""
    return compute_leak_metrics(
        matrix, risk_budget.select_at_lambda(matrix.lists, find_lambda_at_hardness(matrix, hardness))
    )


def build_leak_report(matrix: CandidateMatrix) -> dict[str, Any]:
    """The metrics of a collection: `rules`, `equal_hardness`, `budgets` and `bins`."""
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
        {"max_false_negatives": share, "expected": solution.mean_p, **compute_leak_metrics(matrix, selection)}
        for share, (solution, selection) in zip(LEAK_BUDGETS, select_within_budgets(matrix, LEAK_BUDGETS), strict=True)
    ]
    return {
        "rules": metrics_by_rule,
        "equal_hardness": equal_hardness,
        "budgets": budgets,
        "bins": compute_reliability_bins(matrix),
    }


def compute_reliability_bins(matrix: CandidateMatrix, n_bins: int = 10) -> list[dict[str, float]]:
    """The expected and observed share of held-out positives in `n_bins` bins of equal size, by ascending p."""
    is_candidate = matrix.lists.eligible
    p, is_held_out = matrix.lists.p[is_candidate], matrix.is_held_out[is_candidate]
    order = np.argsort(p, kind="stable")
    return [
        {"expected": float(p[part].mean(dtype=np.float64)), "observed": float(is_held_out[part].mean())}
        for part in np.array_split(order, n_bins)
        if len(part)
    ]


def compute_leak_ratio(comparison: Mapping[str, Any]) -> float | None:
    """The ratio of the rule's leak to that of the learned mask, which counts as 1 of its negatives if it is 0."""
    if not comparison["leak_rule"] or not comparison["negatives"]:
        return None
    return float(comparison["leak_rule"] / max(comparison["leak_learned"], 1 / comparison["negatives"]))


def compute_median_leak_ratios(sets: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Rule -> the median of `compute_leak_ratio` over the collections in which the rule leaks."""
    ratios_by_rule: dict[str, list[float]] = {}
    for set_report in sets.values():
        for comparison in set_report["equal_hardness"]:
            if (value := compute_leak_ratio(comparison)) is not None:
                ratios_by_rule.setdefault(comparison["rule"], []).append(value)
    return {rule: float(np.median(values)) for rule, values in ratios_by_rule.items()}


def require_both_classes(name: str, is_held_out: Bools) -> None:
    """Raise `InputError` if none of a collection's candidates is held out, or all (`is_held_out` [n])."""
    if not 0 < is_held_out.sum() < len(is_held_out):
        raise InputError(
            f"--write-model: {is_held_out.sum():,} of the {len(is_held_out):,} candidates of {name} are held-out "
            "positives. The model needs questions with several positives that the encoder finds. Leave the folder out."
        )


def build_pretrained_model_json(
    sets_keep_half: Sequence[EstimatorTrainingSet],
    sets_keep_one: Sequence[EstimatorTrainingSet],
    command: str,
    encoder: str,
) -> dict[str, Any]:
    """pretrained_model.json: the models of all collections, and for each collection the models of the others.

    The two arguments hold the same collections, with half of the positives kept and with one positive kept.
    """

    def fit_models(sets: Sequence[int]) -> dict[str, Any]:
        return {
            name: model_to_dict(fit_pretrained_model([training_sets[i][1:] for i in sets]))
            for name, training_sets in (("single_positive", sets_keep_one), ("multi_positive", sets_keep_half))
        }

    all_sets = list(range(len(sets_keep_half)))
    return {
        "description": "log odds that a candidate is a false negative (stages/mining/estimator/pretrained_model.py)",
        "command": command,
        "encoder": encoder,
        "sets": {
            collection.name: {
                "candidates": len(is_held_out),
                "n_held_out": int(is_held_out.sum()),
                "n_held_out_keep_one": int(single[2].sum()),
                "digest": collection.digest,
            }
            for (collection, _, is_held_out), single in zip(sets_keep_half, sets_keep_one, strict=True)
        },
        "all_sets": fit_models(all_sets),
        "leave_one_out": [
            {"digest": sets_keep_half[i][0].digest, "name": sets_keep_half[i][0].name}
            | fit_models([other for other in all_sets if other != i])
            for i in (all_sets if len(all_sets) > 1 else [])
        ],
    }
