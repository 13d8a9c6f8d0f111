"""The losses by hand, and against a plain loop over the groups."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.training import losses
from stages.training.losses import (
    GroupLoss,
    distillation_loss,
    listwise_loss,
    pointwise_loss,
)


def test_listwise_is_minus_log_softmax_of_the_first_of_each_group() -> None:
    # group 1: e^2 / (e^2 + 1 + 1), group 2: 1 of 2 alike
    scores = torch.tensor([2.0, 0.0, 0.0, 1.0, 1.0])
    expected = (math.log(1 + 2 * math.exp(-2)) + math.log(2)) / 2
    assert listwise_loss(scores, [3, 2]).item() == pytest.approx(expected, rel=1e-6)


def test_listwise_gradient_is_softmax_minus_the_hard_label() -> None:
    scores = torch.tensor([0.0, math.log(3.0), 5.0], requires_grad=True)
    listwise_loss(scores, [2, 1]).backward()
    # group 1: softmax (1/4, 3/4), halved by the mean over two groups; a group of one teaches nothing
    assert scores.grad is not None
    assert scores.grad.tolist() == pytest.approx([-0.375, 0.375, 0.0], abs=1e-6)


def test_pointwise_is_the_mean_over_pairs() -> None:
    # sigmoid(ln 3) = 3/4 for a positive, sigmoid(0) = 1/2 for a negative and a positive
    scores = torch.tensor([math.log(3.0), 0.0, 0.0])
    expected = (math.log(4 / 3) + math.log(2) + math.log(2)) / 3
    assert pointwise_loss(scores, [2, 1]).item() == pytest.approx(expected, rel=1e-6)


def test_pointwise_labels_the_first_of_each_group() -> None:
    scores = torch.tensor([9.0, -9.0, -9.0, 9.0, -9.0])
    assert pointwise_loss(scores, [3, 2]).item() < 0.001
    assert pointwise_loss(scores, [2, 3]).item() > 1


def test_a_weight_says_how_often_a_document_counts() -> None:
    scores = torch.tensor([1.0, 2.0, 0.5])
    weights = torch.tensor([1.0, 0.5, 1.0])
    e, e2, half = math.exp(1), math.exp(2), math.exp(0.5)
    assert listwise_loss(scores, [3], weights).item() == pytest.approx(-math.log(e / (e + 0.5 * e2 + half)))
    each = [math.log1p(math.exp(-1)), 0.5 * math.log1p(e2), math.log1p(half)]
    assert pointwise_loss(scores, [3], weights).item() == pytest.approx(sum(each) / 2.5)
    for loss in (listwise_loss, pointwise_loss):
        assert loss(scores, [3], torch.ones(3)).item() == pytest.approx(loss(scores, [3]).item())


def test_a_positives_weight_is_that_of_its_group() -> None:
    scores = torch.tensor([1.0, 2.0, 0.5, 0.25])
    weights = torch.tensor([0.25, 1.0, 1.0, 0.5])
    first, second = math.log1p(math.e), math.log(1 + 0.5 * math.exp(-0.25))
    assert listwise_loss(scores, [2, 2], weights).item() == pytest.approx((0.25 * first + second) / 2)
    each = [0.25 * math.log1p(math.exp(-1)), math.log1p(math.exp(2)), math.log1p(math.exp(-0.5))]
    each.append(0.5 * math.log1p(math.exp(0.25)))
    assert pointwise_loss(scores, [2, 2], weights).item() == pytest.approx(sum(each) / 2.75)
    assert listwise_loss(scores[:2], [2], weights[:2]).item() == pytest.approx(0.25 * first), "alone in its step too"
    expected = (0.25 * math.log(2) + math.log(1.5)) / 2
    assert listwise_loss(torch.zeros(4), [2, 2], weights).item() == pytest.approx(expected)


def test_distillation_by_hand() -> None:
    # teacher 3/4 and 1/4, model 1/2 each: KL = 3/4 ln(3/2) + 1/4 ln(1/2); the second group agrees but for a constant
    scores = torch.tensor([7.0, 7.0, 1.0, 2.0, 3.0])
    labels = [[math.log(3.0), 0.0], [11.0, 12.0, 13.0]]
    expected = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    assert distillation_loss(scores, [2, 3], labels).item() == pytest.approx(expected, rel=1e-5)


def test_distillation_ignores_padding() -> None:
    scores = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0], requires_grad=True)
    distillation_loss(scores, [2, 3], [[math.log(3.0), 0.0], [0.0, 0.0, 0.0]]).backward()
    # softmax of the model minus the teacher's, halved by the mean over two groups
    assert scores.grad is not None
    assert scores.grad.tolist() == pytest.approx([-0.125, 0.125, 0.0, 0.0, 0.0], abs=1e-6)


GROUPS = st.lists(st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=6), min_size=1, max_size=5)


@given(GROUPS)
def test_uneven_groups_equal_a_loop_over_them(groups: list[list[float]]) -> None:
    scores = torch.tensor([score for group in groups for score in group])
    each = [math.log(math.fsum(math.exp(score) for score in group)) - group[0] for group in groups]
    assert listwise_loss(scores, [len(group) for group in groups]).item() == pytest.approx(
        sum(each) / len(each), rel=1e-4, abs=1e-4
    )


class Line(torch.nn.Module):
    """In place of a model: the logit of a pair is its document's number, times a weight, plus a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([0.7, 0.1]))


@pytest.mark.parametrize("kind", ["listwise", "pointwise", "distilled"])
@given(groups=GROUPS, size=st.integers(2, 7), weighed=st.booleans())
def test_the_mean_over_processes_is_the_loss_of_the_whole_step(
    kind: str, groups: list[list[float]], size: int, weighed: bool
) -> None:
    name = "listwise" if kind == "distilled" else kind
    step = [["q"] * len(groups), [[str(score) for score in group] for group in groups]]
    step += [[[0.5 + i % 2] + [0.25] * (len(group) - 1) for i, group in enumerate(groups)]] if weighed else []
    labels = [[score / 2 for score in group[::-1]] for group in groups] if kind == "distilled" else None

    def graded(rank: int, of: int) -> tuple[float, torch.Tensor]:
        model = Line()
        loss = GroupLoss(model, name, rank=rank, world_size=of)(step, labels)
        loss.backward()
        assert model.weight.grad is not None, "DDP waits for every process"
        return loss.item(), model.weight.grad

    with pytest.MonkeyPatch.context() as patch:
        numbers = lambda pairs: torch.tensor([[float(document), 1.0] for _, document in pairs])  # noqa: E731
        patch.setattr(losses, "compute_logits", lambda model, pairs, dtype: numbers(pairs) @ model.weight)
        whole, gradient = graded(0, 1)
        parts = [graded(rank, size) for rank in range(size)]
    assert sum(loss for loss, _ in parts) / size == pytest.approx(whole, rel=1e-4, abs=1e-4)
    mean = torch.stack([own for _, own in parts]).mean(0)
    assert mean.tolist() == pytest.approx(gradient.tolist(), rel=1e-3, abs=1e-4)
