"""`Stage`, the node of the graph; the stores that steps share; and the interface of a step's module."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from stages.core.context import StageContext, Summary
    from stages.core.params import BaseParams


class Store(Enum):
    """What steps keep in the workspace beside their artifacts. A step is given the folders that it declares."""

    VECTORS = "vectors"
    """vectors/<encoder>/: the vector of each text that was ever encoded, by the text's hash."""
    TOPK_CACHE = "topk_cache"
    """vectors/<encoder>/topk_cache/: each query's best documents, from which the next search goes on. It gives the same
    result without them."""
    SCORES = "scores"
    """verifier_scores/: scores of verifiers and verdicts of LLM judges, by pair of texts."""
    SCRATCH = "scratch"
    """scratch/<step>-<key>/: work in progress, which a run of the same key finds again. Deleted after the commit."""
    LOGS = "logs"
    """logs/<step>/<key>/: files that hold times, such as TensorBoard's."""


class StageModule(Protocol):
    """What the module of a step defines."""

    Params: "type[BaseParams]"
    VERSION: int
    """Raised if the code would give another result for the same key."""

    def run(self, params: Any, inputs: Mapping[str, Path], out: Path, context: "StageContext") -> "Summary":
        """Read `inputs`, write the step's outputs into the folder `out`; returns what the manifest keeps beside them.

        A summary that holds "complete": False marks a result that the next run makes again.
        """


@dataclass(frozen=True)
class Stage:
    """One step. An input is a file of an earlier step as "step/file"; the step is given its path under its stem."""

    name: str
    module: str
    """The module, which implements `StageModule`."""
    section: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    libraries: tuple[str, ...]
    """Those that shape the result: their versions enter the key."""
    optional_inputs: Mapping[str, Callable[[Any], bool]] = field(default_factory=dict)
    """Inputs that only some parameters need: input -> whether the step's Params read it."""
    published_inputs: Mapping[str, str] = field(default_factory=dict)
    """Name -> a file of the current publication ("step/file"). A step with such inputs runs in a refresh only."""
    model_inputs: tuple[tuple[str, str, str], ...] = ()
    """Models that are inputs too: (name of the input, step and parameter that name the model)."""
    key_extras: str | None = None
    """A function of the Params: what enters the key beside parameters, inputs and versions, such as digests of the
    files that the parameters name."""
    server_key_extras: str | None = None
    """A function (Params, context): the same for what is behind a URL, as it is now or as the stores remember it."""
    is_valid: str | None = None
    """A function (artifact folder, context): whether the stores still hold what a committed result refers to."""
    reads: tuple[Store, ...] = ()
    writes: tuple[Store, ...] = ()
    is_resumable: bool = False
    """Whether an interrupted run leaves work in SCRATCH that the next one goes on from, and that is worth keeping."""

    def load_module(self) -> StageModule:
        """The module that holds the step's Params, VERSION and run."""
        return cast(StageModule, importlib.import_module(self.module))

    @property
    def stores(self) -> frozenset[Store]:
        """The stores whose folders the step is given."""
        return frozenset((*self.reads, *self.writes))

    def select_inputs(self, params: "BaseParams") -> tuple[str, ...]:
        """The inputs that are read under these parameters, in order."""
        return (*self.inputs, *(path for path, is_read in self.optional_inputs.items() if is_read(params)))

    def list_upstream_stages(self, params: "BaseParams") -> tuple[str, ...]:
        """The names of the steps that this one then reads from, each once, in order."""
        return tuple(dict.fromkeys(path.split("/")[0] for path in self.select_inputs(params)))


def resolve_function(reference: str) -> Callable[..., Any]:
    """The function that "module:function" names."""
    module, name = reference.split(":")
    return cast(Callable[..., Any], getattr(importlib.import_module(module), name))
