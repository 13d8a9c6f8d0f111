"""The training loop: sentence-transformers' trainer over groups, with dev figures an epoch and checkpoints that hold.

The groups of all epochs stand one after another in one data set that is read in order. So training is resumed from a
step by skipping what came before it, and ends with the same bytes as if it had never stopped. Of several processes each
reads all of it, and computes on its part of each step: the steps are those of one process.
"""

import math
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.data_loader import prepare_data_loader
from sentence_transformers.base.trainer import BaseTrainer
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from transformers import PrinterCallback, TrainerCallback
from transformers.integrations import TensorBoardCallback

from stages.core.context import StageContext
from stages.core.library_logging import silence_huggingface_logging
from stages.reranking.cross_encoder import load_reranker, save_reranker
from stages.training import distributed
from stages.training.checkpoints import complete_checkpoint, find_last_checkpoint, parse_checkpoint_step
from stages.training.dataset import EpochBatchSampler, GroupCollator, TrainingData, build_dataset
from stages.training.examples import TrainingGroup
from stages.training.losses import GroupLoss
from stages.training.params import DevEvaluation, Params, TrainingHistory

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

CHECKPOINT_STEPS = 50
"""Steps that a kill may cost."""
LOG_STEPS = 10


def train_on_groups(
    model: "CrossEncoder",
    epoch_groups: Sequence[Sequence[TrainingGroup]],
    queries: Mapping[str, str],
    texts: Mapping[str, str],
    params: Params,
    learning_rate: float,
    evaluate_dev: DevEvaluation | None,
    context: StageContext,
) -> TrainingHistory:
    """Train `model` on the groups of `epoch_groups` (each of one length), from the last checkpoint in the scratch
    folder.

    `evaluate_dev` gives the dev figures, "nDCG@10" among them, after each epoch; the weights of the epoch where that is
    highest (the first of equals) are kept, without `evaluate_dev` the last. A loss that is no number ends the training.
    Where a launcher started several processes, the others are called to `train_as_worker`.
    """
    distributed.check_launch(params.device)
    training_data = TrainingData(epoch_groups, queries, texts, params, learning_rate)
    checkpoint = find_last_checkpoint(context.scratch_dir)
    if checkpoint:
        context.progress.log(f"training was stopped before; it goes on after step {parse_checkpoint_step(checkpoint)}")
    if distributed.get_world_size() == 1:
        distributed.clear_launcher_variables()
    else:
        n_idle = distributed.get_world_size() - params.batch_size
        rest = f"; {n_idle} of them have none, because batch_size is {params.batch_size}" if n_idle > 0 else ""
        context.progress.log(f"{distributed.get_world_size()} processes share out the groups of each step{rest}")
        distributed.start_training()
        save_reranker(model, context.scratch_dir / "base")
        with distributed.convert_peer_errors():
            distributed.broadcast_object((training_data, model.device.type))
            distributed.share_folders(
                [context.scratch_dir / "base", *([checkpoint] if checkpoint else [])], context.scratch_dir
            )
    monitor = _MonitorCallback(training_data.steps_per_epoch, evaluate_dev, context)
    monitor.trainer = _GroupTrainer(
        model, training_data, context.scratch_dir, [monitor, TensorBoardCallback(SummaryWriter(str(context.logs_dir)))]
    )
    monitor.trainer.train_from(checkpoint)
    state = monitor.trainer.state
    best_folder = context.scratch_dir / f"checkpoint-{state.best_global_step}"
    best_checkpoint = best_folder if best_folder.exists() else find_last_checkpoint(context.scratch_dir)
    epoch_records = summarise_log_history(state.log_history, training_data.steps_per_epoch)
    return TrainingHistory(
        state.global_step,
        epoch_records,
        parse_checkpoint_step(best_checkpoint) // training_data.steps_per_epoch if best_checkpoint else 0,
        best_checkpoint,
    )


def train_as_worker() -> None:
    """Take part in the `train_on_groups` that rank 0 called to. What must be written here is dropped at the end."""
    with tempfile.TemporaryDirectory(prefix="prep-") as folder:
        scratch = Path(folder)
        with distributed.convert_peer_errors():
            training_data, device_type = distributed.broadcast_object()
            base, *checkpoint = distributed.share_folders((), scratch)
        params = training_data.params
        model = load_reranker(
            base, distributed.pick_local_device(device_type), params.max_length, params.dropout, params.seed
        )
        if params.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        _GroupTrainer(model, training_data, scratch, []).train_from(*checkpoint)


