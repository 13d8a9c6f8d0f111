"""Train: a cross-encoder learns to put each query's positive above its mined negatives.

Each epoch draws positives and negatives anew from what was mined (seeded), and is followed by the reranker's figures
on a sample of dev queries; the best epoch's weights are the result.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from stages.core.context import StageContext, Summary
from stages.core.device import Dtype
from stages.core.model_files import model_digest, model_display_name, resolve_model
from stages.core.schemas import scan_documents
from stages.evaluation.candidate_lists import CandidateLists, build_candidate_lists
from stages.evaluation.metrics import Evaluator, average_metrics
from stages.reranking.cross_encoder import has_head, load_reranker, save_reranker, score_pairs
from stages.training.distillation import build_distillation_groups, compute_distillation_chance_loss
from stages.training.examples import MinedQuery, TrainingGroup, build_epoch_groups, read_mined_queries
from stages.training.params import DevEvaluation, TrainingHistory
from stages.training.params import Params as Params

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

VERSION = 8

DEV_METRICS = ("nDCG@10", "MRR@10")
CHANCE_LOSS_MARGIN = 0.005
"""A kept epoch whose loss is within this share of chance's has learned nothing."""
MIN_SCORE_RANGE = 1e-4
"""Logits of all candidates of a query that lie closer together than this are alike."""


def key_extras(params: Params) -> dict[str, str]:
    """The digest of the base model's files."""
    return {"base": model_digest(resolve_model(params.base))}


