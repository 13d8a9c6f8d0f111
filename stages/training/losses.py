"""Losses over groups of one positive and its negatives, as modules for sentence-transformers' CrossEncoderTrainer."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from stages.training.reranker import Dtype, logits

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder


def listwise(scores: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Mean over the groups of -log softmax at the group's positive, which stands first in it.

    `scores` [n] holds the groups one after another, `sizes` sums to n; groups may differ in size. The contrastive
    loss of FlagEmbedding's reranker, and of Gao et al. 2021 (localized contrastive estimation): the label is hard.
    A model that tells nothing apart has the mean of ln(size).
    """
    table = pad_sequence(list(scores.split(list(sizes))), batch_first=True, padding_value=-math.inf)
    return functional.cross_entropy(table, torch.zeros(len(table), dtype=torch.long, device=table.device))


def pointwise(scores: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Mean over all pairs of the binary cross-entropy of the logit: 1 for the first of each group, 0 for the rest.

    A model that knows nothing but the share of positives has that share's entropy.
    """
    labels = torch.zeros_like(scores)
    labels[[sum(sizes[:group]) for group in range(len(sizes))]] = 1
    return functional.binary_cross_entropy_with_logits(scores, labels)


LOSSES: dict[str, Callable[[torch.Tensor, Sequence[int]], torch.Tensor]] = {
    "listwise": listwise,
    "pointwise": pointwise,
}


class GroupLoss(nn.Module):  # type: ignore[misc]
    """One of `LOSSES` over the logits of a cross-encoder; the trainer calls it with (queries, documents of each)."""

    def __init__(self, model: "CrossEncoder", name: str, dtype: Dtype = "auto") -> None:
        super().__init__()
        self.model = model
        self.name = name
        self.dtype = dtype

    def forward(self, inputs: Sequence[Any], labels: None = None, **unused: Any) -> torch.Tensor:
        """`inputs`: queries [g] and their documents [g][1 + negatives], the positive first. Returns a scalar."""
        queries, groups = inputs
        pairs = [(query, text) for query, texts in zip(queries, groups, strict=True) for text in texts]
        return LOSSES[self.name](logits(self.model, pairs, self.dtype), [len(texts) for texts in groups])


def chance(name: str, batches: Sequence[Sequence[int]]) -> float:
    """The mean loss over `batches` (the sizes of their groups) of a model that tells nothing apart.

    Listwise: mean ln(size). Pointwise: the entropy of the mean share of positives.
    """
    if name == "listwise":
        return _mean([_mean([math.log(size) for size in sizes]) for sizes in batches])
    share = _mean([len(sizes) / sum(sizes) for sizes in batches])
    return -share * math.log(share) - (1 - share) * math.log(1 - share)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
