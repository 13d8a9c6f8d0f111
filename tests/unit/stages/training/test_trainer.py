"""The order of the training data, and the epochs' losses from the trainer's log."""

from stages.training.dataset import EpochBatchSampler
from stages.training.trainer import summarise_log_history


def test_batches_do_not_span_epochs() -> None:
    batches = EpochBatchSampler([5, 5], 2)
    assert list(batches) == [[0, 1], [2, 3], [4], [5, 6], [7, 8], [9]]
    assert len(batches) == 6


def test_epoch_losses_are_means_over_steps() -> None:
    log = [
        {"step": 2, "loss": 4.0},
        {"step": 3, "eval_nDCG@10": 0.5},
        {"step": 3, "loss": 1.0},
        {"step": 5, "loss": 2.0},
        {"step": 6, "loss": float("nan")},
        {"step": 6, "train_loss": 9.0},
    ]
    assert summarise_log_history(log, 3) == [{"epoch": 1, "loss": 3.0, "nDCG@10": 0.5}, {"epoch": 2, "loss": None}]
