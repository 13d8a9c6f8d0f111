"""Train: a cross-encoder learns to put each query's positive above its mined negatives.

Each epoch draws positives and negatives anew from what was mined (seeded), and is followed by the reranker's figures
on a sample of dev queries; the best epoch's weights are the result.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from stages.core.device import Device
from stages.core.model_files import DEFAULT_ENCODER, model_digest, model_name, resolve_model
from stages.core.params import Params as BaseParams
from stages.core.params import option
from stages.core.schemas import Summary, Tools, scan_documents
from stages.evaluation.candidate_lists import Fixed, fix_lists
from stages.evaluation.metrics import Judge, means
from stages.reranking.cross_encoder import Dtype, has_head, load_reranker, save_reranker, score_pairs
from stages.training.distillation import chance_of, lessons
from stages.training.examples import Group, Mined, epoch_groups, read_mined

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

    from stages.training.trainer import History, Measure

VERSION = 7

FIGURES = ("nDCG@10", "MRR@10")
FRESH_RATE, TRAINED_RATE = 1e-4, 2e-5
MARGIN = 0.005
"""A kept epoch whose loss is within this share of chance's has learned nothing."""
ALIKE = 1e-4
"""Logits of all candidates of a query that lie closer together than this are alike."""


class Params(BaseParams):
    """[train]"""

    # the content behind the name enters the key through `identity`
    base: str = option(
        DEFAULT_ENCODER,
        "model to start from, by folder or Hugging Face id: a cross-encoder (one output), or an encoder, whose body "
        "gets a new head",
        model=True,
        unkeyed=True,
    )
    loss: Literal["listwise", "pointwise"] = option(
        "listwise",
        "listwise: softmax cross-entropy of the positive within its group, which learns an order; pointwise: binary "
        "cross-entropy of each pair, whose scores are probabilities, but needs negatives as hard as those met in use",
    )
    positives: int = option(
        1, "positives drawn from each query an epoch, each for a group of its own; other epochs draw others", ge=1
    )
    negatives: int = option(
        7, "negatives in a group, drawn anew each epoch from those mined; a query with fewer gives all it has", ge=1
    )
    epochs: int = option(2, "times that every query is seen", ge=1)
    distill_epochs: int | None = option(
        None,
        "epochs before those, in which the model learns to score each query's candidates as the retriever does. "
        "Left out: 1 where the head is new, which a small table has too few judgements for; 0 for a "
        "cross-encoder",
        ge=0,
    )
    learning_rate: float | None = option(
        None,
        f"peak learning rate. Left out: {FRESH_RATE:g} where the head is new, {TRAINED_RATE:g} for a cross-encoder, "
        "which has less to learn and more to lose",
        gt=0,
        lt=1,
    )
    batch_size: int = option(
        8, "groups a step, over all processes where there are several; more is steadier and takes more memory", ge=1
    )
    max_length: int = option(
        256, "tokens of query and document together; the longer of the two is cut. Time and memory grow with it", ge=8
    )
    warmup: float = option(0.1, "share of the steps over which the learning rate rises to its peak", ge=0, lt=1)
    weight_decay: float = option(0.01, "AdamW's weight decay", ge=0)
    dropout: float = option(
        0.0,
        "dropout rate in all layers; 0 trains half as fast again, since attention's fast kernel has none",
        ge=0,
        lt=1,
    )
    dtype: Dtype = option(
        "auto",
        "bfloat16 or float32 for matrix products (weights stay float32); auto: bfloat16 where the device is fast at it",
    )
    max_queries: int = option(
        0, "train on at most this many queries, drawn by a hash of seed and query id; 0: all", ge=0
    )
    dev_queries: int = option(
        200, "dev queries that the figures after each epoch are taken on, drawn so too; 0: all", ge=0
    )
    dev_top_k: int = option(20, "the retriever's best documents of each dev query, which are reranked for them", ge=1)
    gradient_checkpointing: bool = option(
        False, "compute activations again in the backward pass: a third slower, in far less memory"
    )
    seed: int = option(42, "seed of the new head and of every draw", ge=0, lt=2**32)
    device: Device = option("auto", "where to train: cpu, cuda:0, ...; auto: a GPU where there is one", unkeyed=True)


