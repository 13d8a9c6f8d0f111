"""Losses over groups of a positive and its negatives, for sentence-transformers' CrossEncoderTrainer."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from stages.reranking.cross_encoder import Dtype, compute_logits

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder


def listwise_loss(
    scores: torch.Tensor, group_sizes: Sequence[int], weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean over the groups of -log softmax at the group's positive, which is its first document.

    `scores` [n] and `weights` [n] hold the groups one after another; `group_sizes` sums to n. It is the contrastive
    loss of FlagEmbedding's reranker and of Gao et al. 2021 (localized contrastive estimation). A negative's weight is a
    factor of its term in the softmax's sum; a positive's weight is a factor of its group's loss.
    """
    padded_scores = pad_sequence(list(scores.split(list(group_sizes))), batch_first=True, padding_value=-math.inf)
    targets = torch.zeros(len(padded_scores), dtype=torch.long, device=padded_scores.device)
    if weights is None:
        return functional.cross_entropy(padded_scores, targets)
    padded_weights = pad_sequence(list(weights.split(list(group_sizes))), batch_first=True, padding_value=1.0)
    padded_scores = torch.cat([padded_scores[:, :1], padded_scores[:, 1:] + padded_weights[:, 1:].log()], dim=1)
    return (functional.cross_entropy(padded_scores, targets, reduction="none") * padded_weights[:, 0]).mean()


def pointwise_loss(
    scores: torch.Tensor, group_sizes: Sequence[int], weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Weighted mean over all pairs of the logit's binary cross-entropy. The first of a group has label 1, the others 0.

    Arguments as for `listwise_loss`.
    """
    labels = torch.zeros_like(scores)
    labels[[sum(group_sizes[:group]) for group in range(len(group_sizes))]] = 1
    if weights is None:
        return functional.binary_cross_entropy_with_logits(scores, labels)
    return functional.binary_cross_entropy_with_logits(scores, labels, weights, reduction="sum") / weights.sum()


def distillation_loss(
    scores: torch.Tensor, group_sizes: Sequence[int], labels: Sequence[Sequence[float]]
) -> torch.Tensor:
    """Mean over the groups of KL(softmax(labels) || softmax(scores)).

    `labels`: for each group, the logits that the model should learn. It is the listwise loss of ListNet (Cao et al.
    2007) with another model's scores.
    """
    padded_scores = pad_sequence(list(scores.split(list(group_sizes))), batch_first=True, padding_value=-math.inf)
    padded_labels = pad_sequence(
        [scores.new_tensor(group) for group in labels], batch_first=True, padding_value=-math.inf
    )
    target_probabilities = padded_labels.softmax(1)
    # at padding the target is 0, and 0 x (-inf) is NaN
    log_ratio = torch.where(target_probabilities > 0, padded_labels.log_softmax(1) - padded_scores.log_softmax(1), 0.0)
    return (target_probabilities * log_ratio).sum(1).mean()


LOSSES: dict[str, Callable[[torch.Tensor, Sequence[int], torch.Tensor | None], torch.Tensor]] = {
    "listwise": listwise_loss,
    "pointwise": pointwise_loss,
}


class GroupLoss(nn.Module):  # type: ignore[misc]
    """One of `LOSSES` over the logits of a cross-encoder, or `distillation_loss` for groups with labels.

    Each of `world_size` processes is given all groups of a step and computes on its part of them. Its loss is scaled by
    the part's share of the loss's denominator. So the mean over the processes, which DDP takes of the gradients, is the
    gradient of one process with all groups, even if the parts are unequal.
    """

    def __init__(
        self, model: "CrossEncoder", loss_name: str, dtype: Dtype = "auto", rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__()
        self.model = model
        self.loss_name = loss_name
        self.dtype = dtype
        self.rank = rank
        self.world_size = world_size

    def forward(
        self, inputs: Sequence[Any], labels: Sequence[Sequence[float]] | None = None, **unused: Any
    ) -> torch.Tensor:
        """The loss of a step, a scalar.

        `inputs`: queries [g], their documents [g][size] (without `labels` the positive first) and, if there are any,
        the documents' weights [g][size]. `labels`: [g][size].
        """
        part = slice(self.rank, None, self.world_size)
        share = (
            self.world_size
            * self._compute_denominator([rows[part] for rows in inputs], labels)
            / self._compute_denominator(inputs, labels)
        )
        if not share:  # a short step has no group for this process, but DDP needs its gradients: compute any, times 0
            part = slice(0, 1)
        return share * self._compute_loss([rows[part] for rows in inputs], labels and labels[part])

    def _compute_loss(self, inputs: Sequence[Any], labels: Sequence[Sequence[float]] | None) -> torch.Tensor:
        queries, groups, *weights_by_group = inputs
        pairs = [(query, text) for query, texts in zip(queries, groups, strict=True) for text in texts]
        scores, sizes = compute_logits(self.model, pairs, self.dtype), [len(texts) for texts in groups]
        if labels:
            return distillation_loss(scores, sizes, labels)
        weights = (
            scores.new_tensor([weight for group in weights_by_group[0] for weight in group])
            if weights_by_group
            else None
        )
        return LOSSES[self.loss_name](scores, sizes, weights)

    def _compute_denominator(self, inputs: Sequence[Any], labels: Sequence[Sequence[float]] | None) -> float:
        """What the loss is divided by: the number of groups, or the sum of the pairs' weights."""
        _, groups, *weights_by_group = inputs
        if labels or self.loss_name == "listwise":
            return len(groups)
        if weights_by_group:
            return math.fsum(weight for group in weights_by_group[0] for weight in group)
        return sum(map(len, groups))
