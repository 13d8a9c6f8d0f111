"""What each stage will take: arithmetic on a table's counts, the parameters, and the rates of a machine. Runs nothing.

Where a stage's own cost is that of a model, its tokens are counted and multiplied by a rate that was measured (or
published, for a GPU that is not here). The rest goes by candidates and characters, at rates known from earlier runs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from stages.core.params import BaseParams
from stages.mining.candidates.features import MAX_POSITIVE_QUERIES
from stages.mining.estimator.model import N_HOLDOUT_ROUNDS
from stages.mining.estimator.table_estimator import MAX_TABLE_MODEL_QUERIES
from stages.mining.verify.cross_fitting import MIN_QUERIES_PER_FOLD
from stages.mining.verify.params import SELF_TRAINED, SELF_TRAINED_MAX_QUERIES
from stages.planning import constants
from stages.planning.machine import Machine, Model
from stages.planning.throughput import KNOWN
from stages.planning.workload import Encoding, Table
from stages.retrieval.faiss_search import EXACT_INDEX_NAMES

Settings = Mapping[str, BaseParams]
"""Stage name -> its parameters."""


class Prediction(NamedTuple):
    """One stage: what there is to do, and what it will take; `seconds` is None where nobody can know."""

    stage: str
    work: str
    seconds: float | None
    memory: int
    disk: int
    source: str


def predict(stages: Sequence[str], table: Table, settings: Settings, machine: Machine) -> list[Prediction]:
    """The predictions of some stages, in their order, for one process.

    The first that loads a model waits for the libraries too; the memory that they and the models took stays taken.
    """
    found: list[Prediction] = []
    importing = machine.importing
    for name in stages:
        one = _STAGES[name](table, settings, machine)
        one = one._replace(memory=max(one.memory, machine.tables))
        if name in _LOADING and one.seconds:
            one = one._replace(seconds=one.seconds + importing)
            importing = 0.0
            machine = replace(machine, tables=one.memory)
        found.append(one)
    return found


def total(predictions: Sequence[Prediction]) -> float:
    """Seconds of all that can be known."""
    return math.fsum(prediction.seconds or 0.0 for prediction in predictions)


def _pairs(table: Table, settings: Settings, machine: Machine) -> Prediction:
    return Prediction("pairs", "", 0.0, machine.tables, 0, KNOWN)  # always up to date: the counts come from it


def _encode(table: Table, settings: Settings, machine: Machine) -> Prediction:
    params: Any = settings["encode"]
    seconds, tokens, disk = 0.0, 0.0, 0
    for place, (encoding, model) in enumerate(zip(table.encodings, machine.encoders, strict=True)):
        new = sum(encoding.new.values())
        if not new:
            continue
        lengths = read_tokens(encoding, params.max_length if place == 0 else None)
        rate = model.rates.get(params.dtype) or model.rates[encoding.recipe.dtype]
        seconds += model.start + rate.total(lengths, encoding.weight) + machine.yard * constants.TEXT * new
        tokens += float((lengths * encoding.weight).sum())
        disk += new * (16 + 4 * model.shape.hidden)
    queries, documents = (sum(encoding.new[role] for encoding in table.encodings) for role in ("query", "document"))
    work = f"{queries:,} queries + {documents:,} documents, {_short(tokens)} tokens" if tokens else "no new text"
    memory = max([model.memory for model in machine.encoders] + [machine.tables])
    memory += (table.queries + table.documents) * constants.HASHED
    return Prediction("encode", work, seconds, memory, disk, _source(machine.encoders[0]))


def read_tokens(encoding: Encoding, max_length: int | None) -> Any:
    """The tokens of the sample that the encoder reads: [n]."""
    return np.minimum(encoding.tokens, min(encoding.limit, max_length or encoding.limit))


def candidates_of(table: Table, settings: Settings) -> int:
    """Rows that all sources together give."""
    search: Any = settings["search"]
    windows = ((source.start, min(end, table.documents)) for source, end in search.source_depths)
    return table.queries * sum(int(max(0, end - start)) for start, end in windows)


def _search(table: Table, settings: Settings, machine: Machine) -> Prediction:
    params: Any = settings["search"]
    products = kept = disk = 0.0
    yards = constants.SEARCH
    dimension = 0
    for source, end in params.source_depths:
        if source.name == "bm25":
            yards += (
                constants.BM25_CHARACTER * table.characters + constants.BM25_PRODUCT * table.queries * table.documents
            )
        if source.encoder_index is None or source.encoder_index >= len(table.encodings):
            continue
        encoding, size = table.encodings[source.encoder_index], machine.encoders[source.encoder_index].shape.hidden
        width = min(end + 8 + end // 8, table.documents)
        new = encoding.new
        goes_on = encoding.went_on and 2 * new["document"] <= table.documents
        queries = new["query"] if goes_on else table.queries
        pairs = queries * table.documents + (table.queries - queries) * new["document"]
        products += pairs * size
        kept += queries * width
        disk += table.queries * (16 + 8 * width) + 16 * table.documents
        dimension = max(dimension, size)
    found = candidates_of(table, settings)
    seconds = machine.sweep.total(products, kept) + machine.yard * (yards + constants.SEARCHED * found)
    asked, block = min(table.queries, 16_384), min(table.documents, params.block)
    memory = (
        machine.tables
        + 4 * dimension * (asked + 2 * block)
        + asked * constants.KEPT * min(params.top_k, table.documents)
    )
    work = f"{table.queries:,} x {table.documents:,} x {dimension}, {_short(found)} candidates"
    if products < table.queries * table.documents * dimension:
        work += ", goes on from the last search"
    stored = int(disk + constants.CANDIDATE_BYTES * found)
    if params.faiss_index not in EXACT_INDEX_NAMES:
        return Prediction("search", f"{work}, by the index {params.faiss_index}", None, memory, stored, "unknown")
    return Prediction("search", work, seconds, memory, stored, machine.sweep.source)


def _evidence(table: Table, settings: Settings, machine: Machine) -> Prediction:
    params: Any = settings["features"]
    found = candidates_of(table, settings)
    yards = constants.BEGIN + found * (constants.FLAG + constants.ANSWER * (table.answered / max(table.queries, 1)))
    if params.estimate_false_negatives:
        owners = min(table.train * table.positives / max(table.documents, 1), MAX_POSITIVE_QUERIES)
        shown = found * (1 + N_HOLDOUT_ROUNDS * min(table.several, MAX_TABLE_MODEL_QUERIES) / max(table.queries, 1))
        yards += shown * (constants.ESTIMATE + constants.OWNER * owners)
        yards += constants.BM25_CHARACTER * table.characters
    memory = (
        machine.tables + constants.EVIDENCE_MEMORY * min(found, 200_000) + constants.INDEX_CHARACTER * table.characters
    )
    seconds = machine.yard * yards
    return Prediction(
        "features", f"{_short(found)} candidates", seconds, memory, constants.EVIDENCE_BYTES * found, KNOWN
    )


def _verify(table: Table, settings: Settings, machine: Machine) -> Prediction:
    params: Any = settings["verify"]
    if not params.verifier and not params.llm_judge:
        return Prediction("verify", "nobody is asked", 0.0, machine.tables, 0, KNOWN)
    if params.llm_judge:
        return Prediction("verify", f"{params.llm_judge_budget:,} requests at most", None, machine.tables, 0, "unknown")
    taught = min(SELF_TRAINED_MAX_QUERIES, table.train * (params.folds - 1) // params.folds)
    if params.verifier == SELF_TRAINED and taught < MIN_QUERIES_PER_FOLD:
        work = f"{taught:,} queries to train a fold on are too few: nobody is asked"
        return Prediction("verify", work, 0.0, machine.tables, 0, KNOWN)
    pairs = round(constants.UNSURE * candidates_of(table, settings))
    pairs = min(pairs, params.verifier_budget or pairs) + table.train
    reader = machine.teacher or machine.score
    seconds = reader.start + scored(table, reader, pairs, params.verifier_max_length)
    work = f"{pairs:,} pairs, if {constants.UNSURE:.0%} of the candidates are in doubt"
    if params.verifier == SELF_TRAINED:
        lessons = taught * 8 * (1 + machine.fresh_head)  # groups of 8, an epoch; a new head has a first lesson
        lengths = np.minimum(table.pair_tokens, params.verifier_max_length)
        each = machine.step.start + machine.step.rate.total(lengths) * lessons / max(len(lengths), 1)
        seconds += params.folds * each
        work += f", after {params.folds} trainings on {taught:,} queries"
    return Prediction("verify", work, seconds, reader.memory, pairs * 20, _source(reader))


def _mask(table: Table, settings: Settings, machine: Machine) -> Prediction:
    found = candidates_of(table, settings)
    seconds, memory = machine.yard * constants.MASK * found, machine.tables + constants.MASK_MEMORY * found
    return Prediction("mask", f"{_short(found)} candidates", seconds, memory, constants.VERDICT_BYTES * found, KNOWN)


def _compose(table: Table, settings: Settings, machine: Machine) -> Prediction:
    params: Any = settings["sample"]
    found, lines = candidates_of(table, settings), table.train * (params.n_requested + table.positives)
    seconds = machine.yard * (constants.COMPOSE * found + constants.LINE * lines)
    disk = int(lines * table.characters / max(table.documents, 1))
    memory = machine.tables + constants.COMPOSE_MEMORY * found
    return Prediction(
        "sample", f"{table.train:,} queries x {params.n_requested} negatives", seconds, memory, disk, KNOWN
    )


def _train(table: Table, settings: Settings, machine: Machine) -> Prediction:
    params: Any = settings["train"]
    compose: Any = settings["sample"]
    step, score = machine.step, machine.score
    epochs = params.epochs + lessons(params, machine)
    queries = min(params.max_queries or table.train, table.train)
    groups = round(queries * min(params.num_positives, max(table.positives, 1.0)))
    size = 1 + min(params.num_negatives, compose.n_requested)
    pairs, steps = groups * size * epochs, -(-groups // params.batch_size) * epochs
    lengths = np.minimum(table.pair_tokens if len(table.pair_tokens) else 1, params.max_length).reshape(-1)
    dev = min(params.max_dev_queries or table.splits.get("dev", 0), table.splits.get("dev", 0))
    dev_pairs = dev * min(params.dev_top_k, table.documents) * epochs
    saves = epochs * (1 + steps // epochs // 50) if epochs else 0
    seconds = step.start + step.rate.total(lengths) * pairs / max(len(lengths), 1) + steps * step.update
    seconds += scored(table, score, dev_pairs, params.max_length)
    seconds += saves * constants.CHECKPOINT * score.shape.weights / constants.DISK
    batch = params.batch_size * size
    longest = batch * min(float(lengths.mean()) + 3 * float(lengths.std()) / math.sqrt(batch), float(params.max_length))
    states = 12 * score.shape.weights  # gradients and AdamW's two moments
    loaded = score.memory + states
    memory = loaded + max(0, step.memory - loaded) * longest / step.tokens
    work = f"{groups:,} groups x {size} pairs x {epochs} epochs, {_short(float(lengths.mean()) * pairs)} tokens"
    disk = 4 * score.shape.weights
    return Prediction("train", work, seconds, int(memory), disk, step.rate.source)


def _evaluate(table: Table, settings: Settings, machine: Machine) -> Prediction:
    params: Any = settings["evaluate"]
    train: Any = settings["train"]
    asked = sum(min(params.max_queries or n, n) for split, n in table.splits.items() if split in ("dev", "test"))
    pairs = 2 * asked * min(params.top_k, table.documents)
    seconds = 2 * machine.score.start + scored(table, machine.score, pairs, train.max_length)
    seconds += machine.yard * (constants.BM25_CHARACTER * table.characters + constants.EVALUATE)
    memory = machine.score.memory + constants.INDEX_CHARACTER * table.characters
    return Prediction(
        "evaluate", f"{pairs:,} pairs by 2 rerankers", seconds, memory, 300 * asked, _source(machine.score)
    )


def lessons(params: Any, machine: Machine) -> int:
    """Epochs of [train] in which a new head learns the retriever's scores."""
    return int(params.resolve_distill_epochs(machine.fresh_head))


def scored(table: Table, model: Model, pairs: int, max_length: int) -> float:
    """Seconds of a cross-encoder for `pairs` pairs that are as long as those of the sample."""
    lengths = np.minimum(table.pair_tokens, max_length)
    return next(iter(model.rates.values())).total(lengths) * pairs / max(len(lengths), 1)


def _source(model: Model) -> str:
    return next(iter(model.rates.values())).source


def _short(count: float) -> str:
    """A count as people say it: 3.9 M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 10 * size or (count >= size and unit != "k"):
            return f"{count / size:.1f} {unit}"
    return f"{count:,.0f}"


_LOADING = ("encode", "verify", "train", "evaluate")
_STAGES: Mapping[str, Callable[[Table, Settings, Machine], Prediction]] = {
    "pairs": _pairs,
    "encode": _encode,
    "search": _search,
    "features": _evidence,
    "verify": _verify,
    "mask": _mask,
    "sample": _compose,
    "train": _train,
    "evaluate": _evaluate,
}