def run(params: Params, inputs: Mapping[str, Path], out: Path, context: StageContext) -> Summary:
    """Write reranker/ (a Hugging Face model folder) and training.json; a collapse is named in both of the summaries."""
    mined_queries, texts, n_skipped = read_mined_queries(inputs["mined"], params.max_queries, params.seed)
    if n_skipped:
        context.progress.log(f"{n_skipped} queries have no negative (or no positive) and are not trained on")
    dev_lists = build_candidate_lists(
        inputs,
        ("dev",),
        top_k=params.dev_top_k,
        max_queries=params.max_dev_queries,
        seed=params.seed,
        include_forced=False,
    )
    if dev_lists.lists.is_empty():
        context.progress.log("there is no dev query to measure the epochs on: the last epoch's weights are kept")
    evaluate_dev = (
        None if dev_lists.lists.is_empty() else build_dev_evaluation(dev_lists, inputs["corpus"], params.dtype)
    )
    result = train_reranker(params, mined_queries, texts, inputs["candidates"], inputs["corpus"], evaluate_dev, context)
    save_reranker(result.model, out / "reranker")
    history = result.history
    report = {
        # no path: evaluate is made again where these bytes change, and a moved model is the same model
        "base_model": model_display_name(params.base),
        "base_model_digest": model_digest(resolve_model(params.base)),
        "has_new_head": result.has_new_head,
        "seed": params.seed,
        "learning_rate": result.learning_rate,
        "parameters": params.model_dump(exclude=params.fields_with_mark("unkeyed")),
        "n_queries": len(mined_queries),
        "n_queries_skipped": n_skipped,
        "groups_per_epoch": len(result.epoch_groups[-1]),
        "n_pairs": count_training_pairs(result.epoch_groups),
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
    """A trained model, what it was taught, and how that went."""

    model: "CrossEncoder"
    has_new_head: bool
    """It began with a new head."""
    learning_rate: float
    epoch_groups: list[list[TrainingGroup]]
    n_distill_epochs: int
    """The first so many of `epoch_groups` are of the retriever's scores."""
    chance_losses: list[float]
    """The loss of each epoch if nothing were told apart."""
    history: TrainingHistory


def train_reranker(
    params: Params,
    mined_queries: Sequence[MinedQuery],
    texts: Mapping[str, str],
    candidates_path: Path,
    corpus_path: Path,
    evaluate_dev: DevEvaluation | None,
    context: StageContext,
) -> TrainingResult:
    """Train on `mined_queries`, whose documents' `texts` are given by id, from the last checkpoint in the scratch
    folder.

    The retriever's scores, where the model learns these first, come from `candidates_path`; `evaluate_dev` as for
    `trainer.train_on_groups`.
    """
    folder = resolve_model(params.base)
    has_new_head = not has_head(folder)
    epochs = [
        build_epoch_groups(mined_queries, e, params.num_positives, params.num_negatives, params.seed)
        for e in range(params.epochs)
    ]
    n_distill_epochs = params.resolve_distill_epochs(has_new_head)
    distillation_groups = build_distillation_groups(
        candidates_path, mined_queries, n_distill_epochs, params.num_positives, 1 + params.num_negatives, params.seed
    )
    if distillation_groups:
        known = "the head is new: " if has_new_head else ""
        context.progress.log(
            f"{known}epoch 1 to {n_distill_epochs} of {n_distill_epochs + params.epochs} learn the retriever's own "
            f"scores"
        )
        texts = {
            **texts,
            **read_document_texts(
                corpus_path, {d for groups in distillation_groups for group in groups for d in group.documents}
            ),
        }
    learning_rate = params.resolve_learning_rate(has_new_head)
    model = load_reranker(folder, params.device, params.max_length, params.dropout, params.seed)
    if params.gradient_checkpointing:
        model.gradient_checkpointing_enable()

    from stages.training.losses import compute_chance_loss
    from stages.training.trainer import train_on_groups

    history = train_on_groups(
        model,
        [*distillation_groups, *epochs],
        queries={query.query_id: query.query for query in mined_queries},
        texts=texts,
        params=params,
        learning_rate=learning_rate,
        evaluate_dev=evaluate_dev,
        context=context,
    )
    if distillation_groups and history.best_epoch <= n_distill_epochs:
        context.progress.log(
            "the judgements made it worse on dev: the weights that learned the retriever's scores are kept"
        )
    if history.best_checkpoint:
        model = load_reranker(history.best_checkpoint, params.device, params.max_length, seed=params.seed)
    group_weights = [group.effective_weights for group in epochs[-1]]
    chance_loss = compute_chance_loss(
        params.loss,
        [group_weights[row : row + params.batch_size] for row in range(0, len(group_weights), params.batch_size)],
    )
    chance_losses = [*map(compute_distillation_chance_loss, distillation_groups), *[chance_loss] * params.epochs]
    return TrainingResult(
        model, has_new_head, learning_rate, [*distillation_groups, *epochs], n_distill_epochs, chance_losses, history
    )


def build_dev_evaluation(dev_lists: CandidateLists, corpus_path: Path, dtype: Dtype) -> DevEvaluation:
    """A function of a model that reranks `dev_lists`: `DEV_METRICS`, and max_score_range, the widest range of a query's
    logits."""
    pairs = dev_lists.lists.join(
        dev_lists.queries.select("query_id", "query"), on="query_id", how="left", maintain_order="left"
    )
    doc_ids = dev_lists.lists["doc_id"].unique()
    documents = scan_documents(corpus_path).filter(pl.col("doc_id").is_in(doc_ids.implode())).collect()
    pairs = pairs.join(documents, on="doc_id", how="left", maintain_order="left")
    text_pairs = list(zip(pairs["query"], pairs["text"], strict=True))
    evaluator = Evaluator(dev_lists.qrels.select("query_id", "doc_id", "relevance"), DEV_METRICS)

    def measure(model: "CrossEncoder") -> dict[str, float]:
        scores = pairs.select("query_id", "doc_id", "relevance", score=pl.Series(score_pairs(model, text_pairs, dtype)))
        width = scores.group_by("query_id").agg(width=pl.col("score").max() - pl.col("score").min())
        spread = width["width"].fill_nan(0.0).max()
        return average_metrics(evaluator(scores)) | {"max_score_range": float(spread)}  # type: ignore[arg-type]

    return measure


def detect_training_collapse(
    history: TrainingHistory, chance_losses: Sequence[float], n_distill_epochs: int
) -> str | None:
    """Why the model that is kept tells nothing apart, in plain words; None where it does.

    `chance_losses`: the loss of each epoch if nothing were told apart. The first `n_distill_epochs` epochs were of the
    retriever's scores. Where one of these learned something, the loss of a later one says nothing: it began with an
    order of its own, and may well lose more than a model without any, while it gets better.
    """
    nonfinite_epochs = [epoch["epoch"] for epoch in history.epoch_records if epoch["loss"] is None]
    if nonfinite_epochs or not history.epoch_records:
        return f"the loss of epoch {nonfinite_epochs[0] if nonfinite_epochs else 1} is no number (not finite)"
    best_record = next(epoch for epoch in history.epoch_records if epoch["epoch"] == history.best_epoch)
    if best_record.get("max_score_range", 1.0) < MIN_SCORE_RANGE:
        return "it gives all candidates of a dev query the same score"
    is_at_chance = [
        epoch["loss"] > (1 - CHANCE_LOSS_MARGIN) * chance_losses[epoch["epoch"] - 1] for epoch in history.epoch_records
    ]
    if is_at_chance[best_record["epoch"] - 1] and all(is_at_chance[:n_distill_epochs]):
        return (
            f"the loss of epoch {best_record['epoch']}, the one that is kept, is {best_record['loss']:.4f}; that of "
            f"a model which "
            f"tells nothing apart is {chance_losses[best_record['epoch'] - 1]:.4f}"
        )
    return None


def read_document_texts(corpus_path: Path, doc_ids: Collection[str]) -> dict[str, str]:
    """The texts of some documents by id, as models read them."""
    wanted = pl.col("doc_id").is_in(pl.Series(list(doc_ids), dtype=pl.String).implode())
    return dict(scan_documents(corpus_path).filter(wanted).collect().iter_rows())


def count_training_pairs(epoch_groups: Sequence[Sequence[TrainingGroup]]) -> int:
    """(query, document) pairs that are trained on, over all epochs."""
    return sum(len(group.documents) for groups in epoch_groups for group in groups)


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
