"""Training in two processes that torchrun or accelerate launch started, through the command line."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.numpy import load_file

from stages.core.context import StageContext
from stages.training import stage as training_stage
from tests.conftest import Project, environment, new_project

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ACCELERATE = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
SETTINGS = {"epochs": 1, "dtype": "float32"}  # in bfloat16, where this CPU has it, rounding alone is 1 %


def start(launcher: tuple[str, ...], project: Project, *arguments: str) -> "subprocess.Popen[str]":
    """Start `prep` under a launcher and return at once."""
    command = [sys.executable, "-m", *launcher, "-m", "pipeline.cli.main", *arguments]
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=project.folder, env=environment(), **piped)  # type: ignore[call-overload,no-any-return]


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Exit code, stdout and stderr; what hangs is ended, with all that it started."""
    try:
        out, err = process.communicate(timeout=240)
    finally:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
    return process.returncode, out, err


def rank_0(launcher: "subprocess.Popen[str]") -> psutil.Process | None:
    """The process that runs the command, once it is there."""
    assert launcher.poll() is None
    for child in psutil.Process(launcher.pid).children(recursive=True):
        with suppress(psutil.Error):
            if child.environ().get("RANK") == "0":
                return child
    return None


def new(folder: Path, finished: Path, model: Path, table: Path) -> Project:
    """A project in which all that training needs is made, and nothing is trained."""
    project = new_project(folder, model, table)
    for name, value in SETTINGS.items():
        project.set("train", name, json.dumps(value))
    shutil.copytree(finished, project.work, symlinks=True)
    shutil.rmtree(project.work / "runs" / "train")
    return project


def trained(project: Project) -> Path:
    """The one artifact of its training."""
    (folder,) = (project.work / "runs" / "train").iterdir()
    return folder


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, finished: Path, tiny_model: Path, small_table: Path
) -> Project:
    """After `accelerate launch prep train`."""
    project = new(tmp_path_factory.mktemp("undisturbed"), finished, tiny_model, small_table)
    code, out, err = ended(start(ACCELERATE, project, "train"))
    assert code == 0, err
    assert out.count("wrote ") == 1, "one process speaks"
    assert "2 processes share out the groups of each step" in err
    return project


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_two_processes_learn_what_one_learns(
    undisturbed: Project, tiny_model: Path, tmp_path: Path, one_thread: None
) -> None:
    base = training_stage.Params(base=str(tiny_model), num_negatives=3, max_length=48, learning_rate=5e-3, **SETTINGS)
    runs = undisturbed.work / "runs"
    names = ("pairs/*/queries.parquet", "pairs/*/corpus.parquet", "pairs/*/qrels.parquet")
    files = [next(runs.glob(name)) for name in (*names, "search/*/candidates.parquet", "sample/*/mined.jsonl")]

    class Silent:
        def advance(self, done: int, total: int | None, unit: str, tokens: int = 0) -> None: ...
        def log(self, message: str) -> None: ...

    (tmp_path / "scratch").mkdir()
    tools = StageContext(Silent(), tmp_path / "scratch", tmp_path, tmp_path / "logs")
    training_stage.run(base, {path.stem: path for path in files}, tmp_path, tools)
    one, two = (json.loads((folder / "training.json").read_text()) for folder in (tmp_path, trained(undisturbed)))
    # 35 groups by 8, so the last step of an epoch has 2 for one process and 1 for the other
    assert one["groups_per_epoch"] % 8 == 3
    for history in (one, two):
        history["figures"] = [value for epoch in history.pop("epochs") for value in epoch.values()]
    assert one.pop("figures") == pytest.approx(two.pop("figures"), rel=1e-4)
    assert one == two
    ours, theirs = (load_file(folder / "reranker" / "model.safetensors") for folder in (tmp_path, trained(undisturbed)))
    # a loss of differences has no gradient there but rounding, of which Adam makes whole steps
    moot = re.compile(r"key\.bias|classifier\.bias")
    kept = {name for name in ours if not moot.search(name)}
    assert max(float(np.abs(ours[name] - theirs[name]).max()) for name in kept) < 1e-4
    assert max(float(np.abs(ours[name]).max()) for name in kept) > 0.1


def test_with_nothing_to_do_all_leave(undisturbed: Project) -> None:
    code, out, err = ended(start(TORCHRUN, undisturbed, "train"))
    assert code == 0, err
    assert out.count("nothing to do") == 1


def test_what_rank_0_refuses_ends_all_with_its_exit_code(undisturbed: Project) -> None:
    code, out, err = ended(start(TORCHRUN, undisturbed, "train", "--device", "cuda:0", "--json"))
    assert code == 1, "the launcher's own, which names that of the process"
    assert re.search(r"rank +: 0 .*\n +exitcode +: 2 ", err)
    assert err.count("'cuda:0': 2 processes need a device each") == 1
    assert json.loads(out)["exit"] == 2


def test_a_process_may_have_nothing_to_do(tmp_path: Path, finished: Path, tiny_model: Path, small_table: Path) -> None:
    project = new(tmp_path, finished, tiny_model, small_table)
    _, _, err = ended(start(TORCHRUN, project, "train", "--batch-size", "1"))
    assert "1 of them have none, because batch_size is 1" in err
    assert "epoch 1, dev: " in err  # the end; whether the gate likes what steps of one group learn is its own matter
    assert "another process" not in err


def test_a_kill_changes_nothing(
    undisturbed: Project, tmp_path: Path, finished: Path, tiny_model: Path, small_table: Path
) -> None:
    project = new(tmp_path, finished, tiny_model, small_table)
    process = start(TORCHRUN, project, "train")
    while (first := rank_0(process)) is None:
        time.sleep(0.05)
    while not (seals := [*project.work.glob("scratch/train-*/checkpoint-*/complete.json")]):
        assert process.poll() is None, "it ended without a checkpoint"
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    code, _, err = ended(process)
    assert code == 1
    assert re.search(r"rank +: 0 .*\n +exitcode +: -9 ", err)
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= json.loads(seals[0].read_text()).keys()
    code, _, err = ended(start(TORCHRUN, project, "train"))
    assert code == 0, err
    assert re.search(r"it goes on after step \d+", err)
    for path in (trained(undisturbed) / "reranker").iterdir():
        assert (trained(project) / "reranker" / path.name).read_bytes() == path.read_bytes(), path.name
    report = (trained(undisturbed) / "training.json").read_bytes()
    assert (trained(project) / "training.json").read_bytes() == report
