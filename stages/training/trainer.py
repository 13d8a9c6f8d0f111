"""The training loop: sentence-transformers' trainer over groups, with dev figures an epoch and checkpoints that hold.

The groups of all epochs stand one after another in one data set that is read in order. So training is resumed from a
step by skipping what came before it, and ends with the same bytes as if it had never stopped. Of several processes each
reads all of it, and computes on its part of each step: the steps are those of one process.
"""

import math
import os
import tempfile
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

from stages.core.device import quiet
from stages.core.schemas import Tools
from stages.reranking.cross_encoder import load_reranker, save_reranker
from stages.training import distributed
from stages.training.checkpoints import newest_checkpoint, seal, step_of
from stages.training.dataset import Batches, Curriculum, Texts, dataset
from stages.training.examples import Group
from stages.training.losses import GroupLoss

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

    from stages.training.stage import Params

CHECKPOINT_STEPS = 50
"""Steps that a kill may cost."""
LOG_STEPS = 10

Measure = Callable[["CrossEncoder"], dict[str, float]]


class History(NamedTuple):
    """What training said of itself."""

    steps: int
    """Steps that were taken, over all epochs."""
    epochs: list[dict[str, Any]]
    """{"epoch" from 1, "loss": mean over its steps or None where it was no number, the figures of `measure`...}"""
    best_epoch: int
    kept: Path | None
    """The folder of the best epoch's weights, in the scratch folder; None where no epoch came through."""


