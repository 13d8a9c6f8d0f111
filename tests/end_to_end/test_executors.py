"""Which executor a command uses, and that no process of it stays behind."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, Project


@pytest.mark.parametrize("name", ["there:6379", "ray://", "rays", ""])
def test_an_unknown_executor_is_an_error_before_any_step_runs(project: Project, name: str) -> None:
    done = project.prep("encode", "--executor", name)
    assert done.returncode == 2
    assert "local, ray or ray://HOST:PORT" in done.stderr
    assert not (project.work / "runs").exists()


def test_the_address_of_a_cluster_in_the_environment_is_no_wish_to_use_it(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "there:6379")
    done = project.prep("encode", "-q")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_environment_may_name_the_executor(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREP_EXECUTOR", "elsewhere")
    assert project.prep("encode", "-q").returncode == 2


ENDLESS = """
from functools import partial
from itertools import repeat
from pipeline.executors.local import map_on_gpus
from stages.core.executor import Worker
from tests.unit.pipeline.executors.test_local import letters
if __name__ == "__main__":
    for letter, gpu, process in map_on_gpus(Worker(partial(letters, "never")), repeat("a"), ["0", "1"]):
        print(process, flush=True)
"""


def test_no_process_outlives_the_one_that_started_it(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text(ENDLESS)
    command, environment = [sys.executable, "endless.py"], {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment) as started:
        assert started.stdout
        processes = {int(started.stdout.readline()) for _ in range(2)}
        alive = [psutil.Process(process) for process in processes]
        started.kill()
        _, left = psutil.wait_procs(alive, timeout=20)
        for process in left:
            process.kill()
    assert len(processes) == 2
    assert not left
