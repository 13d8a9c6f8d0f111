"""What dominates, and which flag would change it; each change is predicted by the same arithmetic as the plan."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from stages.core.model_files import DEFAULT_ENCODER
from stages.planning.cost_model import Prediction, Settings, lessons, predict, total
from stages.planning.machine import Machine, Model
from stages.planning.throughput import GPUS, PUBLISHED, Shape
from stages.planning.workload import Table

WORTH = 0.1
"""A change that saves a smaller share of the whole is not named."""
MOST = 3
GPU = "l4"
"""What `--device cuda` is predicted with: a small one, which most clouds have."""
SMALL = Shape(parameters=10_795_392, weights=22_713_216, layers=6, hidden=384)
"""The default encoder, which costs less than most."""


class Change(NamedTuple):
    """One flag, the stage that takes it, the whole time with it (seconds), and what that hangs on."""

    flag: str
    stage: str
    seconds: float
    note: str = ""


def dominant(predictions: Sequence[Prediction]) -> Prediction | None:
    """The stage that takes longest; None where nothing takes any time."""
    longest = max(predictions, key=lambda one: one.seconds or 0.0, default=None)
    return longest if longest and longest.seconds else None


def changes(
    predictions: Sequence[Prediction], table: Table, settings: Settings, machine: Machine, gpu: Machine | None = None
) -> list[Change]:
    """The changes that are worth it, of the flags that the dominating stage hangs on; the one that saves most first.

    `gpu`: this machine with a `GPU`, where it has none.
    """
    longest = dominant(predictions)
    if longest is None:
        return []
    stages, whole = [one.stage for one in predictions], total(predictions)
    found = []
    if longest.stage == "encode" and any(encoding.begun for encoding in table.encodings):
        return []  # another encoder, length, number format or device would make all vectors anew, not only what is new
    for stage, name, value in _turns(longest.stage, table, settings, machine):
        if stage not in stages:  # it is up to date, and would have to be made again
            continue
        changed = {**settings, stage: settings[stage].model_copy(update={name: value})}
        dashed = name.replace("_", "-")
        flag = f"--no-{dashed}" if value is False else f"--{dashed} {value}"
        found.append(Change(flag, stage, total(predict(stages, table, changed, machine))))
    for flag, other, note in _machines(longest.stage, machine, gpu):
        (one,) = predict([longest.stage], table, settings, other)
        seconds = whole - (longest.seconds or 0.0) + (one.seconds or 0.0)
        found.append(Change(flag, longest.stage, seconds, note))
    worth = [change for change in found if whole - change.seconds >= WORTH * whole]
    return sorted(worth, key=lambda change: change.seconds)[:MOST]


def _machines(stage: str, machine: Machine, gpu: Machine | None) -> Iterator[tuple[str, Machine, str]]:
    """(flag, the machine with it, a note): what another device or a smaller encoder would make of this stage."""
    if gpu and stage in ("encode", "train", "evaluate"):
        yield "--device cuda", gpu, f"with an {GPUS[GPU].name}, {PUBLISHED}"
    first = machine.encoders[0]
    share = SMALL.flops(128) / first.shape.flops(128)
    if stage == "encode" and share < 0.5:
        rates = {name: rate.scaled(share) for name, rate in first.rates.items()}
        smaller = Model(rates, first.start, first.memory, SMALL)
        yield f"--model {DEFAULT_ENCODER}", replace(machine, encoders=[smaller, *machine.encoders[1:]]), ""


def _turns(stage: str, table: Table, settings: Settings, machine: Machine) -> Iterator[tuple[str, str, Any]]:
    """(stage, parameter, value): what a person could turn."""
    params: Any = settings[stage]
    if stage == "encode":
        limit = min(table.encodings[0].limit, params.max_length or table.encodings[0].limit)
        now = table.encodings[0].recipe.dtype
        yield from ((stage, "max_length", shorter) for shorter in (limit // 2, limit // 4) if shorter >= 16)
        yield from ((stage, "dtype", dtype) for dtype in machine.encoders[0].rates if dtype != now)
    elif stage == "train":
        queries = min(params.max_queries or table.train, table.train)
        if params.epochs > 1:
            yield stage, "epochs", params.epochs // 2
        if lessons(params, machine):
            yield stage, "distill_epochs", 0
        if queries > 1:
            yield stage, "max_queries", queries // 2
        yield stage, "max_length", max(8, params.max_length // 2)
        yield stage, "negatives", max(1, params.negatives // 2)
    elif stage == "evaluate":
        yield stage, "top_k", max(1, params.top_k // 2)
        asked = max((n for split, n in table.splits.items() if split != "train"), default=0)
        yield stage, "max_queries", max(1, min(params.max_queries or asked, asked) // 2)
    elif stage == "verify" and params.teacher:
        yield stage, "teacher_budget", max(1, (params.teacher_budget or table.queries) // 2)
    else:
        mask: Any = settings["mask"]
        if stage == "features" and mask.mask != "learned" and mask.relabel == "no":  # which go by the estimate
            yield stage, "estimate", False
        search: Any = settings["search"]
        compose: Any = settings["sample"]
        if search.depth // 2 > compose.n_requested:
            yield "search", "depth", search.depth // 2
