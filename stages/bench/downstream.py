"""The downstream benchmark: train the same small reranker with the negatives of each rule, and test it on unseen
queries.

The queries of a judged collection are split as in `prep build-pairs`. In the train split half of each query's positives
are held out, and negatives are mined under each rule; in the test split all labels count. Everything else is the same
for all rules: queries, positives, number of pairs and steps, seeds, and the new head of each seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import field_validator

from stages.bench import leak
from stages.bench.leak import RULE_PRESETS, CandidateMatrix
from stages.bench.split import BenchmarkSplit
from stages.core.arrays import Bools, Doubles, Floats
from stages.core.context import StageContext
from stages.core.device import Device
from stages.core.errors import InputError
from stages.core.hashing import sample_by_hash
from stages.core.model_files import DEFAULT_ENCODER, resolve_model
from stages.core.params import BaseParams as BaseParams
from stages.core.params import option
from stages.core.schemas import PAIR_COLUMNS
from stages.evaluation.candidate_lists import CandidateLists
from stages.evaluation.fusion import DEFAULT_FUSION_WEIGHT, fuse_scores
from stages.evaluation.metrics import Evaluator
from stages.mining import risk_budget
from stages.mining.risk_budget import PaddedCandidates
from stages.reranking.cross_encoder import TextPair, has_head, score_pairs
from stages.statistics.bootstrap import run_paired_bootstrap
from stages.training import examples
from stages.training.examples import TrainingGroup
from stages.training.job import TrainingJob
from stages.training.params import Params as TrainParams
from stages.training.params import TrainingHistory
from stages.training.stage import train_job

VERSION = 2

ORACLE, LEARNED, LEARNED_AT_EQUAL_HARDNESS = "oracle", "learned", "learned as hard"
DOWNSTREAM_RULES = (*RULE_PRESETS, LEARNED, LEARNED_AT_EQUAL_HARDNESS, ORACLE)
HARDNESS_REFERENCE_RULE = "perc_max 0.9"
"""The rule whose hardness `LEARNED_AT_EQUAL_HARDNESS` matches."""
METRICS = ("nDCG@10", "MRR@10")
FUSED_METRICS = tuple(f"fused {name}" for name in METRICS)


class Params(BaseParams):
    """The options of `prep bench downstream`."""

    rule: tuple[str, ...] = option(
        ("naive", "perc 0.95", HARDNESS_REFERENCE_RULE, LEARNED, ORACLE),
        f"A rule to compare; repeat it for several rules. Fixed rules: {', '.join(RULE_PRESETS)}. {LEARNED}: the "
        f"learned mask with --max-false-negatives; {LEARNED_AT_EQUAL_HARDNESS}: the learned mask at the hardness of "
        f"{HARDNESS_REFERENCE_RULE}; {ORACLE}: no held-out positive is selected. A question without enough negatives "
        "under one rule is left out for all",
    )
    encoder: str = option(
        DEFAULT_ENCODER, "The retriever of the candidates that are mined, and reranked in the test", is_model=True
    )
    student: str = option(
        DEFAULT_ENCODER, "The model to train: a cross-encoder, or an encoder that gets a new head", is_model=True
    )
    train_queries: int = option(200, "Questions to train on, sampled by hash", ge=2)
    test_queries: int = option(150, "Questions to test on, sampled by hash; 0: all", ge=0)
    num_negatives: int = option(5, "Negatives of each question, beside one positive", ge=1)
    max_false_negatives: float = option(0.02, f"{LEARNED}: the accepted share of false negatives", gt=0, lt=1)
    top_k: int = option(20, "The retriever's best documents of each test question, which are reranked", ge=1)
    epochs: int = option(2, "Training epochs", ge=1)
    distill_epochs: int = option(
        0, "Epochs before training that distill the retriever's scores; the same for all rules", ge=0
    )
    seeds: int = option(3, "Trainings under each rule, each with another seed", ge=1)
    batch_size: int = option(8, "Groups in each step", ge=1)
    learning_rate: float | None = option(None, "Peak learning rate. If unset, that of [train]", gt=0, lt=1)
    max_length: int = option(128, "Tokens of question and document together", ge=8)
    seed: int = option(0, "Seed of the split, of the held-out positives and of the bootstrap", ge=0, lt=2**32)
    bootstrap_samples: int = option(2000, "Bootstrap samples behind each interval", ge=100)
    device: Device = option(
        "auto", "Where to train: cpu, cuda:0, ...; auto: a GPU if there is one", exclude_from_key=True
    )

    @field_validator("rule")
    @classmethod
    def _check_rules(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [rule for rule in given if rule not in DOWNSTREAM_RULES]:
            raise ValueError(f"there is no rule {unknown[0]!r}; there are {', '.join(DOWNSTREAM_RULES)}")
        return tuple(dict.fromkeys(given))

    def build_training_params(self, seed: int) -> TrainParams:
        """The training parameters of one seed."""
        return TrainParams(
            base=self.student,
            num_negatives=self.num_negatives,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            max_length=self.max_length,
            distill_epochs=self.distill_epochs,
            seed=seed,
            device=self.device,
        )


def select_by_rule(matrix: CandidateMatrix, rule: str, max_false_negative_rate: float) -> Bools:
    """The negatives [q, width] that `rule` selects; `max_false_negative_rate` is that of `LEARNED`."""
    if rule in RULE_PRESETS:
        return leak.select_by_preset(matrix, RULE_PRESETS[rule])
    if rule == ORACLE:
        return risk_budget.select_at_lambda(matrix.lists.restrict(~matrix.is_held_out), 0.0)
    if rule == LEARNED_AT_EQUAL_HARDNESS:
        hardness = leak.compute_leak_metrics(
            matrix, leak.select_by_preset(matrix, RULE_PRESETS[HARDNESS_REFERENCE_RULE])
        )["hardness"]
        return risk_budget.select_at_lambda(matrix.lists, leak.find_lambda_at_hardness(matrix, hardness or 0.0))
    return leak.select_within_budgets(matrix, [max_false_negative_rate])[0][1]


def select_on_common_queries(
    matrix: CandidateMatrix, rules: Sequence[str], max_false_negatives: float
) -> tuple[Bools, dict[str, Bools]]:
    """The queries [q] with enough negatives under every rule, and each rule's selection for these [kept, width].

    The learned mask is solved on the kept queries, so that its budget and hardness are theirs.
    """
    keep = np.ones(len(matrix.lists.quota), np.bool_)
    while True:
        part = filter_queries(matrix, keep)
        selections = {rule: select_by_rule(part, rule, max_false_negatives) for rule in rules}
        is_filled = np.all([selection.sum(axis=1) == part.lists.quota for selection in selections.values()], axis=0)
        if is_filled.all():
            return keep, selections
        keep[keep] = is_filled


def filter_queries(matrix: CandidateMatrix, keep: Bools) -> CandidateMatrix:
    """The queries that `keep` [q] marks."""
    first, *rest = vars(matrix).values()
    return CandidateMatrix(
        PaddedCandidates(*(part[keep] for part in vars(first).values())), *(part[keep] for part in rest)
    )


@dataclass(frozen=True)
class RuleTrainingSets:
    """The training data of each rule: the same queries and positives, other negatives."""

    mined_queries: dict[str, list[examples.MinedQuery]]
    leak_metrics: dict[str, dict[str, float | None]]
    """Rule -> `leak.compute_leak_metrics` of the training queries."""
    n_queries: int
    n_unfilled_queries: int
    """Queries that were left out because a rule found too few negatives."""


def build_rule_training_sets(
    benchmark: BenchmarkSplit, candidates: pl.DataFrame, matrix: CandidateMatrix, params: Params
) -> RuleTrainingSets:
    """The negatives of every rule for `train_queries` common queries; `matrix` is made of `candidates`.

    Raises `InputError` if fewer than 2 queries are left.
    """
    ids = candidates["query_id"].unique(maintain_order=True)
    keep, selections = select_on_common_queries(matrix, params.rule, params.max_false_negatives)
    common_queries = ids.filter(pl.Series(keep))
    is_sampled = common_queries.is_in(
        sample_by_hash(common_queries, params.train_queries, "downstream", params.seed)
    ).to_numpy()
    if is_sampled.sum() < 2:
        raise InputError(
            f"{benchmark.collection.name}: {int(is_sampled.sum())} questions get {params.num_negatives} negatives "
            f"under every rule ({', '.join(params.rule)}), which is too few to train on. Lower --num-negatives, or "
            "leave a strict rule out."
        )
    sampled_matrix = filter_queries(filter_queries(matrix, keep), is_sampled)
    sampled_candidates = candidates.filter(
        candidates["query_id"].is_in(common_queries.filter(pl.Series(is_sampled)).implode())
    )
    query_texts = dict(benchmark.collection.queries.select("query_id", "query").iter_rows())
    positives = dict(
        benchmark.collection.known_positives.group_by("query_id", maintain_order=True).agg("doc_id").iter_rows()
    )
    mined_queries, leak_metrics = {}, {}
    for rule, selection in selections.items():
        leak_metrics[rule] = leak.compute_leak_metrics(sampled_matrix, selection[is_sampled])
        # the eligible cells are the rows, in their order
        negatives = sampled_candidates.filter(pl.Series(selection[is_sampled][sampled_matrix.lists.eligible]))
        mined_queries[rule] = [
            examples.MinedQuery(query, query_texts[query], tuple(positives[query]), tuple(documents))
            for query, documents in negatives.group_by("query_id", maintain_order=True).agg("doc_id").iter_rows()
        ]
    return RuleTrainingSets(mined_queries, leak_metrics, int(is_sampled.sum()), int((~keep).sum()))


def train_and_score(
    epochs: Sequence[Sequence[TrainingGroup]],
    queries: Mapping[str, str],
    texts: Mapping[str, str],
    pairs: Sequence[TextPair],
    params: TrainParams,
    context: StageContext,
) -> tuple[Floats, TrainingHistory]:
    """Train one reranker and score `pairs` [n] with it; resumes from the checkpoint in the scratch folder."""
    learning_rate = params.resolve_learning_rate(has_new_head=not has_head(resolve_model(params.base)))
    model, history = train_job(TrainingJob(epochs, queries, texts, params, learning_rate, None), context)
    scores = score_pairs(model, pairs, params.dtype, lambda n: context.progress.advance(n, len(pairs), "pairs"))
    return scores, history


def compute_test_metrics(candidate_lists: CandidateLists, scores: pl.DataFrame) -> Doubles:
    """METRICS, then FUSED_METRICS, of each test query: [q, 4], in the order of query_id.

    `scores` holds query_id, doc_id, reranker. They are fused with the retriever's scores with equal weights, because
    there is no dev split to choose the weight on.
    """
    table = candidate_lists.lists.join(scores, on=PAIR_COLUMNS, how="left", maintain_order="left")
    table = table.with_columns(fused=fuse_scores(table, DEFAULT_FUSION_WEIGHT))
    return np.concatenate(
        [evaluate_score_column(candidate_lists, table, name) for name in ("reranker", "fused")], axis=1
    )


def evaluate_score_column(candidate_lists: CandidateLists, table: pl.DataFrame, score_column: str) -> Doubles:
    """METRICS of each test query [q, 2] if the column `score_column` ranks the lists in `table`."""
    values = Evaluator(candidate_lists.qrels, METRICS).evaluate(
        table.select("query_id", "doc_id", "relevance", score=score_column)
    )
    return values["value"].to_numpy().reshape(-1, len(METRICS))


def build_downstream_report(
    metrics_by_rule: Mapping[str, Doubles], embedder_metrics: Doubles, groups: NDArray[Any], params: Params
) -> dict[str, Any]:
    """The metrics of the embedder and of each rule (means over seeds and queries, and `by_seed`), and `differences`.

    `metrics_by_rule`: rule -> [seeds, q, 4] of `compute_test_metrics`; `embedder_metrics` [q, 2]; `groups` [q]: the
    split units of the queries. A difference [mean, low, high] is that of the learned mask minus the rule or embedder.
    The metrics are averaged over seeds first. The 95 % interval is a paired bootstrap over units (None if there are too
    few), so it does not cover the variance over seeds, which `by_seed` shows.
    """
    names = (*METRICS, *FUSED_METRICS)
    rule_reports = {
        rule: dict(zip(names, map(float, rule_metrics.mean(axis=(0, 1))), strict=True))
        | {"by_seed": {name: rule_metrics[:, :, i].mean(axis=1).tolist() for i, name in enumerate(names)}}
        for rule, rule_metrics in metrics_by_rule.items()
    }
    learned_rule = next((rule for rule in (LEARNED, LEARNED_AT_EQUAL_HARDNESS) if rule in metrics_by_rule), None)
    other_metrics = {
        rule: rule_metrics.mean(axis=0) for rule, rule_metrics in metrics_by_rule.items() if rule != learned_rule
    }
    other_metrics["embedder"] = np.concatenate([embedder_metrics, embedder_metrics], axis=1)
    differences = {}
    for rule, rule_mean in other_metrics.items() if learned_rule else ():
        assert learned_rule
        comparisons = run_paired_bootstrap(
            metrics_by_rule[learned_rule].mean(axis=0) - rule_mean,
            groups,
            n_resamples=params.bootstrap_samples,
            seed=params.seed,
        )
        differences[rule] = {
            name: [comparison.difference, comparison.low, comparison.high]
            for name, comparison in zip(names, comparisons, strict=True)
        }
    return {
        "embedder": dict(zip(METRICS, map(float, embedder_metrics.mean(axis=0)), strict=True)),
        "rules": rule_reports,
        "learned": learned_rule,
        "differences": differences,
    }
