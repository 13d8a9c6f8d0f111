"""Whether a training failed: its loss is no better than chance, or its model scores all documents the same."""

import math
from collections.abc import Sequence

from stages.evaluation.collapse import MIN_SCORE_RANGE
from stages.training.examples import TrainingGroup
from stages.training.params import TrainingHistory

CHANCE_LOSS_MARGIN = 0.005
"""If the loss of the kept epoch is within this share of the chance loss, the model learned nothing."""


def detect_training_collapse(
    history: TrainingHistory, chance_losses: Sequence[float], n_distill_epochs: int
) -> str | None:
    """Why the kept model can't rank, in plain words; None if it can.

    `chance_losses`: each epoch's loss of a model that gives all documents the same score. The first `n_distill_epochs`
    epochs are distillation. If one of them learned something, the loss of a later epoch is not compared with chance: it
    begins with the retriever's order, and may lose more than a model without any order while its ranking improves.
    """
    nonfinite_epochs = [epoch["epoch"] for epoch in history.epoch_records if epoch["loss"] is None]
    if nonfinite_epochs or not history.epoch_records:
        return f"the loss of epoch {nonfinite_epochs[0] if nonfinite_epochs else 1} is not finite"
    kept_record = next(epoch for epoch in history.epoch_records if epoch["epoch"] == history.best_epoch)
    if kept_record.get("max_score_range", 1.0) < MIN_SCORE_RANGE:
        return "it gives all candidates of a dev query the same score"
    is_at_chance = [
        epoch["loss"] > (1 - CHANCE_LOSS_MARGIN) * chance_losses[epoch["epoch"] - 1] for epoch in history.epoch_records
    ]
    if is_at_chance[history.best_epoch - 1] and all(is_at_chance[:n_distill_epochs]):
        return (
            f"the loss of the kept epoch {history.best_epoch} is {kept_record['loss']:.4f}; a model that gives all "
            f"documents the same score has {chance_losses[history.best_epoch - 1]:.4f}"
        )
    return None


def compute_chance_loss(loss_name: str, step_weights: Sequence[Sequence[Sequence[float]]]) -> float:
    """The mean over the steps of one of `losses.LOSSES`, for a model that gives all documents the same score.

    `step_weights`: the weight of each document, by step and group. Listwise: the mean of ln(1 + the negatives' weights)
    over a step's groups, times their positive's weight. Pointwise: the entropy of the mean share of positives.
    """
    if loss_name == "listwise":
        return _mean([_mean([g[0] * math.log(1 + math.fsum(g[1:])) for g in groups]) for groups in step_weights])
    positive_share = _mean(
        [math.fsum(group[0] for group in groups) / math.fsum(map(math.fsum, groups)) for groups in step_weights]
    )
    return -positive_share * math.log(positive_share) - (1 - positive_share) * math.log(1 - positive_share)


def compute_distillation_chance_loss(groups: Sequence[TrainingGroup]) -> float:
    """The mean of `losses.distillation_loss` over `groups`, for a model that gives all documents the same score.

    For a group of G documents: ln G - the entropy of softmax(labels).
    """
    return _mean([math.log(len(group.labels)) - _compute_softmax_entropy(group.labels) for group in groups])


def _compute_softmax_entropy(labels: Sequence[float]) -> float:
    weights = [math.exp(label - max(labels)) for label in labels]
    total = math.fsum(weights)
    return -math.fsum(weight / total * math.log(weight / total) for weight in weights)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
