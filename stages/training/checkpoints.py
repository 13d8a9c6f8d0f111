"""Checkpoints of a training, with checksums: one that a kill or a full disk left incomplete is not used."""

import json
import shutil
from pathlib import Path

from stages.core.files import file_digest, write_durably

CHECKSUMS_FILE = "complete.json"
"""Written into a checkpoint after all its other files: file name -> digest."""


def complete_checkpoint(scratch: Path, step: int, best_step: int | None) -> None:
    """Write the checksums of the checkpoint of `step`, then delete all others except that of `best_step`."""
    folder = scratch / f"checkpoint-{step}"
    digests = {path.name: file_digest(path) for path in sorted(folder.iterdir()) if path.is_file()}
    write_durably(folder / CHECKSUMS_FILE, json.dumps(digests))
    for other in scratch.glob("checkpoint-*"):
        if parse_checkpoint_step(other) not in (step, best_step):
            shutil.rmtree(other)


def find_last_checkpoint(scratch: Path) -> Path | None:
    """The last complete checkpoint whose best epoch's checkpoint is complete too, or None. Others are deleted.

    A checkpoint is complete if every file in its checksums is there and unchanged.
    """
    folders = sorted(scratch.glob("checkpoint-*"), key=parse_checkpoint_step)
    for folder in folders:
        if not _is_complete(folder):
            shutil.rmtree(folder)
    for folder in reversed([folder for folder in folders if folder.exists()]):
        best_step = json.loads((folder / "trainer_state.json").read_text())["best_global_step"]
        if not best_step or (scratch / f"checkpoint-{best_step}").exists():
            return folder
        shutil.rmtree(folder)
    return None


def parse_checkpoint_step(checkpoint: Path) -> int:
    """The step that a checkpoint was written after."""
    return int(checkpoint.name.split("-")[1])


def _is_complete(folder: Path) -> bool:
    try:
        digests = json.loads((folder / CHECKSUMS_FILE).read_text())
        return all(file_digest(folder / name) == digest for name, digest in digests.items())
    except (OSError, ValueError):
        return False
