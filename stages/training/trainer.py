"""The training loop: sentence-transformers' trainer over groups, with dev metrics after each epoch and checkpoints.

The groups of all epochs are the rows of one data set, which is read in order. A resumed training skips the rows of the
steps that are done, and ends with the bytes of an uninterrupted one. Of several processes each reads all rows and
computes on its part of each step, so the steps are those of one process.
"""

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate.data_loader import prepare_data_loader
from sentence_transformers.base.trainer import BaseTrainer
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from transformers import PrinterCallback, TrainerCallback
from transformers.integrations import TensorBoardCallback

from stages.core.context import StageContext
from stages.core.libraries import silence_huggingface_logging
from stages.core.model_files import resolve_model
from stages.reranking.cross_encoder import load_reranker, save_reranker
from stages.training import distributed
from stages.training.checkpoints import complete_checkpoint
from stages.training.dataset import EpochBatchSampler, GroupCollator, build_dataset
from stages.training.dev_evaluation import DevEvaluator
from stages.training.job import TrainingJob
from stages.training.losses import GroupLoss
from stages.training.params import Params

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

CHECKPOINT_STEPS = 50
"""Steps that a kill costs at most."""


class TrainingState(NamedTuple):
    """The state at the end of a training."""

    n_steps: int
    """Steps taken, over all epochs."""
    log_history: list[dict[str, Any]]
    """The entries of the trainer's log: see `summarise_log_history`."""
    best_step: int | None
    """The last step of the epoch with the best dev metrics; None without dev queries."""


def run_training(
    job: TrainingJob, checkpoint: Path | None, context: StageContext, should_stop: Callable[[], bool]
) -> TrainingState:
    """Train in this process, which may be one of a group, from `checkpoint` if there is one.

    `should_stop` is called after each step: if it is true in one process, all write a checkpoint and stop. Rank 0 logs,
    evaluates, and writes checkpoints to the scratch folder, which all processes see.
    """
    params, rank = job.params, distributed.get_rank()
    device = distributed.pick_local_device(rank) if distributed.get_world_size() > 1 else params.device
    model = load_reranker(resolve_model(params.base), device, params.max_length, params.dropout, params.seed)
    if params.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    callbacks: list[TrainerCallback] = []
    if rank == 0:
        callbacks = [
            _MonitorCallback(job.steps_per_epoch, job.dev_evaluator, context),
            TensorBoardCallback(SummaryWriter(str(context.logs_dir))),
        ]
    callbacks.append(_ScheduleCallback(job, context, should_stop))
    trainer = _GroupTrainer(model, job, context.scratch_dir, callbacks)
    if rank == 0:
        callbacks[0].trainer = trainer
    trainer.train_from(checkpoint)
    return TrainingState(trainer.state.global_step, trainer.state.log_history, trainer.state.best_global_step)


