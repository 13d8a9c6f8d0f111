"""Which checkpoints are used, kept and thrown away."""

import json
from pathlib import Path

from stages.training.checkpoints import CHECKSUMS_FILE, complete_checkpoint, find_last_checkpoint


def write(scratch: Path, step: int, best: int | None = None) -> Path:
    folder = scratch / f"checkpoint-{step}"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights of %d" % step)
    (folder / "trainer_state.json").write_text(json.dumps({"best_global_step": best}))
    return folder


def names(scratch: Path) -> set[str]:
    return {path.name for path in scratch.iterdir()}


def test_nothing_to_go_on_from(tmp_path: Path) -> None:
    assert find_last_checkpoint(tmp_path) is None


def test_a_seal_drops_all_but_its_own_and_the_best(tmp_path: Path) -> None:
    for step in (2, 4, 10):
        write(tmp_path, step, best=2)
        complete_checkpoint(tmp_path, step, best_step=2)
    assert names(tmp_path) == {"checkpoint-2", "checkpoint-10"}
    assert find_last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_one_without_a_seal_is_not_used(tmp_path: Path) -> None:
    write(tmp_path, 9)
    complete_checkpoint(tmp_path, 9, None)
    write(tmp_path, 12)
    assert find_last_checkpoint(tmp_path) == tmp_path / "checkpoint-9"
    assert names(tmp_path) == {"checkpoint-9"}


def test_a_changed_bit_or_a_missing_file_or_a_torn_seal_is_noticed(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        complete_checkpoint(tmp_path, write(tmp_path, step) and step, step - 1)
        (tmp_path / f"checkpoint-{step}").rename(tmp_path / f"kept-{step}")
    for step in (1, 2, 3):
        (tmp_path / f"kept-{step}").rename(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-1" / "model.safetensors").write_bytes(b"weights of 0")
    (tmp_path / "checkpoint-2" / "model.safetensors").unlink()
    (tmp_path / "checkpoint-3" / CHECKSUMS_FILE).write_text('{"model')
    assert find_last_checkpoint(tmp_path) is None
    assert names(tmp_path) == set()


def test_one_whose_best_epoch_is_lost_is_not_used(tmp_path: Path) -> None:
    write(tmp_path, 5, best=5)
    complete_checkpoint(tmp_path, 5, 5)
    write(tmp_path, 7, best=5)
    complete_checkpoint(tmp_path, 7, 5)
    (tmp_path / "checkpoint-5" / "model.safetensors").write_bytes(b"damaged")
    assert find_last_checkpoint(tmp_path) is None
