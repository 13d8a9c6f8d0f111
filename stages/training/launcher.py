"""Starts a training: in this process, or in one process for each GPU."""

import os
import pickle
import signal
import threading
from pathlib import Path
from typing import Any

import torch.multiprocessing

from stages.core.context import NullProgress, Progress, StageContext
from stages.core.errors import InputError, PrepError
from stages.core.executor import exit_with_parent
from stages.training import distributed
from stages.training.checkpoints import find_last_checkpoint, parse_checkpoint_step
from stages.training.interrupts import Interrupt, defer_interrupts
from stages.training.job import TrainingJob
from stages.training.params import TrainingHistory
from stages.training.trainer import TrainingState, run_training, summarise_log_history

_POLL_SECONDS = 0.1


def train_on_groups(job: TrainingJob, context: StageContext) -> TrainingHistory:
    """Train `job.params.base` on the groups of `job`, from the last checkpoint in the scratch folder if there is one.

    The weights of the epoch with the highest nDCG@10 on dev (the first of equals) are kept; without dev queries, those
    of the last epoch. A loss that is not finite ends the training. An interrupt ends it after a checkpoint is written,
    and is raised then. Several GPUs share the groups of each step if `job.params.device` names none of them.
    """
    distributed.check_launcher()
    checkpoint = find_last_checkpoint(context.scratch_dir)
    if checkpoint:
        context.progress.log(
            f"the training was interrupted before: it resumes after step {parse_checkpoint_step(checkpoint)} of "
            f"{job.n_steps}"
        )
    context.progress.log(_describe_duration(job, checkpoint, context.seconds_per_step))
    n_processes = min(distributed.count_processes(job.params.device), job.params.batch_size)
    with defer_interrupts(context.progress.log) as interrupt:
        if n_processes == 1:
            distributed.clear_launcher_variables()
            state = run_training(job, checkpoint, context, lambda: interrupt.signal_number is not None)
        else:
            context.progress.log(f"{n_processes} processes share the groups of each step")
            state = _run_in_processes(n_processes, job, checkpoint, context, interrupt)
    best_folder = context.scratch_dir / f"checkpoint-{state.best_step}"
    best_checkpoint = best_folder if best_folder.exists() else find_last_checkpoint(context.scratch_dir)
    return TrainingHistory(
        state.n_steps,
        summarise_log_history(state.log_history, job.steps_per_epoch),
        parse_checkpoint_step(best_checkpoint) // job.steps_per_epoch if best_checkpoint else 0,
        best_checkpoint,
    )


def _describe_duration(job: TrainingJob, checkpoint: Path | None, seconds_per_step: float | None) -> str:
    """How many steps are left, and about how long they take if the last training's speed is known."""
    n_steps = job.n_steps - (parse_checkpoint_step(checkpoint) if checkpoint else 0)
    if seconds_per_step is None:
        return f"{n_steps} steps"
    seconds = n_steps * seconds_per_step
    duration = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    return f"{n_steps} steps, about {duration} at the last training's {seconds_per_step:.2g} s a step"


def _run_in_processes(
    n_processes: int, job: TrainingJob, checkpoint: Path | None, context: StageContext, interrupt: Interrupt
) -> TrainingState:
    """`run_training` in `n_processes` new processes; their progress is shown by this one.

    Raises `InputError` if one of them is killed, and a `PrepError` that one of them raises.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is loaded; its warnings of DDP do not apply
    spawn = torch.multiprocessing.get_context("spawn")
    messages, should_stop = spawn.SimpleQueue(), spawn.Event()
    store = distributed.open_store()
    # in a file: a process would wait until the one before it has read a long argument
    job_path = context.scratch_dir / "job.pickle"
    job_path.write_bytes(pickle.dumps(job))
    processes = torch.multiprocessing.spawn(
        _train_in_group,
        (n_processes, store.port, job_path, checkpoint, context.scratch_dir, context.logs_dir, messages, should_stop),
        n_processes,
        join=False,
    )
    state = TrainingState(0, [], None)
    try:
        is_running = True
        while is_running:
            is_running = not processes.join(_POLL_SECONDS)
            state = _relay_messages(messages, context.progress) or state
            if interrupt.signal_number is not None:
                should_stop.set()
    except torch.multiprocessing.ProcessExitedException as error:
        if interrupt.signal_number is None:
            _relay_messages(messages, context.progress)
            raise InputError(
                f"a process of the training ended: {error}. If memory ran out, use a smaller batch_size or max_length. "
                "The next run resumes from the last checkpoint."
            ) from error
    except torch.multiprocessing.ProcessRaisedException:
        _relay_messages(messages, context.progress)
        raise
    finally:
        for process in processes.processes:
            process.kill()
    return state


def _relay_messages(messages: Any, progress: Progress) -> TrainingState | None:
    """Pass on what the processes sent: progress, an error to raise, or the state that is returned."""
    state = None
    while not messages.empty():
        name, content = messages.get()
        if name == "error":
            raise content
        if name == "state":
            state = content
        else:
            getattr(progress, name)(*content)
    return state


class _RemoteProgress:
    """Progress that is shown by the process which started this one."""

    def __init__(self, messages: Any) -> None:
        self.messages = messages

    def advance(self, done: int, total: int | None, unit: str, tokens: int = 0) -> None:
        self.messages.put(("advance", (done, total, unit, tokens)))

    def log(self, message: str) -> None:
        self.messages.put(("log", (message,)))


def _train_in_group(
    rank: int,
    n_processes: int,
    port: int,
    job_path: Path,
    checkpoint: Path | None,
    scratch: Path,
    logs: Path,
    messages: Any,
    should_stop: Any,
) -> None:
    """What a started process does. Rank 0 sends its progress and the state at the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the one that started them decides
    threading.Thread(target=exit_with_parent, daemon=True).start()
    context = StageContext(NullProgress() if rank else _RemoteProgress(messages), scratch=scratch, logs=logs)
    try:
        with distributed.convert_peer_errors():
            distributed.join_group(rank, n_processes, port)
            job: TrainingJob = pickle.loads(job_path.read_bytes())
            state = run_training(job, checkpoint, context, should_stop.is_set)
    except PrepError as error:
        messages.put(("error", error))
        raise
    if rank == 0:
        messages.put(("state", state))
