"""How many processes train, and what a launcher's variables do."""

import os

import pytest

from stages.core.errors import InputError
from stages.training import distributed


@pytest.mark.parametrize(
    ("device", "n_gpus", "expected"),
    [("auto", 4, 4), ("cuda", 4, 4), ("cuda:1", 4, 1), ("cpu", 4, 1), ("mps", 4, 1), ("auto", 1, 1), ("auto", 0, 1)],
)
def test_each_gpu_gets_a_process_unless_the_device_names_one(
    monkeypatch: pytest.MonkeyPatch, device: str, n_gpus: int, expected: int
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: n_gpus)
    assert distributed.count_processes(device) == expected


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_processes_of_an_external_launcher_are_an_error(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Each of them would train a whole model."""
    monkeypatch.setenv(name, "2")
    with pytest.raises(InputError, match=f"{name} = 2"):
        distributed.check_launcher()


def test_a_launcher_of_one_process_is_allowed_and_its_variables_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "head"}.items():
        monkeypatch.setenv(name, value)
    distributed.check_launcher()
    distributed.clear_launcher_variables()
    assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR"} & set(os.environ)


def test_without_a_group_there_is_one_process() -> None:
    assert (distributed.get_rank(), distributed.get_world_size()) == (0, 1)
    assert distributed.is_any_true(True)
    assert not distributed.is_any_true(False)
