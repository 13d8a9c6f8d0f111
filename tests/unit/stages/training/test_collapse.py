"""When a training has collapsed."""

from typing import Any

import pytest

from stages.training.collapse import detect_training_collapse
from stages.training.params import TrainingHistory

EPOCH = {"epoch": 1, "loss": 0.9, "nDCG@10": 0.5, "max_score_range": 1.0}
AT_CHANCE = "a model that gives all documents the same score has 1.0000"


@pytest.mark.parametrize(
    ("epochs", "n_distill_epochs", "best_epoch", "expected"),
    [
        ([EPOCH], 0, 1, None),
        ([EPOCH | {"loss": 0.998}], 0, 1, f"the loss of the kept epoch 1 is 0.9980; {AT_CHANCE}"),
        ([EPOCH | {"loss": None}], 1, 1, "the loss of epoch 1 is not finite"),
        ([], 0, 0, "the loss of epoch 1 is not finite"),
        ([EPOCH | {"max_score_range": 0.0}], 1, 1, "it gives all candidates of a dev query the same score"),
        ([{"epoch": 1, "loss": 0.2}], 0, 1, None),
        # an epoch that is not kept does not count
        ([EPOCH, EPOCH | {"epoch": 2, "loss": 1.1}], 0, 1, None),
        ([EPOCH, EPOCH | {"epoch": 2, "loss": 1.1}], 0, 2, f"the loss of the kept epoch 2 is 1.1000; {AT_CHANCE}"),
        # distillation learned something, so the loss of a later epoch may be above chance
        ([EPOCH, EPOCH | {"epoch": 2, "loss": 1.1}], 1, 2, None),
        (
            [EPOCH | {"loss": 1.0}, EPOCH | {"epoch": 2, "loss": 1.1}],
            1,
            2,
            f"the loss of the kept epoch 2 is 1.1000; {AT_CHANCE}",
        ),
        (
            [EPOCH | {"loss": 1.0}, EPOCH | {"epoch": 2, "loss": 1.1}],
            1,
            1,
            f"the loss of the kept epoch 1 is 1.0000; {AT_CHANCE}",
        ),
        ([EPOCH | {"loss": 1.0}, EPOCH | {"epoch": 2, "loss": 0.9}], 1, 2, None),
    ],
)
def test_a_collapse_is_named(
    epochs: list[dict[str, Any]], n_distill_epochs: int, best_epoch: int, expected: str | None
) -> None:
    history = TrainingHistory(7, epochs, best_epoch, None)
    assert detect_training_collapse(history, [1.0, 1.0], n_distill_epochs) == expected
