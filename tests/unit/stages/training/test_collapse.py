"""When a training has collapsed."""

import math
from typing import Any

import pytest
import torch

from stages.training.collapse import compute_chance_loss, compute_distillation_chance_loss, detect_training_collapse
from stages.training.examples import TrainingGroup
from stages.training.losses import LOSSES, distillation_loss, listwise_loss
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


def ones(*sizes: int) -> list[list[float]]:
    """Groups of these sizes in which all documents have the weight 1."""
    return [[1.0] * size for size in sizes]


def test_chance_loss_is_a_mean_over_steps() -> None:
    # listwise: ln 2, and (ln 2 + ln 8) / 2 = 2 ln 2
    assert compute_chance_loss("listwise", [ones(2), ones(2, 8)]) == pytest.approx(1.5 * math.log(2))
    # pointwise: shares of positives 1/2 and 2/8, mean 3/8
    entropy = 3 / 8 * math.log(8 / 3) + 5 / 8 * math.log(8 / 5)
    assert compute_chance_loss("pointwise", [ones(2), ones(4, 4)]) == pytest.approx(entropy)


def test_chance_loss_counts_weights() -> None:
    step = [[0.25, 1.0], [1.0, 0.5]]
    assert compute_chance_loss("listwise", [step]) == pytest.approx((0.25 * math.log(2) + math.log(1.5)) / 2)
    share = 1.25 / 2.75
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert compute_chance_loss("pointwise", [step]) == pytest.approx(entropy)
    weights = torch.tensor([1.0, 0.5, 1.0])
    expected = listwise_loss(torch.zeros(3), [3], weights).item()
    assert compute_chance_loss("listwise", [[weights.tolist()]]) == pytest.approx(expected)


def test_chance_loss_is_that_of_a_model_that_knows_only_the_share_of_positives() -> None:
    batches = [[3, 5], [2]]
    share = (2 / 8 + 1 / 2) / 2
    logit = {"listwise": 0.7, "pointwise": math.log(share / (1 - share))}
    for name, loss in LOSSES.items():
        each = [loss(torch.full((sum(sizes),), logit[name]), sizes).item() for sizes in batches]
        assert sum(each) / 2 == pytest.approx(compute_chance_loss(name, [ones(*sizes) for sizes in batches]), rel=1e-5)


def test_chance_loss_of_distillation() -> None:
    # softmax(ln 3, 0) = 3/4, 1/4: ln 2 - (-3/4 ln 3/4 - 1/4 ln 1/4); equal labels: 0
    uneven = TrainingGroup("q", ("a", "b"), (math.log(3), 0.0))
    even = TrainingGroup("q", ("a", "b"), (0.0, 0.0))
    expected = math.log(2) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    assert compute_distillation_chance_loss([uneven]) == pytest.approx(expected)
    assert compute_distillation_chance_loss([uneven, even]) == pytest.approx(expected / 2)
    assert distillation_loss(torch.zeros(2), [2], [uneven.labels]).item() == pytest.approx(expected)
