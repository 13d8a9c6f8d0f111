"""The machine that is planned for: this one, measured in seconds; or GPUs elsewhere, by their published rates."""

import importlib
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.core.context import Progress
from stages.core.device import Dtype
from stages.core.errors import InputError
from stages.core.memory import peak_rss, reset_peak_rss
from stages.core.model_files import resolve_model
from stages.mining.verify.params import SELF_TRAINED
from stages.planning import constants
from stages.planning.cost_model import Settings
from stages.planning.cpu_benchmark import taken
from stages.planning.machine import Machine, Model, Training
from stages.planning.throughput import BACKWARD, Gpu, Rate, Shape, published, published_sweep
from stages.planning.workload import Encoding, Table, counted


def importing() -> float:
    """Seconds to import what models need, from a disk that may not have it at hand; 0 where it is imported."""
    started = time.monotonic()
    importlib.import_module("sentence_transformers")
    return time.monotonic() - started


def measure(stages: Collection[str], table: Table, settings: Settings, imported: float, progress: Progress) -> Machine:
    """This machine, at the work of those of `stages` that compute with a model or search: under a minute.

    What no stage needs is not measured. A GPU that the settings choose is measured as it is. `imported`: what
    `importing` took.
    """
    from stages.planning import probes

    encode: Any = settings["encode"]
    machine = replace(_unmeasured(table, settings), importing=imported)
    if "search" in stages:
        progress.log("measuring the search ...")
        machine = replace(machine, sweep=_swept(table, settings, machine))
    if "encode" in stages:
        encoders = []
        for encoding, model in zip(table.encodings, machine.encoders, strict=True):
            if len(encoding.tokens):
                progress.log(f"measuring the encoder {encoding.recipe.model} ...")
                found = probes.encode(encoding, encoding.recipe.dtype, encode.batch_tokens)
                rates = {encoding.recipe.dtype: found.rate}
                if faster := _faster(encoding):
                    again = probes.encode(encoding, faster, encode.batch_tokens, probes.SECONDS / 2)
                    rates[faster] = again.rate
                model = Model(rates, found.start, found.memory, model.shape)
            encoders.append(model)
        machine = replace(machine, encoders=encoders)
    if not len(table.pair_tokens):
        return machine
    params: Any = settings["train"]
    verify: Any = settings["verify"]
    teacher = verify.verifier if "verify" in stages else None
    if teacher and teacher != SELF_TRAINED:
        progress.log("measuring the teacher ...")
        folder = resolve_model(teacher)
        machine = replace(machine, teacher=_scored(folder, params.device, "auto", verify.verifier_max_length, table))
    folder = resolve_model(params.base)
    if {"train", "evaluate"} & set(stages) or teacher == SELF_TRAINED:
        progress.log("measuring the reranker ...")
        machine = replace(machine, score=_scored(folder, params.device, params.dtype, params.max_length, table))
    if "train" in stages or teacher == SELF_TRAINED:
        progress.log("measuring the training step ...")
        machine = replace(machine, step=probes.step(params, folder, table))
    return machine


def on_gpus(gpu: Gpu, gpus: int, table: Table, settings: Settings, here: Machine | None = None) -> Machine:
    """`gpus` GPUs of a kind. Nothing of them is measured; what the CPU does (splitting texts into tokens, scoring what
    a search found) is taken at this machine's speed. Encoding and search use all of them; training and scoring one, as
    they do without a launcher of several processes."""
    machine = here or replace(unmeasured := _unmeasured(table, settings), sweep=_swept(table, settings, unmeasured))
    encoders = []
    for encoding, model in zip(table.encodings, machine.encoders, strict=True):
        twice = 2 * tokenising(resolve_model(encoding.name), [text for _, text in encoding.texts])
        rate = published(gpu, model.shape, encoding.limit, gpus).at_least(twice)  # for their lengths, then for good
        encoders.append(Model({encoding.recipe.dtype: rate}, constants.START, model.memory, model.shape))
    params: Any = settings["train"]
    shape = machine.score.shape
    tokens = tokenising(resolve_model(params.base), *([pair[side] for pair in table.pairs] for side in (0, 1)))
    rate = published(gpu, shape, params.max_length).at_least(tokens)
    score = Model({"": rate}, constants.START, machine.score.memory, shape)
    rate = published(gpu, shape, params.max_length, passes=BACKWARD).at_least(tokens)
    step = replace(machine.step, rate=rate, start=constants.START)
    teacher = _published_teacher(gpu, settings, score, tokens)
    sweep = published_sweep(gpu, machine.sweep.kept, gpus)
    return replace(machine, encoders=encoders, sweep=sweep, score=score, step=step, teacher=teacher, importing=0.0)


