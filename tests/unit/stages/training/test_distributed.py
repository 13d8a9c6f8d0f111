"""What is known of the processes from the launcher, and what is refused before any of them works."""

import os

import pytest

from stages.core.errors import InputError
from stages.training import distributed


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The third of four processes, on the second of two machines."""
    given = {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "MASTER_ADDR": "head", "MASTER_PORT": "29500"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_without_a_launcher_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert (distributed.get_rank(), distributed.get_world_size()) == (0, 1)
    distributed.check_launch("cuda:3")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert (distributed.get_rank(), distributed.get_world_size()) == (0, 1)
    distributed.check_launch("cuda:3")
    distributed.clear_launcher_variables()
    assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE"} & set(os.environ)


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_one_of_several_that_does_not_know_where_the_others_are_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """accelerate would look for them, and average whatever trains there."""
    monkeypatch.setenv("MASTER_ADDR", "head")
    monkeypatch.setenv(name, "2")
    assert distributed.get_world_size() == 1
    with pytest.raises(InputError, match=f"{name} = 2 says .* torchrun .* or unset {name}"):
        distributed.check_launch("auto")


def test_a_launcher_says_which_process_this_is(launched: pytest.MonkeyPatch) -> None:
    assert (distributed.get_rank(), distributed.get_world_size()) == (2, 4)
    assert distributed.pick_local_device("cpu") == "cpu"
    distributed.check_launch("auto")
    launched.setattr("torch.cuda.is_available", lambda: True)
    launched.setattr("torch.cuda.device_count", lambda: 1)
    assert distributed.pick_local_device("cuda") == "cuda:0"
    launched.setenv("LOCAL_RANK", "1")
    with pytest.raises(InputError, match="'cuda:1'"):
        distributed.pick_local_device("cuda")
    launched.setenv("RANK", "two")
    with pytest.raises(InputError, match="RANK = 'two' is no number"):
        distributed.get_rank()


def test_one_device_for_several_is_refused(launched: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="'cuda:1'"):
        distributed.check_launch("cuda:1")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ACCELERATE_USE_FSDP", "true", "FSDP, which splits the model"),
        ("TORCHELASTIC_MAX_RESTARTS", "1", "--max-restarts 0"),
    ],
)
def test_what_the_launcher_would_do_otherwise_is_refused(
    launched: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    launched.setenv(name, value)
    with pytest.raises(InputError, match=said):
        distributed.check_launch("auto")