def summarise_log_history(log_history: Sequence[Mapping[str, Any]], steps_per_epoch: int) -> list[dict[str, Any]]:
    """One record for each epoch of `steps_per_epoch` steps, from the trainer's log.

    An entry's "loss" is the mean over the steps since the entry before it; each epoch ends with an entry. A record's
    is the mean over the epoch's steps, None if it is not finite.
    """
    epoch_records: dict[int, dict[str, Any]] = {}
    loss_sums: dict[int, float] = {}
    last_step = 0
    for entry in log_history:
        epoch = -(-entry["step"] // steps_per_epoch)
        record = epoch_records.setdefault(epoch, {"epoch": epoch, "loss": None})
        # sorted, because a log that was read from a checkpoint is
        record.update((name[5:], value) for name, value in sorted(entry.items()) if name.startswith("eval_"))
        if "loss" in entry:
            loss_sums[epoch] = loss_sums.get(epoch, 0.0) + entry["loss"] * (entry["step"] - last_step)
            last_step = entry["step"]
    for epoch, total in loss_sums.items():
        loss = total / (min(last_step, epoch * steps_per_epoch) - (epoch - 1) * steps_per_epoch)
        epoch_records[epoch]["loss"] = loss if math.isfinite(loss) else None
    return [epoch_records[epoch] for epoch in sorted(epoch_records)]


class _GroupTrainer(CrossEncoderTrainer):  # type: ignore[misc]
    """sentence-transformers' trainer without the model card, which asks the hub and holds times, and in our order."""

    def __init__(
        self, model: "CrossEncoder", job: TrainingJob, scratch: Path, callbacks: Sequence[TrainerCallback]
    ) -> None:
        params, rank = job.params, distributed.get_rank()
        with silence_huggingface_logging():
            super().__init__(
                model,
                _build_arguments(model, params, job.learning_rate, scratch),
                train_dataset=build_dataset(job.epoch_groups),
                data_collator=GroupCollator(job.queries, job.documents),
                loss=GroupLoss(model, params.loss, params.dtype, rank, distributed.get_world_size()),
                callbacks=[*callbacks],
            )
        self.remove_callback(PrinterCallback)
        self.group_batch_sampler = EpochBatchSampler([len(groups) for groups in job.epoch_groups], params.batch_size)
        if rank:  # or dropout would drop the same units in every process
            torch.manual_seed(params.seed + rank)

    def train_from(self, checkpoint: Path | None = None) -> None:
        """Train to the end, from `checkpoint` if there is one."""
        with silence_huggingface_logging(), distributed.convert_peer_errors(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)  # from accelerate
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        return

    def get_batch_sampler(self, *args: Any, **kwargs: Any) -> EpochBatchSampler:
        return self.group_batch_sampler

    def get_train_dataloader(self) -> DataLoader:
        # as for one process: accelerate would give each process a part of the rows, but `GroupLoss` splits the steps
        loader = self._build_dataloader(self.train_dataset, self.args.train_batch_size, dataset_kind="train")
        return prepare_data_loader(loader, self.args.device, num_processes=1, process_index=0)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        save_reranker(self.model, Path(output_dir or self.args.output_dir))

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        distributed.is_any_true(False)  # a barrier: rank 0 writes checksums of the files of all processes next


class _MonitorCallback(TrainerCallback):  # type: ignore[misc]
    """Rank 0: shows progress, computes the dev metrics after each epoch, and completes the checkpoints.

    transformers' own choice of the best checkpoint needs an `eval_dataset`, which rerankings are not.
    """

    trainer: BaseTrainer

    def __init__(self, steps_per_epoch: int, dev_evaluator: DevEvaluator | None, context: StageContext) -> None:
        self.steps_per_epoch = steps_per_epoch
        self.dev_evaluator = dev_evaluator
        self.context = context

    def on_step_end(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        self.context.progress.advance(state.global_step, state.max_steps, "steps")
        if self.dev_evaluator and state.global_step % self.steps_per_epoch == 0:
            metrics = self.dev_evaluator.evaluate(self.trainer.model)
            self.trainer.log({f"eval_{name}": value for name, value in metrics.items()})
            self.context.progress.log(_format_dev_metrics(state.global_step // self.steps_per_epoch, metrics))
            if state.best_metric is None or metrics["nDCG@10"] > state.best_metric:
                state.best_metric, state.best_global_step = metrics["nDCG@10"], state.global_step

    def on_save(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        complete_checkpoint(self.context.scratch_dir, state.global_step, state.best_global_step)


class _ScheduleCallback(TrainerCallback):  # type: ignore[misc]
    """Orders logs, checkpoints and an early end, in every process at the same step.

    It comes after `_MonitorCallback`: when that one logs the dev metrics, the trainer withdraws the order of a log.
    """

    def __init__(self, job: TrainingJob, context: StageContext, should_stop: Callable[[], bool]) -> None:
        self.steps_per_epoch = job.steps_per_epoch
        self.context = context
        self.should_stop = should_stop

    def on_step_end(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        # the loss is averaged since the last log: with a log after each step it is the same after any resume
        control.should_log = True
        if distributed.is_any_true(self.should_stop()):
            control.should_save = control.should_training_stop = True
            self.context.progress.log(f"interrupted after step {state.global_step} of {state.max_steps}")
        elif state.global_step % self.steps_per_epoch == 0 or state.global_step % CHECKPOINT_STEPS == 0:
            control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any], **unused: Any) -> None:
        # the loss is the mean over the processes, so all of them stop
        if not math.isfinite(logs.get("loss", 0.0)):
            control.should_training_stop, control.should_save = True, False


def _build_arguments(model: "CrossEncoder", params: Params, learning_rate: float, scratch: Path) -> Any:
    cpu = model.device.type == "cpu"
    if not cpu:
        # two runs on a GPU give the same only if this is set before the first matrix product
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    arguments = CrossEncoderTrainingArguments(
        output_dir=str(scratch),
        num_train_epochs=1,
        per_device_train_batch_size=params.batch_size,
        learning_rate=learning_rate,
        warmup_steps=params.warmup_ratio,
        weight_decay=params.weight_decay,
        seed=params.seed,
        use_cpu=cpu,
        dataloader_pin_memory=not cpu,
        logging_strategy="no",  # `_ScheduleCallback` orders logs and checkpoints
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        # otherwise DDP reorders its buckets of gradients after the first step, and a resumed run adds in another order
        ddp_find_unused_parameters=True,
    )
    # with more, the trainer would split the groups' texts over all GPUs that it sees
    arguments._n_gpu = min(1, arguments.n_gpu)
    arguments.mixed_precision = "no"  # or accelerate's configuration would come on top of ours
    return arguments


def _format_dev_metrics(epoch: int, metrics: Mapping[str, float]) -> str:
    return f"epoch {epoch}, dev: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items() if "@" in name)
