"""What the tests of training share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.training.params import Params
from tests.unit.stages.training.small_training import make_inputs, settings


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model is faster on one thread; and only runs with the same number of threads give the same bytes."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def training_inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def params(tiny_model: Path) -> Params:
    return settings(tiny_model)
