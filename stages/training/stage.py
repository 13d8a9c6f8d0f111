"""Step `train`: a cross-encoder learns to rank each query's positives above its mined negatives.

Each epoch samples positives and negatives from the mined ones, and is followed by an evaluation on dev queries.
The weights of the best epoch are the result.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.core.context import StageContext, Summary
from stages.core.model_files import model_digest, model_display_name, resolve_model
from stages.core.schemas import read_document_texts
from stages.evaluation.candidate_lists import build_candidate_lists
from stages.reranking.cross_encoder import has_head, load_reranker, save_reranker
from stages.training.collapse import compute_chance_loss, compute_distillation_chance_loss, detect_training_collapse
from stages.training.dev_evaluation import DEV_METRICS, DevEvaluator, build_dev_evaluator
from stages.training.distillation import build_distillation_groups
from stages.training.examples import MinedQuery, TrainingGroup, build_epoch_groups, count_pairs, read_mined_queries
from stages.training.job import TrainingJob
from stages.training.params import Params as Params
from stages.training.params import TrainingHistory

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

VERSION = 9


def key_extras(params: Params) -> dict[str, str]:
    """The digest of the base model's files."""
    return {"base": model_digest(resolve_model(params.base))}


def run(params: Params, inputs: Mapping[str, Path], out: Path, context: StageContext) -> Summary:
    """Write reranker/ (a Hugging Face model folder) and training.json. The summary names a collapse."""
    mined_queries, documents, n_skipped = read_mined_queries(inputs["mined"], params.max_queries, params.seed)
    if n_skipped:
        context.progress.log(f"{n_skipped} queries have no negative (or no positive): they are not trained on")
    dev_lists = build_candidate_lists(
        inputs,
        ("dev",),
        top_k=params.dev_top_k,
        max_queries=params.max_dev_queries,
        seed=params.seed,
        include_forced=False,
    )
    dev_evaluator = None
    if dev_lists.lists.is_empty():
        context.progress.log("there are no dev queries to choose the best epoch by: the last epoch's weights are kept")
    else:
        dev_evaluator = build_dev_evaluator(dev_lists, inputs["corpus"], params.dtype)
    result = train_reranker(
        params, mined_queries, documents, inputs["candidates"], inputs["corpus"], dev_evaluator, context
    )
    save_reranker(result.model, out / "reranker")
    history = result.history
    report = {
        # the base model's name without a path: evaluate reads this file, and a moved model is the same model
        "base_model": model_display_name(params.base),
        "base_model_digest": model_digest(resolve_model(params.base)),
        "has_new_head": result.has_new_head,
        "seed": params.seed,
        "learning_rate": result.learning_rate,
        "parameters": params.model_dump(exclude=params.fields_with_mark("unkeyed")),
        "n_queries": len(mined_queries),
        "n_queries_skipped": n_skipped,
        "groups_per_epoch": len(result.epoch_groups[-1]),
        "n_pairs": count_pairs(result.epoch_groups),
        "n_steps": history.n_steps,
        "n_distill_epochs": result.n_distill_epochs,
        "chance_loss": result.chance_losses[-1],
        "epochs": history.epoch_records,
        "best_epoch": history.best_epoch,
        "n_dev_queries": dev_lists.queries.height,
        "collapse_reason": detect_training_collapse(history, result.chance_losses, result.n_distill_epochs),
    }
    (out / "training.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return summarise_training(report)


@dataclass(frozen=True)
class TrainingResult:
    """A trained model, what it was trained on, and the history of the training."""

    model: "CrossEncoder"
    has_new_head: bool
    """The base model had no ranking head."""
    learning_rate: float
    epoch_groups: list[list[TrainingGroup]]
    n_distill_epochs: int
    """How many of `epoch_groups` are distillation: the first ones."""
    chance_losses: list[float]
    """Each epoch's loss of a model that gives all documents the same score."""
    history: TrainingHistory


def train_reranker(
    params: Params,
    mined_queries: Sequence[MinedQuery],
    documents: Mapping[str, str],
    candidates_path: Path,
    corpus_path: Path,
    dev_evaluator: DevEvaluator | None,
    context: StageContext,
) -> TrainingResult:
    """Train on `mined_queries`, whose documents' texts are given by id; resumes as `launcher.train_on_groups` does.

    Distillation takes the retriever's scores from `candidates_path`, and the texts of the documents from `corpus_path`.
    """
    has_new_head = not has_head(resolve_model(params.base))
    n_distill_epochs = params.resolve_distill_epochs(has_new_head)
    epoch_groups = build_training_epochs(params, mined_queries, candidates_path, n_distill_epochs)
    if n_distill_epochs:
        reason = "the base model has no ranking head: " if has_new_head else ""
        context.progress.log(
            f"{reason}{_count_epochs(n_distill_epochs)} of distillation (the model learns the retriever's scores) + "
            f"{_count_epochs(params.epochs)} of training"
        )
        distillation_groups = chain.from_iterable(epoch_groups[:n_distill_epochs])
        doc_ids = {doc_id for group in distillation_groups for doc_id in group.documents}
        documents = {**documents, **read_document_texts(corpus_path, doc_ids)}
    job = TrainingJob(
        epoch_groups,
        queries={query.query_id: query.query for query in mined_queries},
        documents=documents,
        params=params,
        learning_rate=params.resolve_learning_rate(has_new_head),
        dev_evaluator=dev_evaluator,
    )
    model, history = train_job(job, context)
    if history.best_epoch <= n_distill_epochs and n_distill_epochs:
        context.progress.log("training lowered the dev metrics: the weights after distillation are kept")
    chance_losses = [
        *map(compute_distillation_chance_loss, epoch_groups[:n_distill_epochs]),
        *[_compute_last_epoch_chance_loss(params, epoch_groups[-1])] * params.epochs,
    ]
    return TrainingResult(
        model, has_new_head, job.learning_rate, epoch_groups, n_distill_epochs, chance_losses, history
    )


def build_training_epochs(
    params: Params, mined_queries: Sequence[MinedQuery], candidates_path: Path, n_distill_epochs: int
) -> list[list[TrainingGroup]]:
    """The groups of all epochs in the order of training: those of distillation first."""
    return [
        *build_distillation_groups(
            candidates_path,
            mined_queries,
            n_distill_epochs,
            params.num_positives,
            1 + params.num_negatives,
            params.seed,
        ),
        *(
            build_epoch_groups(mined_queries, epoch, params.num_positives, params.num_negatives, params.seed)
            for epoch in range(params.epochs)
        ),
    ]


def train_job(job: TrainingJob, context: StageContext) -> tuple["CrossEncoder", TrainingHistory]:
    """The model with the weights of the best epoch (the base model's if no epoch was completed), and the history."""
    from stages.training.launcher import train_on_groups

    params = job.params
    history = train_on_groups(job, context)
    folder = history.best_checkpoint or resolve_model(params.base)
    return load_reranker(folder, params.device, params.max_length, seed=params.seed), history


def summarise_training(report: Mapping[str, Any]) -> Summary:
    """What the terminal shows of training.json."""
    last_record = report["epochs"][-1] if report["epochs"] else {}
    best_record: Mapping[str, Any] = next((e for e in report["epochs"] if e["epoch"] == report["best_epoch"]), {})
    names = ("n_queries", "n_queries_skipped", "groups_per_epoch", "n_steps", "best_epoch", "n_dev_queries")
    return {name: report[name] for name in names} | {
        "loss": last_record.get("loss"),
        "chance_loss": report["chance_loss"],
        **{f"dev_{name}": best_record[name] for name in DEV_METRICS if name in best_record},
        "collapse_reason": report["collapse_reason"],
    }


def _compute_last_epoch_chance_loss(params: Params, groups: Sequence[TrainingGroup]) -> float:
    weights = [group.effective_weights for group in groups]
    return compute_chance_loss(
        params.loss, [weights[row : row + params.batch_size] for row in range(0, len(weights), params.batch_size)]
    )


def _count_epochs(count: int) -> str:
    return f"{count} epoch{'' if count == 1 else 's'}"
