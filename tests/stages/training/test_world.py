"""What is known of the processes from the launcher, and what is refused before any of them works."""

import pytest

from stages.errors import InputError
from stages.training import world


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
    assert (world.rank(), world.size()) == (0, 1)
    monkeypatch.setenv("RANK", "1")  # a scheduler's, say, that starts the same thing many times
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert (world.rank(), world.size()) == (0, 1)
    world.check(1, "cuda:3")


def test_a_launcher_says_which_process_this_is(launched: pytest.MonkeyPatch) -> None:
    assert (world.rank(), world.size()) == (2, 4)
    assert world.own_device("cpu") == "cpu"
    world.check(4, "auto")
    launched.setattr("torch.cuda.is_available", lambda: True)
    launched.setattr("torch.cuda.device_count", lambda: 1)
    assert world.own_device("cuda") == "cuda:0"
    launched.setenv("LOCAL_RANK", "1")
    with pytest.raises(InputError, match="'cuda:1': torch can use 1 such GPUs"):
        world.own_device("cuda")
    launched.setenv("RANK", "two")
    with pytest.raises(InputError, match="RANK = 'two' is no number"):
        world.rank()


@pytest.mark.parametrize(
    ("batch_size", "device", "said"), [(3, "auto", "Set batch_size to 4"), (8, "cuda:1", "'cuda:1'")]
)
def test_what_the_processes_cannot_share_is_refused(
    launched: pytest.MonkeyPatch, batch_size: int, device: str, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        world.check(batch_size, device)


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
        world.check(8, "auto")
