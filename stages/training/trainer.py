"""The training loop: sentence-transformers' trainer over groups, with dev figures an epoch and checkpoints that hold.

The groups of all epochs stand one after another in one data set that is read in order. So training is resumed from a
step by skipping what came before it, and ends with the same bytes as if it had never stopped.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from datasets import Dataset, Features, List, Value
from sentence_transformers.base.trainer import BaseTrainer
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.data_collator import CrossEncoderDataCollator
from torch.utils.data import BatchSampler
from torch.utils.tensorboard import SummaryWriter
from transformers import PrinterCallback, TrainerCallback
from transformers.integrations import TensorBoardCallback

from stages.contracts import Tools
from stages.device import quiet
from stages.training.checkpoints import newest_checkpoint, seal, step_of
from stages.training.groups import Group
from stages.training.losses import GroupLoss
from stages.training.reranker import save_reranker

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

    from stages.training.train import Params

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
    """
    batches = Batches([len(groups) for groups in epochs], params.batch_size)
    steps = len(batches) // len(epochs)
    with quiet():
        watch = _Watch(steps, measure, tools)
        trainer = _Trainer(
            model,
            _arguments(model, params, learning_rate, tools.scratch),
            train_dataset=_dataset(epochs),
            data_collator=_Texts(queries, texts),
            loss=GroupLoss(model, params.loss, params.dtype),
            callbacks=[watch, TensorBoardCallback(SummaryWriter(str(tools.logs)))],
        )
        trainer.batches, watch.trainer = batches, trainer
        trainer.remove_callback(PrinterCallback)
        checkpoint = newest_checkpoint(tools.scratch)
        if checkpoint:
            tools.progress.say(f"training was stopped before; it goes on after step {step_of(checkpoint)}")
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    state = trainer.state
    best = tools.scratch / f"checkpoint-{state.best_global_step}"
    kept = best if best.exists() else newest_checkpoint(tools.scratch)
    return History(state.global_step, epochs_of(state.log_history, steps), step_of(kept) // steps if kept else 0, kept)


class Batches(BatchSampler):  # type: ignore[misc]
    """Rows of the data set in order, `batch_size` at a time; no batch spans two epochs (given by their lengths)."""

    def __init__(self, epochs: Sequence[int], batch_size: int) -> None:
        self.epochs = epochs
        self.batch_size = batch_size
        self.drop_last = False

    def __iter__(self) -> Iterator[list[int]]:
        start = 0
        for rows in self.epochs:
            for first in range(0, rows, self.batch_size):
                yield list(range(start + first, start + min(first + self.batch_size, rows)))
            start += rows

    def __len__(self) -> int:
        return sum(-(-rows // self.batch_size) for rows in self.epochs)


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

    batches: Batches

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        return

    def get_batch_sampler(self, *args: Any, **kwargs: Any) -> Batches:
        return self.batches

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        save_reranker(self.model, Path(output_dir or self.args.output_dir))


class _Texts(CrossEncoderDataCollator):  # type: ignore[misc]
    """Rows of ids to a batch of texts: each text is held once, however often it is drawn."""

    def __init__(self, queries: Mapping[str, str], texts: Mapping[str, str]) -> None:
        super().__init__(preprocess_fn=None)
        self.queries = queries
        self.texts = texts

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = {
            "query": [self.queries[row["query"]] for row in rows],
            "documents": [[self.texts[doc_id] for doc_id in row["documents"]] for row in rows],
        }
        if any(row["weight"] for row in rows):
            batch["weight"] = [row["weight"] or [1.0] * len(row["documents"]) for row in rows]
        # a batch is of one epoch, so it has labels throughout or nowhere
        return batch | ({"label": [row["label"] for row in rows]} if rows[0]["label"] else {})


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Says how far training is, takes the dev figures after each epoch, and orders and seals the checkpoints."""

    trainer: BaseTrainer

    def __init__(self, steps: int, measure: Measure | None, tools: Tools) -> None:
        self.steps = steps
        self.measure = measure
        self.tools = tools

    def on_step_end(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        self.tools.progress.advance(state.global_step, state.max_steps, "steps")
        ended = state.global_step % self.steps == 0
        if ended and self.measure:
            figures = self.measure(self.trainer.model)
            self.trainer.log({f"eval_{name}": value for name, value in figures.items()})
            self.tools.progress.say(_sentence(state.global_step // self.steps, figures))
            if state.best_metric is None or figures["nDCG@10"] > state.best_metric:
                state.best_metric, state.best_global_step = figures["nDCG@10"], state.global_step
        if ended or state.global_step % CHECKPOINT_STEPS == 0:
            # the loss is averaged since the last log: a log at every checkpoint makes it the same after a resume
            control.should_log = control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any], **unused: Any) -> None:
        if not math.isfinite(logs.get("loss", 0.0)):
            control.should_training_stop, control.should_save = True, False

    def on_save(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        seal(self.tools.scratch, state.global_step, state.best_global_step)


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
    )
    # with more, the trainer would split the groups' texts over every GPU it sees
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _dataset(epochs: Sequence[Sequence[Group]]) -> Any:
    """One row a group: the ids of its query and of its documents, and the documents' labels and weights."""
    rows = [group for groups in epochs for group in groups]
    columns = {
        "query": [group.query_id for group in rows],
        "documents": [list(group.documents) for group in rows],
        "label": [list(group.labels) for group in rows],
        "weight": [list(group.weights) for group in rows],
    }
    features = {"query": Value("string"), "documents": List(Value("string"))}
    features |= dict.fromkeys(("label", "weight"), List(Value("float64")))
    return Dataset.from_dict(columns, Features(features))


def _sentence(epoch: int, figures: Mapping[str, float]) -> str:
    return f"epoch {epoch}, dev: " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items() if "@" in name)
