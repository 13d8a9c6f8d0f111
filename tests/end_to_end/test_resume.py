"""A training that is killed or interrupted and resumed ends with the bytes of an undisturbed one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stages.training import trainer
from stages.training.params import Params
from tests.fakes import RecordedProgress
from tests.small_training import STEPS, act_at, digests, run, settings

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[2]


class Killed(Exception):
    """Stands for a kill within one process."""


def kill() -> None:
    raise Killed


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def train_as_process(params: Params, inputs: dict[str, Path], work: Path, step: int, number: int) -> int:
    """Train in a process that sends itself a signal after a step; returns its exit code."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    module = "tests.small_training"
    arguments = [params.base, str(inputs["mined"].parent), str(work), str(step), str(number)]
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=300).returncode


@pytest.fixture(scope="module")
def undisturbed(
    tiny_model: Path, training_inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """The digests of what an undisturbed training writes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run(settings(tiny_model), training_inputs, folder)
    return digests(folder / "out")


@pytest.mark.parametrize("checkpoint_steps", [1, 4])
def test_the_number_of_checkpoints_changes_nothing(
    training_params: Params,
    training_inputs: dict[str, Path],
    undisturbed: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    checkpoint_steps: int,
) -> None:
    monkeypatch.setattr(trainer, "CHECKPOINT_STEPS", checkpoint_steps)
    run(training_params, training_inputs, tmp_path)
    assert digests(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("step", [5, STEPS, 2 * STEPS])
def test_a_training_resumes_from_the_last_checkpoint_before_a_kill(
    training_params: Params,
    training_inputs: dict[str, Path],
    undisturbed: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    monkeypatch.setattr(trainer, "CHECKPOINT_STEPS", 2)
    with pytest.raises(Killed):
        run(training_params, training_inputs, tmp_path, act_at(step, kill))
    progress = RecordedProgress()
    run(training_params, training_inputs, tmp_path, progress)
    resumed = step - 1 if step == 5 else step - 2  # the kill comes before the checkpoint of its step
    assert progress.reports == [(done, 2 * STEPS, "steps", 0) for done in range(resumed + 1, 2 * STEPS + 1)]
    assert any(f"it resumes after step {resumed} of 12" in message for message in progress.messages)
    assert digests(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("step", [1, 3, STEPS, 2 * STEPS])
def test_a_training_resumes_from_the_step_of_an_interrupt(
    training_params: Params, training_inputs: dict[str, Path], undisturbed: dict[str, str], tmp_path: Path, step: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(training_params, training_inputs, tmp_path, act_at(step, interrupt))
    assert (tmp_path / "scratch" / f"checkpoint-{step}").exists()
    progress = RecordedProgress()
    run(training_params, training_inputs, tmp_path, progress)
    assert progress.reports == [(done, 2 * STEPS, "steps", 0) for done in range(step + 1, 2 * STEPS + 1)]
    assert digests(tmp_path / "out") == undisturbed


def test_a_second_interrupt_stops_the_training_at_once(
    training_params: Params, training_inputs: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(training_params, training_inputs, tmp_path, act_at(3, lambda: [interrupt(), interrupt()]))
    assert not list((tmp_path / "scratch").glob("checkpoint-*"))


@pytest.mark.parametrize(("number", "step", "left"), [(signal.SIGKILL, STEPS + 3, STEPS), (signal.SIGTERM, 2, 2)])
def test_a_process_that_a_signal_ends_leaves_its_last_checkpoint(
    training_params: Params,
    training_inputs: dict[str, Path],
    undisturbed: dict[str, str],
    tmp_path: Path,
    number: signal.Signals,
    step: int,
    left: int,
) -> None:
    assert train_as_process(training_params, training_inputs, tmp_path, step, number) == -number
    assert [path.name for path in (tmp_path / "scratch").glob("checkpoint-*")] == [f"checkpoint-{left}"]
    run(training_params, training_inputs, tmp_path)
    assert digests(tmp_path / "out") == undisturbed


def test_a_training_that_is_done_is_not_repeated(
    training_params: Params, training_inputs: dict[str, Path], tmp_path: Path
) -> None:
    run(training_params, training_inputs, tmp_path)
    before = digests(tmp_path / "out")
    progress = RecordedProgress()
    run(training_params, training_inputs, tmp_path, progress)
    assert progress.reports == []
    assert digests(tmp_path / "out") == before


def test_distillation_resumes_too(training_params: Params, training_inputs: dict[str, Path], tmp_path: Path) -> None:
    distilled = training_params.model_copy(update={"distill_epochs": None, "epochs": 1})
    run(distilled, training_inputs, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(distilled, training_inputs, tmp_path / "interrupted", act_at(3, interrupt))
    run(distilled, training_inputs, tmp_path / "interrupted")
    assert digests(tmp_path / "interrupted" / "out") == digests(tmp_path / "whole" / "out")


def test_a_signal_that_is_ignored_stays_ignored(
    training_params: Params, training_inputs: dict[str, Path], undisturbed: dict[str, str], tmp_path: Path
) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as under nohup
    try:
        run(training_params, training_inputs, tmp_path, act_at(3, interrupt))
    finally:
        signal.signal(signal.SIGINT, before)
    assert digests(tmp_path / "out") == undisturbed