def identity(params: Params) -> dict[str, str]:
    """The digest of the base model's files."""
    return {"base": model_digest(resolve_model(params.base))}


def run(params: Params, inputs: Mapping[str, Path], out: Path, tools: Tools) -> Summary:
    """Write reranker/ (a Hugging Face model folder) and training.json; a collapse is named in both of the summaries."""
    mined, texts, unusable = read_mined(inputs["mined"], params.max_queries, params.seed)
    if unusable:
        tools.progress.say(f"{unusable} queries have no negative (or no positive) and are not trained on")
    dev = fix_lists(
        inputs, ("dev",), top_k=params.dev_top_k, max_queries=params.dev_queries, seed=params.seed, forced=False
    )
    if dev.lists.is_empty():
        tools.progress.say("there is no dev query to measure the epochs on: the last epoch's weights are kept")
    measure = None if dev.lists.is_empty() else dev_measure(dev, inputs["corpus"], params.dtype)
    learned = learn(params, mined, texts, inputs["candidates"], inputs["corpus"], measure, tools)
    save_reranker(learned.model, out / "reranker")
    history = learned.history
    report = {
        # no path: evaluate is made again where these bytes change, and a moved model is the same model
        "base": model_name(params.base),
        "base_weights": model_digest(resolve_model(params.base)),
        "fresh_head": learned.fresh,
        "seed": params.seed,
        "learning_rate": learned.rate,
        "parameters": params.model_dump(exclude=params.marked("unkeyed")),
        "queries": len(mined),
        "queries_without_negatives": unusable,
        "groups_an_epoch": len(learned.epochs[-1]),
        "pairs": count_pairs(learned.epochs),
        "steps": history.steps,
        "distill_epochs": learned.taught,
        "chance_loss": learned.chances[-1],
        "epochs": history.epochs,
        "best_epoch": history.best_epoch,
        "dev_queries": dev.queries.height,
        "collapse": collapse(history, learned.chances, learned.taught),
    }
    (out / "training.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return summary(report)


@dataclass(frozen=True)
class Learned:
    """A trained model, what it was taught, and how that went."""

    model: "CrossEncoder"
    fresh: bool
    """It began with a new head."""
    rate: float
    epochs: list[list[Group]]
    taught: int
    """The first so many of `epochs` are of the retriever's scores."""
    chances: list[float]
    """The loss of each epoch if nothing were told apart."""
    history: "History"


def learn(
    params: Params,
    mined: Sequence[Mined],
    texts: Mapping[str, str],
    candidates: Path,
    corpus: Path,
    measure: "Measure | None",
    tools: Tools,
) -> Learned:
    """Train on `mined`, whose documents' `texts` are given by id, from the last checkpoint in the scratch folder.

    The retriever's scores, where the model learns these first, come from `candidates`; `measure` as for `trainer.fit`.
    """
    folder = resolve_model(params.base)
    fresh = not has_head(folder)
    epochs = [epoch_groups(mined, e, params.positives, params.negatives, params.seed) for e in range(params.epochs)]
    taught = int(fresh) if params.distill_epochs is None else params.distill_epochs
    first = lessons(candidates, mined, taught, params.positives, 1 + params.negatives, params.seed)
    if first:
        known = "the head is new: " if fresh else ""
        tools.progress.say(f"{known}epoch 1 to {taught} of {taught + params.epochs} learn the retriever's own scores")
        texts = {**texts, **texts_of(corpus, {d for groups in first for group in groups for d in group.documents})}
    rate = params.learning_rate or (FRESH_RATE if fresh else TRAINED_RATE)
    model = load_reranker(folder, params.device, params.max_length, params.dropout, params.seed)
    if params.gradient_checkpointing:
        model.gradient_checkpointing_enable()

    from stages.training.losses import chance
    from stages.training.trainer import fit

    history = fit(
        model,
        [*first, *epochs],
        queries={query.query_id: query.query for query in mined},
        texts=texts,
        params=params,
        learning_rate=rate,
        measure=measure,
        tools=tools,
    )
    if first and history.best_epoch <= taught:
        tools.progress.say(
            "the judgements made it worse on dev: the weights that learned the retriever's scores are kept"
        )
    if history.kept:
        model = load_reranker(history.kept, params.device, params.max_length, seed=params.seed)
    counts = [group.counts for group in epochs[-1]]
    guess = chance(
        params.loss, [counts[row : row + params.batch_size] for row in range(0, len(counts), params.batch_size)]
    )
    chances = [*map(chance_of, first), *[guess] * params.epochs]
    return Learned(model, fresh, rate, [*first, *epochs], taught, chances, history)


def dev_measure(dev: Fixed, corpus: Path, dtype: Dtype) -> "Measure":
    """A function of a model that reranks `dev`: gives FIGURES, and as "spread" the widest range of a query's logits."""
    pairs = dev.lists.join(dev.queries.select("query_id", "query"), on="query_id", how="left", maintain_order="left")
    wanted = dev.lists["doc_id"].unique()
    documents = scan_documents(corpus).filter(pl.col("doc_id").is_in(wanted.implode())).collect()
    pairs = pairs.join(documents, on="doc_id", how="left", maintain_order="left")
    texts = list(zip(pairs["query"], pairs["text"], strict=True))
    judge = Judge(dev.qrels.select("query_id", "doc_id", "relevance"), FIGURES)

    def measure(model: "CrossEncoder") -> dict[str, float]:
        scores = pairs.select("query_id", "doc_id", "relevance", score=pl.Series(score_pairs(model, texts, dtype)))
        width = scores.group_by("query_id").agg(width=pl.col("score").max() - pl.col("score").min())
        spread = width["width"].fill_nan(0.0).max()
        return means(judge(scores)) | {"spread": float(spread)}  # type: ignore[arg-type]

    return measure


def collapse(history: "History", chances: Sequence[float], taught: int) -> str | None:
    """Why the model that is kept tells nothing apart, in plain words; None where it does.

    `chances`: the loss of each epoch if nothing were told apart. The first `taught` epochs were of the retriever's
    scores. Where one of these learned something, the loss of a later one says nothing: it began with an order of its
    own, and may well lose more than a model without any, while it gets better.
    """
    broken = [epoch["epoch"] for epoch in history.epochs if epoch["loss"] is None]
    if broken or not history.epochs:
        return f"the loss of epoch {broken[0] if broken else 1} is no number (not finite)"
    kept = next(epoch for epoch in history.epochs if epoch["epoch"] == history.best_epoch)
    if kept.get("spread", 1.0) < ALIKE:
        return "it gives all candidates of a dev query the same score"
    nothing = [epoch["loss"] > (1 - MARGIN) * chances[epoch["epoch"] - 1] for epoch in history.epochs]
    if nothing[kept["epoch"] - 1] and all(nothing[:taught]):
        return (
            f"the loss of epoch {kept['epoch']}, the one that is kept, is {kept['loss']:.4f}; that of a model which "
            f"tells nothing apart is {chances[kept['epoch'] - 1]:.4f}"
        )
    return None


def texts_of(corpus: Path, doc_ids: Collection[str]) -> dict[str, str]:
    """The texts of some documents by id, as models read them."""
    wanted = pl.col("doc_id").is_in(pl.Series(list(doc_ids), dtype=pl.String).implode())
    return dict(scan_documents(corpus).filter(wanted).collect().iter_rows())


def count_pairs(epochs: Sequence[Sequence[Group]]) -> int:
    """(query, document) pairs that are trained on, over all epochs."""
    return sum(len(group.documents) for groups in epochs for group in groups)


def summary(report: Mapping[str, Any]) -> Summary:
    """What the terminal shows of training.json."""
    last = report["epochs"][-1] if report["epochs"] else {}
    best: Mapping[str, Any] = next((e for e in report["epochs"] if e["epoch"] == report["best_epoch"]), {})
    names = ("queries", "queries_without_negatives", "groups_an_epoch", "steps", "best_epoch", "dev_queries")
    return {name: report[name] for name in names} | {
        "loss": last.get("loss"),
        "chance_loss": report["chance_loss"],
        **{f"dev_{name}": best[name] for name in FIGURES if name in best},
        "collapse": report["collapse"],
    }
