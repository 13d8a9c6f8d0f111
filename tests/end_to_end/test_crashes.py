"""Kills, full disks and damage: the next run notices, repairs or refuses, and ends with an undisturbed run's bytes."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pipeline.workflow.graph import PIPELINE
from tests.conftest import Project


def current_bytes(work: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file that a reader finds under current/."""
    current = (work / "current").resolve()
    files = [Path(folder) / name for folder, _, names in os.walk(current, followlinks=True) for name in names]
    return {str(path.relative_to(current)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def whole(finished: Path) -> dict[str, str]:
    """The bytes of a run from nothing that nobody disturbed."""
    return current_bytes(finished)


def flip_a_bit(path: Path) -> None:
    """Change one bit in the middle of a file and keep its times, as a bad disk would."""
    stamp = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


def kill_when(project: Project, reached) -> bool:  # type: ignore[no-untyped-def]
    """Start a refresh and kill -9 it as soon as `reached()`; False where it ended before that."""
    process = project.start("refresh", "-q")
    try:
        while process.exitcode is None:
            if reached():
                process.kill()
                return True
            time.sleep(0.002)
        assert process.exitcode == 0
        return False
    finally:
        process.kill()
        process.join()


def test_a_kill_at_every_stage_boundary_ends_with_the_same_bytes(project: Project, whole: dict[str, str]) -> None:
    for boundary in [(kind, stage.name) for stage in PIPELINE for kind in ("start", "done")]:
        assert kill_when(project, lambda b=boundary: b in [(e["event"], e.get("stage")) for e in project.events()]), (
            boundary
        )
        assert not (project.work / "current").exists() or current_bytes(project.work) == whole
    assert project.prep("refresh", "-q").returncode == 0
    assert current_bytes(project.work) == whole
    started = [event["stage"] for event in project.events() if event["event"] == "start"]
    assert started.count("pairs") <= 2, "a stage that was done is not run again"


def test_kills_at_random_moments_end_with_the_same_bytes(project: Project, whole: dict[str, str]) -> None:
    seed = int(os.environ.get("PREP_CRASH_SEED", "0"))
    draw = random.Random(seed)
    for _ in range(int(os.environ.get("PREP_CRASH_KILLS", "5"))):
        deadline = time.monotonic() + draw.uniform(0.1, 4)
        if not kill_when(project, lambda d=deadline: time.monotonic() > d):
            break
    assert project.prep("refresh", "-q").returncode == 0
    assert current_bytes(project.work) == whole, f"PREP_CRASH_SEED={seed}"


def test_a_kill_while_training_resumes_from_its_checkpoint(project: Project, whole: dict[str, str]) -> None:
    assert kill_when(project, lambda: any((project.work / "scratch").glob("train-*/**/checkpoint-*/complete.json")))
    done = project.prep("refresh")
    assert done.returncode == 0, done.stderr
    assert "it resumes after step" in done.stderr
    assert current_bytes(project.work) == whole


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_an_interrupt_while_training_leaves_a_checkpoint(
    project: Project, whole: dict[str, str], number: signal.Signals, exit_code: int
) -> None:
    process = project.start("refresh", "-q")
    while not any((project.work / "logs" / "train").glob("*/events*")):
        assert process.exitcode is None
        time.sleep(0.005)
    os.kill(process.pid or 0, number)
    process.join()
    assert process.exitcode == exit_code
    assert any((project.work / "scratch").glob("train-*/checkpoint-*/complete.json"))
    done = project.prep("refresh")
    assert done.returncode == 0, done.stderr
    assert "it resumes after step" in done.stderr
    assert current_bytes(project.work) == whole


@pytest.mark.parametrize("stage", [stage.name for stage in PIPELINE])
def test_damage_to_any_artifact_is_detected_and_repaired(
    project: Project, finished: Path, whole: dict[str, str], stage: str
) -> None:
    shutil.copytree(finished, project.work, symlinks=True)
    files = [path for path in (project.work / "runs" / stage).rglob("*") if path.is_file()]
    flip_a_bit(max((path for path in files if path.name != "manifest.json"), key=lambda path: path.stat().st_size))
    standings = json.loads(project.prep("status", "--json").stdout)
    assert [row["state"] for row in standings["stages"] if row["stage"] == stage] == ["stale"]
    done = project.prep("refresh")
    assert done.returncode == 0, done.stderr
    assert "damaged" in done.stderr
    assert current_bytes(project.work) == whole


def test_a_flipped_bit_in_the_vectors_is_noticed_and_encoded_again(
    project: Project, finished: Path, whole: dict[str, str]
) -> None:
    shutil.copytree(finished, project.work, symlinks=True)
    flip_a_bit(max((project.work / "vectors").glob("*/*"), key=lambda path: path.stat().st_size))
    done = project.prep("refresh")
    assert done.returncode == 0, done.stderr
    assert "encode: running" in done.stderr
    assert current_bytes(project.work) == whole


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_disk_is_an_error_and_leaves_no_partial_file(project: Project, whole: dict[str, str]) -> None:
    project.work.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(project.work)], capture_output=True
    ).returncode:
        pytest.skip("this machine does not let us mount a tmpfs")
    try:
        done = project.prep("refresh", "-q")
        assert done.returncode == 2, done.stderr
        assert "full" in done.stderr
        assert "Traceback" not in done.stderr
        assert not (project.work / "current").exists()
        subprocess.run(["mount", "-o", "remount,size=200m", str(project.work)], check=True)
        assert project.prep("refresh", "-q").returncode == 0
        assert current_bytes(project.work) == whole
    finally:
        subprocess.run(["umount", str(project.work)], check=True)


def test_current_is_readable_through_every_moment_of_a_refresh(project: Project, finished: Path) -> None:
    shutil.copytree(finished, project.work, symlinks=True)
    project.set("mine", "num_negatives", "2")
    process = project.start("refresh", "-q", "--force")
    seen = set()
    while process.exitcode is None:
        lines = (project.work / "current" / "mined.jsonl").read_text().splitlines()
        seen.add(max(len(json.loads(line)["neg"]) for line in lines))
        json.loads((project.work / "current" / "metrics.json").read_text())
        time.sleep(0.005)
    assert process.exitcode == 0
    lines = (project.work / "current" / "mined.jsonl").read_text().splitlines()
    seen.add(max(len(json.loads(line)["neg"]) for line in lines))
    assert seen == {3, 2}
