"""A command that trains again says so before it starts: why, and about how long it takes."""

import re
import shutil
from pathlib import Path

from tests.conftest import Project


def test_evaluate_names_the_settings_that_make_it_train_again(project: Project, finished: Path) -> None:
    shutil.copytree(finished, project.work, symlinks=True)
    project.set("train", "max_queries", "20")
    done = project.prep("evaluate")
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    [reason] = [number for number, line in enumerate(lines) if "trained again" in line]
    assert lines[reason].endswith("parameters.max_queries: 0 -> 20")
    [duration] = [number for number, line in enumerate(lines) if re.search(r"\b12 steps, about \d+ (s|min) at", line)]
    [first_epoch] = [number for number, line in enumerate(lines) if "epoch 1, dev:" in line]
    assert reason < duration < first_epoch


def test_a_first_training_has_no_reason_and_no_estimate(project: Project, finished: Path) -> None:
    shutil.copytree(finished, project.work, symlinks=True)
    shutil.rmtree(project.work / "runs" / "train")
    (project.work / "events.jsonl").unlink()
    done = project.prep("train")
    assert done.returncode == 0, done.stderr
    assert "trained again" not in done.stderr
    assert re.search(r"\d\d steps$", done.stderr, re.MULTILINE)