def fit(
    model: "CrossEncoder",
    epochs: Sequence[Sequence[Group]],
    queries: Mapping[str, str],
    texts: Mapping[str, str],
    params: "Params",
    learning_rate: float,
    measure: Measure | None,
    tools: Tools,
) -> History:
    """Train `model` on the groups of `epochs` (each of one length), from the last checkpoint in the scratch folder.

    `measure` gives the dev figures, "nDCG@10" among them, after each epoch; the weights of the epoch where that is
    highest (the first of equals) are kept, without `measure` the last. A loss that is no number ends the training.
    Where a launcher started several processes, the others are called to `train_along`.
    """
    distributed.check(params.device)
    curriculum = Curriculum(epochs, queries, texts, params, learning_rate)
    checkpoint = newest_checkpoint(tools.scratch)
    if checkpoint:
        tools.progress.say(f"training was stopped before; it goes on after step {step_of(checkpoint)}")
    if distributed.size() == 1:
        distributed.alone()
    else:
        idle = distributed.size() - params.batch_size
        rest = f"; {idle} of them have none, because batch_size is {params.batch_size}" if idle > 0 else ""
        tools.progress.say(f"{distributed.size()} processes share out the groups of each step{rest}")
        distributed.call()
        save_reranker(model, tools.scratch / "base")
        with distributed.together():
            distributed.broadcast((curriculum, model.device.type))
            distributed.share([tools.scratch / "base", *([checkpoint] if checkpoint else [])], tools.scratch)
    watch = _Watch(curriculum.steps, measure, tools)
    watch.trainer = _Trainer(
        model, curriculum, tools.scratch, [watch, TensorBoardCallback(SummaryWriter(str(tools.logs)))]
    )
    watch.trainer.go(checkpoint)
    state = watch.trainer.state
    best = tools.scratch / f"checkpoint-{state.best_global_step}"
    kept = best if best.exists() else newest_checkpoint(tools.scratch)
    history = epochs_of(state.log_history, curriculum.steps)
    return History(state.global_step, history, step_of(kept) // curriculum.steps if kept else 0, kept)


def train_along() -> None:
    """Take part in the `fit` that rank 0 called to. What must be written here is dropped at the end."""
    with tempfile.TemporaryDirectory(prefix="prep-") as folder:
        scratch = Path(folder)
        with distributed.together():
            curriculum, kind = distributed.broadcast()
            base, *checkpoint = distributed.share((), scratch)
        params = curriculum.params
        model = load_reranker(base, distributed.own_device(kind), params.max_length, params.dropout, params.seed)
        if params.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        _Trainer(model, curriculum, scratch, []).go(*checkpoint)


def epochs_of(log: Sequence[Mapping[str, Any]], steps: int) -> list[dict[str, Any]]:
    """The history of each epoch of `steps` steps from the trainer's log.

    An entry's "loss" is the mean over the steps since the entry before it; each epoch ends with an entry.
    """
    epochs: dict[int, dict[str, Any]] = {}
    sums: dict[int, float] = {}
    before = 0
    for entry in log:
        epoch = -(-entry["step"] // steps)
        known = epochs.setdefault(epoch, {"epoch": epoch, "loss": None})
        # sorted, because a log that went through a checkpoint is
        known.update((name[5:], value) for name, value in sorted(entry.items()) if name.startswith("eval_"))
        if "loss" in entry:
            sums[epoch] = sums.get(epoch, 0.0) + entry["loss"] * (entry["step"] - before)
            before = entry["step"]
    for epoch, total in sums.items():
        loss = total / (min(before, epoch * steps) - (epoch - 1) * steps)
        epochs[epoch]["loss"] = loss if math.isfinite(loss) else None
    return [epochs[epoch] for epoch in sorted(epochs)]


class _Trainer(CrossEncoderTrainer):  # type: ignore[misc]
    """sentence-transformers' trainer without the model card, which asks the hub and holds times, and in our order."""

    def __init__(
        self, model: "CrossEncoder", curriculum: Curriculum, scratch: Path, callbacks: Sequence[TrainerCallback]
    ) -> None:
        params, rank = curriculum.params, distributed.rank()
        with quiet():
            super().__init__(
                model,
                _arguments(model, params, curriculum.learning_rate, scratch),
                train_dataset=dataset(curriculum.epochs),
                data_collator=Texts(curriculum.queries, curriculum.texts),
                loss=GroupLoss(model, params.loss, params.dtype, rank, distributed.size()),
                callbacks=[*callbacks, _Pace(curriculum.steps)],
            )
        self.remove_callback(PrinterCallback)
        self.batches = curriculum.batches
        if rank:  # dropout must not strike out the same in every process
            torch.manual_seed(params.seed + rank)

    def go(self, checkpoint: Path | None = None) -> None:
        """Train to the end, from `checkpoint` where there is one."""
        with quiet(), distributed.together(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)  # not ours to mend
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        return

    def get_batch_sampler(self, *args: Any, **kwargs: Any) -> Batches:
        return self.batches

    def get_train_dataloader(self) -> DataLoader:
        # as the trainer makes it for one process: accelerate would cut the data set up, and `GroupLoss` cuts the steps
        loader = self._build_dataloader(self.train_dataset, self.args.train_batch_size, dataset_kind="train")
        return prepare_data_loader(loader, self.args.device, num_processes=1, process_index=0)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        save_reranker(self.model, Path(output_dir or self.args.output_dir))

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if distributed.size() > 1:  # rank 0 writes them all: others may not see its disk, and it seals what is there
            own = (Path(output_dir) / f"rng_state_{distributed.rank()}.pth").read_bytes()
            for rank, state in enumerate(distributed.gather(own)):
                (Path(output_dir) / f"rng_state_{rank}.pth").write_bytes(state)


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Says how far training is, takes the dev figures after each epoch, and seals the checkpoints."""

    trainer: BaseTrainer

    def __init__(self, steps: int, measure: Measure | None, tools: Tools) -> None:
        self.steps = steps
        self.measure = measure
        self.tools = tools

    def on_step_end(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        self.tools.progress.advance(state.global_step, state.max_steps, "steps")
        if self.measure and state.global_step % self.steps == 0:
            figures = self.measure(self.trainer.model)
            self.trainer.log({f"eval_{name}": value for name, value in figures.items()})
            self.tools.progress.say(_sentence(state.global_step // self.steps, figures))
            if state.best_metric is None or figures["nDCG@10"] > state.best_metric:
                state.best_metric, state.best_global_step = figures["nDCG@10"], state.global_step

    def on_save(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        seal(self.tools.scratch, state.global_step, state.best_global_step)


class _Pace(TrainerCallback):  # type: ignore[misc]
    """Orders logs, checkpoints and an early end, in every process at the same step. Stands after `_Watch`, whose own
    log withdraws the order for one."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        if state.global_step % self.steps == 0 or state.global_step % CHECKPOINT_STEPS == 0:
            # the loss is averaged since the last log: a log at every checkpoint makes it the same after a resume
            control.should_log = control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any], **unused: Any) -> None:
        # the mean over the processes, so they agree
        if not math.isfinite(logs.get("loss", 0.0)):
            control.should_training_stop, control.should_save = True, False


def _arguments(model: "CrossEncoder", params: "Params", learning_rate: float, scratch: Path) -> Any:
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
        warmup_steps=params.warmup,
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


def _sentence(epoch: int, figures: Mapping[str, float]) -> str:
    return f"epoch {epoch}, dev: " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items() if "@" in name)
