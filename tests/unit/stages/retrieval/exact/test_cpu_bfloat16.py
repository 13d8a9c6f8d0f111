from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as of_numpy

from stages.core.executor import InProcessExecutor
from stages.retrieval.exact import topk
from stages.retrieval.exact.cpu_bfloat16 import _Bfloat16Tile
from stages.retrieval.exact.scan import scan_batches

NUMBERS = st.sampled_from(
    [0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 1.0078125, -1.0078125, 2.0**-126, -(2.0**-126), 3e38, -3e38]
)


def tile(scores: list[list[float]]) -> _Bfloat16Tile:
    made = torch.tensor(scores).bfloat16()
    return _Bfloat16Tile(made.view(torch.int16).numpy(), np.empty(made.shape, np.bool_))


@pytest.mark.parametrize(
    ("enough", "passing"),
    [
        (float("-inf"), [-2, -0.5, 0, 0, 0.25, 3]),
        (-2, [-0.5, 0, 0, 0.25, 3]),
        (-0.5, [0, 0, 0.25, 3]),
        (0, [0.25, 3]),
        (0.25, [3]),
        (3, []),
        (float("inf"), []),
    ],
)
def test_scores_above_the_threshold_pass(enough: float, passing: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topk, "MAX_HIT_SHARE", 1)
    found = tile([[-2, -0.5, 0, 0.0, 0.25, 3]]).select_above(np.array([enough], np.float32))
    assert found is not None
    assert found[2].tolist() == passing


@given(
    scores=of_numpy.arrays(np.float32, (3, 5), elements=NUMBERS.map(lambda x: float(torch.tensor(x).bfloat16()))),
    enough=of_numpy.arrays(np.float32, 3, elements=NUMBERS.map(lambda x: float(torch.tensor(x).bfloat16()))),
)
def test_bits_compare_as_the_numbers_do(scores: np.ndarray, enough: np.ndarray) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topk, "MAX_HIT_SHARE", 1)
        found = tile(scores.tolist()).select_above(enough + np.float32(0))  # as entries have it, -0 is 0
    assert found is not None
    row, column = np.nonzero(scores > enough[:, None])
    assert {*zip(row.tolist(), column.tolist(), strict=True)} == {
        *zip(found[0].tolist(), found[1].tolist(), strict=True)
    }
    assert np.array_equal(scores[row, column], found[2])


def test_few_or_many_pass() -> None:
    scores = tile([[1.0] * 90 + [2.0] * 10])
    assert scores.select_above(np.array([0.5], np.float32)) is None
    found = scores.select_above(np.array([1.0], np.float32))
    assert found is not None
    assert [part.tolist() for part in found] == [[0] * 10, list(range(90, 100)), [2.0] * 10]
    columns, numbers = scores.select_top_k(slice(0, 1), 3)
    assert (columns.tolist(), numbers.tolist()) == (list(range(100)), [[1.0] * 90 + [2.0] * 10])


def test_torchs_threads_are_as_before() -> None:
    asked, corpus = np.random.default_rng(0).standard_normal((2, 600, 16)).astype(np.float32)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        list(scan_batches([asked], [corpus], 5, InProcessExecutor(), "cpu", "bfloat16"))
        assert of_new_threads() == 3
        broken = patch.object(_Bfloat16Tile, "select_above", side_effect=RuntimeError("broken"))
        with broken, pytest.raises(RuntimeError, match="broken"):
            list(scan_batches([asked], [corpus], 5, InProcessExecutor(), "cpu", "bfloat16"))
        assert of_new_threads() == 3
    finally:
        torch.set_num_threads(before)


def of_new_threads() -> int:
    """The threads that torch computes with in a thread that begins now, as an encoder's does."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()
