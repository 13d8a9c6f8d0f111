"""`prep train` in two processes, as on a machine with two GPUs; here both compute on the CPU."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.numpy import load_file

from stages.core.context import NullProgress, StageContext
from stages.training import stage as training_stage
from stages.training.checkpoints import CHECKSUMS_FILE
from tests.conftest import Project, environment, new_project

PREP_WITH_TWO_GPUS = (
    "from stages.training import distributed; distributed.count_processes = lambda device: 2; "
    "from pipeline.cli.main import main; main()"
)
# in bfloat16, if this CPU has it, rounding alone is 1 %; the last of 18 steps has a group for one process only
SETTINGS = {"epochs": 2, "batch_size": 2, "dtype": "float32"}


def start(project: Project, *arguments: str) -> "subprocess.Popen[str]":
    """Start `prep` and return at once."""
    command = [sys.executable, "-c", PREP_WITH_TWO_GPUS, *arguments]
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=project.folder, env=environment(), **piped)  # type: ignore[call-overload,no-any-return]


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Exit code, stdout and stderr; a process that hangs is killed, with all that it started."""
    try:
        out, err = process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
    return process.returncode, out, err


def new(folder: Path, finished: Path, model: Path, table: Path) -> Project:
    """A project in which all is built that training needs, and nothing is trained."""
    project = new_project(folder, model, table)
    for name, value in SETTINGS.items():
        if name != "dtype":  # which is in [run]
            project.set("train", name, json.dumps(value))
    shutil.copytree(finished, project.work, symlinks=True)
    shutil.rmtree(project.work / "runs" / "train")
    shutil.rmtree(project.work / "logs" / "train")
    return project


def trained(project: Project) -> Path:
    """The one artifact of its training."""
    (folder,) = (project.work / "runs" / "train").iterdir()
    return folder


def workers(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The processes that train, rank 0 first."""
    children = psutil.Process(process.pid).children()
    return sorted((c for c in children if "spawn_main" in " ".join(c.cmdline())), key=psutil.Process.create_time)


def wait_for_new_file(process: "subprocess.Popen[str]", project: Project, pattern: str, known: set[Path]) -> None:
    """Return once a file of the workspace that is not among the known ones matches the pattern."""
    while set(project.work.glob(pattern)) <= known:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.005)


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, finished: Path, tiny_model: Path, small_table: Path
) -> Project:
    """After `prep train`."""
    project = new(tmp_path_factory.mktemp("undisturbed"), finished, tiny_model, small_table)
    code, out, err = finish(start(project, "train"))
    assert code == 0, err
    assert out.count("train: 35 queries") == 1, "one process prints the result"
    assert "2 processes share the groups of each step" in err
    return project


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_two_processes_train_the_same_model_as_one(
    undisturbed: Project, tiny_model: Path, tmp_path: Path, one_thread: None
) -> None:
    params = training_stage.Params(base=str(tiny_model), num_negatives=3, max_length=48, learning_rate=5e-3, **SETTINGS)
    runs = undisturbed.work / "runs"
    names = ("pairs/*/queries.parquet", "pairs/*/corpus.parquet", "pairs/*/qrels.parquet")
    files = [next(runs.glob(name)) for name in (*names, "search/*/candidates.parquet", "sample/*/mined.jsonl")]
    (tmp_path / "scratch").mkdir()
    context = StageContext(NullProgress(), tmp_path / "scratch", tmp_path, tmp_path / "logs")
    training_stage.run(params, {path.stem: path for path in files}, tmp_path, context)
    one, two = (json.loads((folder / "training.json").read_text()) for folder in (tmp_path, trained(undisturbed)))
    assert one["groups_per_epoch"] % 2 == 1
    for report in (one, two):
        report["values"] = [value for epoch in report.pop("epochs") for value in epoch.values()]
    assert one.pop("values") == pytest.approx(two.pop("values"), rel=1e-3)
    assert one == two
    ours, theirs = (load_file(folder / "reranker" / "model.safetensors") for folder in (tmp_path, trained(undisturbed)))
    # a loss of differences has no gradient at these but rounding, which Adam scales up to whole steps
    names_without_gradient = re.compile(r"key\.bias|classifier\.bias")
    compared = {name for name in ours if not names_without_gradient.search(name)}
    assert max(float(np.abs(ours[name] - theirs[name]).max()) for name in compared) < 1e-3
    assert max(float(np.abs(ours[name]).max()) for name in compared) > 0.1


def test_an_interrupt_and_kills_change_nothing(
    undisturbed: Project, tmp_path: Path, finished: Path, tiny_model: Path, small_table: Path
) -> None:
    project = new(tmp_path, finished, tiny_model, small_table)
    log_files, checkpoints = "logs/train/*/events*", f"scratch/train-*/checkpoint-*/{CHECKSUMS_FILE}"

    process = start(project, "train")
    wait_for_new_file(process, project, log_files, set())
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130, err
    [checkpoint] = project.work.glob("scratch/train-*/checkpoint-*")
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= json.loads((checkpoint / CHECKSUMS_FILE).read_text()).keys()

    known = set(project.work.glob(checkpoints))
    process = start(project, "train")
    wait_for_new_file(process, project, checkpoints, known)
    workers(process)[0].kill()
    code, _, err = finish(process)
    assert code == 2, err
    assert "Traceback" not in err

    known = set(project.work.glob(log_files))
    process = start(project, "train")
    wait_for_new_file(process, project, log_files, known)
    orphans = workers(process)
    process.kill()
    assert len(orphans) == 2
    assert psutil.wait_procs(orphans, timeout=30)[1] == [], "they would write to the next run's checkpoints"
    finish(process)

    code, _, err = finish(start(project, "train"))
    assert code == 0, err
    assert re.search(r"it resumes after step \d+ of 54", err)
    files = ["training.json", *(f"reranker/{path.name}" for path in (trained(project) / "reranker").iterdir())]
    for name in files:
        assert (trained(project) / name).read_bytes() == (trained(undisturbed) / name).read_bytes(), name


def test_an_error_of_a_process_is_that_of_the_command(
    tmp_path: Path, finished: Path, tiny_model: Path, small_table: Path
) -> None:
    project = new(tmp_path, finished, tiny_model, small_table)
    damaged = Path(shutil.copytree(tiny_model, tmp_path / "damaged"))
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    code, _, err = finish(start(project, "train", "--base", str(damaged)))
    assert code == 2, err
    assert str(damaged) in err.splitlines()[-1]
    assert "Traceback" not in err


def test_processes_of_an_external_launcher_are_an_error(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert project.prep("train").returncode == 2
    assert not project.work.exists()
