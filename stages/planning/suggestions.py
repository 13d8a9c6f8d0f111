"""What dominates, and which setting would change it; each change is predicted by the same arithmetic as the plan."""

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
"""What [run] device = cuda is predicted with: a small one, which most clouds have."""
SMALL = Shape(parameters=10_795_392, weights=22_713_216, layers=6, hidden=384)
"""The default encoder, which costs less than most."""


class Change(NamedTuple):
    """One setting, the stage that reads it, the whole time with it (seconds), and what that depends on."""

    setting: str
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
    """The changes that are worth it, of the settings that the dominating stage depends on; the best one first.

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
        found.append(
            Change(
                f"{name} = {str(value).lower() if isinstance(value, bool) else value}",
                stage,
                total(predict(stages, table, changed, machine)),
            )
        )
    for setting, other, note in _machines(longest.stage, machine, gpu):
        (one,) = predict([longest.stage], table, settings, other)
        seconds = whole - (longest.seconds or 0.0) + (one.seconds or 0.0)
        found.append(Change(setting, longest.stage, seconds, note))
    worth = [change for change in found if whole - change.seconds >= WORTH * whole]
    return sorted(worth, key=lambda change: change.seconds)[:MOST]


def _machines(stage: str, machine: Machine, gpu: Machine | None) -> Iterator[tuple[str, Machine, str]]:
    """(setting, the machine with it, a note): what another device or a smaller encoder would make of this stage."""
    if gpu and stage in ("encode", "train", "evaluate"):
        yield "device = cuda", gpu, f"with an {GPUS[GPU].name}, {PUBLISHED}"
    first = machine.encoders[0]
    share = SMALL.flops(128) / first.shape.flops(128)
    if stage == "encode" and share < 0.5:
        rates = {name: rate.scaled(share) for name, rate in first.rates.items()}
        smaller = Model(rates, first.start, first.memory, SMALL)
        yield f"model = {DEFAULT_ENCODER}", replace(machine, encoders=[smaller, *machine.encoders[1:]]), ""


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
        yield stage, "num_negatives", max(1, params.num_negatives // 2)
    elif stage == "evaluate":
        yield stage, "top_k", max(1, params.top_k // 2)
        asked = max((n for split, n in table.splits.items() if split != "train"), default=0)
        yield stage, "max_queries", max(1, min(params.max_queries or asked, asked) // 2)
    elif stage == "verify" and params.verifier:
        yield stage, "verifier_budget", max(1, (params.verifier_budget or table.queries) // 2)
    else:
        mask: Any = settings["mask"]
        if stage == "features" and mask.mask != "learned" and mask.relabel == "no":  # which go by the estimate
            yield stage, "estimate_false_negatives", False
        search: Any = settings["search"]
        compose: Any = settings["sample"]
        if search.top_k // 2 > compose.n_requested:
            yield "search", "top_k", search.top_k // 2
