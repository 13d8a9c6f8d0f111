"""Checkpoints of a training, each sealed when it is whole: what a kill or a full disk left half-written is not used."""

import json
import shutil
from pathlib import Path

from stages.core.model_files import file_digest

SEAL = "complete.json"
"""Written into a checkpoint after all else in it: file name -> digest."""


def seal(scratch: Path, step: int, best: int | None) -> None:
    """Seal the checkpoint of `step`, then delete all others but that of step `best`."""
    folder = scratch / f"checkpoint-{step}"
    digests = {path.name: file_digest(path) for path in sorted(folder.iterdir()) if path.is_file()}
    writing = folder / f"{SEAL}.tmp"
    writing.write_text(json.dumps(digests))
    writing.rename(folder / SEAL)
    for other in scratch.glob("checkpoint-*"):
        if step_of(other) not in (step, best):
            shutil.rmtree(other)


def newest_checkpoint(scratch: Path) -> Path | None:
    """The last checkpoint that is whole (and whose best epoch's is), or None; those that are not are deleted.

    Whole is what holds every file that its seal names, unchanged.
    """
    found = sorted(scratch.glob("checkpoint-*"), key=step_of)
    for folder in found:
        if not _whole(folder):
            shutil.rmtree(folder)
    for folder in reversed([folder for folder in found if folder.exists()]):
        best = json.loads((folder / "trainer_state.json").read_text())["best_global_step"]
        if not best or (scratch / f"checkpoint-{best}").exists():
            return folder
        shutil.rmtree(folder)
    return None


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint was written after."""
    return int(checkpoint.name.split("-")[1])


def _whole(folder: Path) -> bool:
    try:
        digests = json.loads((folder / SEAL).read_text())
        return all(file_digest(folder / name) == digest for name, digest in digests.items())
    except (OSError, ValueError):
        return False
