"""The settings of training, and the types that its files share."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

from stages.core.device import Device, Dtype
from stages.core.model_files import DEFAULT_ENCODER
from stages.core.params import BaseParams, device_option, dtype_option, option, seed_option

NEW_HEAD_LEARNING_RATE, CROSS_ENCODER_LEARNING_RATE = 1e-4, 2e-5


class Params(BaseParams):
    """[train]"""

    # the content behind the name enters the key through `key_extras`
    base: str = option(
        DEFAULT_ENCODER,
        "Model to start from, by folder or hub id: a cross-encoder, or an encoder, which gets a new head.",
        is_model=True,
        exclude_from_key=True,
    )
    loss: Literal["listwise", "pointwise"] = option(
        "listwise",
        "Loss: listwise learns an order, pointwise probabilities, which needs negatives as hard as those met in use.",
    )
    num_positives: int = option(
        1, "Positives per query and epoch, each with negatives of its own.", advanced=True, ge=1
    )
    num_negatives: int = option(7, "Negatives beside each positive, sampled again in each epoch.", ge=1)
    epochs: int = option(2, "Number of times that every query is seen.", ge=1)
    distill_epochs: int | None = option(
        None,
        "Epochs of distillation of the retriever's scores, before the others. If unset: 1 for a new head, else 0.",
        advanced=True,
        ge=0,
    )
    learning_rate: float | None = option(
        None,
        f"Peak learning rate. If unset: {NEW_HEAD_LEARNING_RATE:g} for a new head, "
        f"{CROSS_ENCODER_LEARNING_RATE:g} for a cross-encoder.",
        gt=0,
        lt=1,
    )
    batch_size: int = option(
        8, "Positives per step, each with its negatives, over all processes. Lower it if memory runs out.", ge=1
    )
    max_length: int = option(256, "Tokens of query and document together. Time and memory grow with it.", ge=8)
    warmup_ratio: float = option(
        0.1, "Share of the steps over which the learning rate rises to its peak.", advanced=True, ge=0, lt=1
    )
    weight_decay: float = option(0.01, "Weight decay of AdamW.", advanced=True, ge=0)
    dropout: float = option(
        0.0,
        "Dropout rate in all layers. Training takes a third less time without it.",
        advanced=True,
        ge=0,
        lt=1,
    )
    max_queries: int = option(0, "At most this many queries to train on, sampled by hash. 0 takes all.", ge=0)
    max_dev_queries: int = option(
        200,
        "At most this many dev queries to evaluate after each epoch, sampled by hash. 0 takes all.",
        advanced=True,
        ge=0,
    )
    dev_top_k: int = option(20, "Documents per dev query that are reranked for these figures.", advanced=True, ge=1)
    gradient_checkpointing: bool = option(
        False, "Compute activations again in the backward pass: a third slower, in far less memory.", advanced=True
    )
    seed: int = seed_option()
    device: Device = device_option()
    dtype: Dtype = dtype_option()

    def resolve_distill_epochs(self, has_new_head: bool) -> int:
        """The number of distillation epochs: 1 for a new head if `distill_epochs` is unset, else 0."""
        return int(has_new_head) if self.distill_epochs is None else self.distill_epochs

    def resolve_learning_rate(self, has_new_head: bool) -> float:
        """The peak learning rate: the default for the kind of base model if `learning_rate` is unset."""
        return self.learning_rate or (NEW_HEAD_LEARNING_RATE if has_new_head else CROSS_ENCODER_LEARNING_RATE)


class TrainingHistory(NamedTuple):
    """The log of a training, and where its best weights are."""

    n_steps: int
    """Steps taken, over all epochs."""
    epoch_records: list[dict[str, Any]]
    """One an epoch: "epoch" (from 1), "loss" (mean over its steps; None if it is not finite) and the metrics of dev."""
    best_epoch: int
    best_checkpoint: Path | None
    """The best epoch's weights, in the scratch folder; None if no epoch was completed."""
