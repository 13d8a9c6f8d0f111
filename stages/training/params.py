"""The settings of training, and the types that its files share."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

from stages.core.device import Device, Dtype
from stages.core.model_files import DEFAULT_ENCODER
from stages.core.params import BaseParams, option
from stages.core.run_params import device_option, dtype_option, seed_option

NEW_HEAD_LEARNING_RATE, CROSS_ENCODER_LEARNING_RATE = 1e-4, 2e-5


class Params(BaseParams):
    """[train]"""

    # the content behind the name enters the key through `key_extras`
    base: str = option(
        DEFAULT_ENCODER,
        "model to start from, by folder or Hugging Face id: a cross-encoder (one output), or an encoder, whose body "
        "gets a new head",
        is_model=True,
        exclude_from_key=True,
    )
    loss: Literal["listwise", "pointwise"] = option(
        "listwise",
        "listwise: softmax cross-entropy of the positive within its group, which learns an order; pointwise: binary "
        "cross-entropy of each pair, whose scores are probabilities, but needs negatives as hard as those met in use",
    )
    num_positives: int = option(
        1, "positives drawn from each query an epoch, each for a group of its own; other epochs draw others", ge=1
    )
    num_negatives: int = option(
        7, "negatives in a group, drawn anew each epoch from those mined; a query with fewer gives all it has", ge=1
    )
    epochs: int = option(2, "times that every query is seen", ge=1)
    distill_epochs: int | None = option(
        None,
        "epochs before those, in which the model learns to score each query's candidates as the retriever does. "
        "Left out: 1 where the head is new, which a small table has too few judgements for; 0 for a "
        "cross-encoder",
        ge=0,
    )
    learning_rate: float | None = option(
        None,
        f"peak learning rate. Left out: {NEW_HEAD_LEARNING_RATE:g} where the head is new, "
        f"{CROSS_ENCODER_LEARNING_RATE:g} for a cross-encoder, "
        "which has less to learn and more to lose",
        gt=0,
        lt=1,
    )
    batch_size: int = option(
        8, "groups a step, over all processes where there are several; more is steadier and takes more memory", ge=1
    )
    max_length: int = option(
        256, "tokens of query and document together; the longer of the two is cut. Time and memory grow with it", ge=8
    )
    warmup_ratio: float = option(0.1, "share of the steps over which the learning rate rises to its peak", ge=0, lt=1)
    weight_decay: float = option(0.01, "AdamW's weight decay", ge=0)
    dropout: float = option(
        0.0,
        "dropout rate in all layers; 0 trains half as fast again, since attention's fast kernel has none",
        ge=0,
        lt=1,
    )
    max_queries: int = option(
        0, "train on at most this many queries, drawn by a hash of seed and query id; 0: all", ge=0
    )
    max_dev_queries: int = option(
        200, "dev queries that the figures after each epoch are taken on, drawn so too; 0: all", ge=0
    )
    dev_top_k: int = option(20, "the retriever's best documents of each dev query, which are reranked for them", ge=1)
    gradient_checkpointing: bool = option(
        False, "compute activations again in the backward pass: a third slower, in far less memory"
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
