"""Whether a training failed: its loss is not finite, or its model gives all documents the same score."""

from collections.abc import Sequence

from stages.evaluation.collapse import MIN_SCORE_RANGE
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