def summarise_log_history(log_history: Sequence[Mapping[str, Any]], steps_per_epoch: int) -> list[dict[str, Any]]:
    """The history of each epoch of `steps_per_epoch` steps from the trainer's log.

    An entry's "loss" is the mean over the steps since the entry before it; each epoch ends with an entry.
    """
    epoch_records: dict[int, dict[str, Any]] = {}
    loss_sums: dict[int, float] = {}
    last_step = 0
    for entry in log_history:
        epoch = -(-entry["step"] // steps_per_epoch)
        record = epoch_records.setdefault(epoch, {"epoch": epoch, "loss": None})
        # sorted, because a log that went through a checkpoint is
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
        self, model: "CrossEncoder", training_data: TrainingData, scratch: Path, callbacks: Sequence[TrainerCallback]
    ) -> None:
        params, rank = training_data.params, distributed.get_rank()
        with silence_huggingface_logging():
            super().__init__(
                model,
                _build_arguments(model, params, training_data.learning_rate, scratch),
                train_dataset=build_dataset(training_data.epoch_groups),
                data_collator=GroupCollator(training_data.queries, training_data.texts),
                loss=GroupLoss(model, params.loss, params.dtype, rank, distributed.get_world_size()),
                callbacks=[*callbacks, _ScheduleCallback(training_data.steps_per_epoch)],
            )
        self.remove_callback(PrinterCallback)
        self.group_batch_sampler = training_data.batch_sampler
        if rank:  # dropout must not strike out the same in every process
            torch.manual_seed(params.seed + rank)

    def train_from(self, checkpoint: Path | None = None) -> None:
        """Train to the end, from `checkpoint` where there is one."""
        with silence_huggingface_logging(), distributed.convert_peer_errors(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)  # not ours to mend
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        return

    def get_batch_sampler(self, *args: Any, **kwargs: Any) -> EpochBatchSampler:
        return self.group_batch_sampler

    def get_train_dataloader(self) -> DataLoader:
        # as the trainer makes it for one process: accelerate would cut the data set up, and `GroupLoss` cuts the steps
        loader = self._build_dataloader(self.train_dataset, self.args.train_batch_size, dataset_kind="train")
        return prepare_data_loader(loader, self.args.device, num_processes=1, process_index=0)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        save_reranker(self.model, Path(output_dir or self.args.output_dir))

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if (
            distributed.get_world_size() > 1
        ):  # rank 0 writes them all: others may not see its disk, and it seals what is there
            own = (Path(output_dir) / f"rng_state_{distributed.get_rank()}.pth").read_bytes()
            for rank, state in enumerate(distributed.gather_objects(own)):
                (Path(output_dir) / f"rng_state_{rank}.pth").write_bytes(state)


class _MonitorCallback(TrainerCallback):  # type: ignore[misc]
    """Says how far training is, takes the dev figures after each epoch, and seals the checkpoints."""

    trainer: BaseTrainer

    def __init__(self, steps_per_epoch: int, evaluate_dev: DevEvaluation | None, context: StageContext) -> None:
        self.steps_per_epoch = steps_per_epoch
        self.evaluate_dev = evaluate_dev
        self.context = context

    def on_step_end(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        self.context.progress.advance(state.global_step, state.max_steps, "steps")
        if self.evaluate_dev and state.global_step % self.steps_per_epoch == 0:
            figures = self.evaluate_dev(self.trainer.model)
            self.trainer.log({f"eval_{name}": value for name, value in figures.items()})
            self.context.progress.log(_format_dev_metrics(state.global_step // self.steps_per_epoch, figures))
            if state.best_metric is None or figures["nDCG@10"] > state.best_metric:
                state.best_metric, state.best_global_step = figures["nDCG@10"], state.global_step

    def on_save(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        complete_checkpoint(self.context.scratch_dir, state.global_step, state.best_global_step)


class _ScheduleCallback(TrainerCallback):  # type: ignore[misc]
    """Orders logs, checkpoints and an early end, in every process at the same step. Stands after `_MonitorCallback`,
    whose own
    log withdraws the order for one."""

    def __init__(self, steps_per_epoch: int) -> None:
        self.steps_per_epoch = steps_per_epoch

    def on_step_end(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        if state.global_step % self.steps_per_epoch == 0 or state.global_step % CHECKPOINT_STEPS == 0:
            # the loss is averaged since the last log: a log at every checkpoint makes it the same after a resume
            control.should_log = control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any], **unused: Any) -> None:
        # the mean over the processes, so they agree
        if not math.isfinite(logs.get("loss", 0.0)):
            control.should_training_stop, control.should_save = True, False


def _build_arguments(model: "CrossEncoder", params: Params, learning_rate: float, scratch: Path) -> Any:
    cpu = model.device.type == "cpu"
    if not cpu:
        # to be set before the first matrix product, or two runs on a GPU differ
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
        logging_steps=LOG_STEPS,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        # with the buckets of gradients that DDP would order anew, a resumed run could add them up in another order
        ddp_find_unused_parameters=True,
    )
    # with more, the trainer would split the groups' texts over every GPU it sees
    arguments._n_gpu = min(1, arguments.n_gpu)
    arguments.mixed_precision = "no"  # what accelerate is configured for would come on top of our own
    return arguments


def _format_dev_metrics(epoch: int, figures: Mapping[str, float]) -> str:
    return f"epoch {epoch}, dev: " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items() if "@" in name)
