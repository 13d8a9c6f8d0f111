"""The chance loss: the loss of a model that gives all documents the same score. A model that has it learned nothing."""

import math
from collections.abc import Sequence

from stages.training.examples import TrainingGroup


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
