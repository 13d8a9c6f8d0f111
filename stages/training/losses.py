"""Losses over groups of one positive and its negatives, as modules for sentence-transformers' CrossEncoderTrainer."""

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
    """Mean over the groups of -log softmax at the group's positive, which stands first in it.

    `scores` [n] holds the groups one after another, `group_sizes` sums to n; groups may differ in size. The contrastive
    loss of FlagEmbedding's reranker, and of Gao et al. 2021 (localized contrastive estimation): the label is hard.
    A negative with a weight counts so often among those that the positive is compared with; a positive's weight
    multiplies the loss of its group.
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
    """Mean over all pairs, by weight where they have one, of the binary cross-entropy of the logit: 1 for the first of
    each group, 0 for the rest.

    A model that knows nothing but the share of positives has that share's entropy.
    """
    labels = torch.zeros_like(scores)
    labels[[sum(group_sizes[:group]) for group in range(len(group_sizes))]] = 1
    if weights is None:
        return functional.binary_cross_entropy_with_logits(scores, labels)
    return functional.binary_cross_entropy_with_logits(scores, labels, weights, reduction="sum") / weights.sum()


def distillation_loss(
    scores: torch.Tensor, group_sizes: Sequence[int], labels: Sequence[Sequence[float]]
) -> torch.Tensor:
    """Mean over the groups of KL(softmax(labels) || softmax(scores)): 0 where the two give the same shares.

    `labels`: a group's, as far apart as the model's logits are to be (the listwise loss of Cao et al. 2007,
    ListNet, with a teacher's scores).
    """
    padded_scores = pad_sequence(list(scores.split(list(group_sizes))), batch_first=True, padding_value=-math.inf)
    padded_labels = pad_sequence(
        [scores.new_tensor(group) for group in labels], batch_first=True, padding_value=-math.inf
    )
    target_probabilities = padded_labels.softmax(1)
    # a padded place has the share 0, and 0 x (-inf) is no number
    log_ratio = torch.where(target_probabilities > 0, padded_labels.log_softmax(1) - padded_scores.log_softmax(1), 0.0)
    return (target_probabilities * log_ratio).sum(1).mean()


LOSSES: dict[str, Callable[[torch.Tensor, Sequence[int], torch.Tensor | None], torch.Tensor]] = {
    "listwise": listwise_loss,
    "pointwise": pointwise_loss,
}


class GroupLoss(nn.Module):  # type: ignore[misc]
    """One of `LOSSES` over the logits of a cross-encoder, or `distillation_loss` for groups that come with labels.

    Of `world_size` processes that are given the same step, the one of `rank` computes on its part of the groups, and
    its loss is weighed by that part's share of what the loss is the mean of: the mean over the processes, which DDP
    takes of the gradients, is that of one process with the whole step, though the parts be unequal.
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
        """`inputs`: queries [g], their documents [g][size], the positive first where there are no labels [g][size], and
        the documents' weights [g][size], where they have some.

        Returns a scalar.
        """
        part = slice(self.rank, None, self.world_size)
        share = (
            self.world_size
            * self._compute_denominator([rows[part] for rows in inputs], labels)
            / self._compute_denominator(inputs, labels)
        )
        if not share:  # a short step has no group for this process, but DDP waits for its gradients
            part = slice(0, 1)
        return share * self._compute_loss([rows[part] for rows in inputs], labels and labels[part])

    def _compute_loss(self, inputs: Sequence[Any], labels: Sequence[Sequence[float]] | None) -> torch.Tensor:
        queries, groups, *weighed = inputs
        pairs = [(query, text) for query, texts in zip(queries, groups, strict=True) for text in texts]
        scores, sizes = compute_logits(self.model, pairs, self.dtype), [len(texts) for texts in groups]
        if labels:
            return distillation_loss(scores, sizes, labels)
        weights = scores.new_tensor([weight for group in weighed[0] for weight in group]) if weighed else None
        return LOSSES[self.loss_name](scores, sizes, weights)

    def _compute_denominator(self, inputs: Sequence[Any], labels: Sequence[Sequence[float]] | None) -> float:
        """What the loss divides by: groups, or pairs by weight."""
        _, groups, *weighed = inputs
        if labels or self.loss_name == "listwise":
            return len(groups)
        return math.fsum(weight for group in weighed[0] for weight in group) if weighed else sum(map(len, groups))