def _published_teacher(gpu: Gpu, settings: Settings, score: Model, tokens: float) -> Model | None:
    """[verify] verifier on a GPU, where it is another model than the base, which is `score`."""
    verify: Any = settings["verify"]
    if not verify.verifier or verify.verifier == SELF_TRAINED:
        return None
    shape = shape_of(resolve_model(verify.verifier))
    rate = published(gpu, shape, verify.verifier_max_length).at_least(tokens)
    return Model({"": rate}, constants.START, score.memory + 4 * (shape.weights - score.shape.weights), shape)


def tokenising(folder: Path, texts: Sequence[str], second: Sequence[str] | None = None) -> float:
    """Seconds a token that the tokeniser in `folder` takes here."""
    if not texts:
        return 0.0
    counted(folder, texts[:8], second and second[:8])
    started = time.monotonic()
    tokens = counted(folder, texts, second)
    return (time.monotonic() - started) / float(tokens.sum())


def shape_of(folder: Path) -> Shape:
    """What the transformer in `folder` computes; its weights are not read. Raises `InputError` where it is
    none."""
    import torch
    from transformers import AutoConfig, AutoModel

    try:
        with torch.device("meta"):
            model = AutoModel.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder} is no transformer that can be planned for: {error}") from error
    weights = sum(parameter.numel() for parameter in model.parameters())
    tables = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Embedding))
    return Shape(weights - tables, weights, model.config.num_hidden_layers, model.config.hidden_size)


def resident() -> int:
    """The memory of this process now, in bytes."""
    reset_peak_rss()
    return peak_rss()


def _unmeasured(table: Table, settings: Settings) -> Machine:
    from stages.reranking.cross_encoder import has_head

    params: Any = settings["train"]
    folder = resolve_model(params.base)
    memory, nothing = resident(), Rate((1.0,), (0.0,))
    shapes = [shape_of(resolve_model(encoding.name)) for encoding in table.encodings]
    shape = shape_of(folder)
    loaded = resident()
    return Machine(
        encoders=[Model({e.recipe.dtype: nothing}, 0.0, loaded + 4 * s.weights, s)
                  for e, s in zip(table.encodings, shapes, strict=True)],
        sweep=published_sweep(Gpu("", 1.0), 0.0),
        score=Model({"": nothing}, 0.0, loaded + 4 * shape.weights, shape),
        step=Training(nothing, 0.0, 0.0, loaded + 16 * shape.weights, 1.0),
        teacher=None,
        fresh_head=not has_head(folder),
        yard=taken(),
        tables=memory,
        importing=0.0,
    )  # fmt: skip


def _swept(table: Table, settings: Settings, machine: Machine) -> Any:
    from stages.planning import probes
    from stages.retrieval.stage import choose_device_and_dtype

    search: Any = settings["search"]
    hidden = machine.encoders[0].shape.hidden
    device, dtype = choose_device_and_dtype(search, table.queries * table.documents * hidden)
    return probes.sweep(hidden, table.queries, table.documents, search.top_k, device, dtype)


def _scored(folder: Path, device: str, dtype: Dtype, max_length: int, table: Table) -> Model:
    from stages.planning import probes

    found = probes.score(folder, device, dtype, max_length, table)
    return Model({"": found.rate}, found.start, found.memory, shape_of(folder))


def _faster(encoding: Encoding) -> str | None:
    """Another number format that this device is fast at."""
    from stages.core.device import should_use_bfloat16

    fast = should_use_bfloat16(encoding.recipe.device, "auto")
    return "bfloat16" if fast and encoding.recipe.dtype == "float32" else None
