"""What the steps of earlier runs did and how long they took."""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from functools import cache
from typing import Any

from pipeline.workflow.artifact_store import Workspace, read_manifest
from pipeline.workflow.graph import STAGES_BY_NAME
from stages.core.context import Progress
from stages.planning.rates import PastRun


def read_past_runs(workspace: Workspace, machines: Mapping[str, str]) -> list[PastRun]:
    """The runs on this machine whose results are still in the workspace, first to last.

    `machines`: step -> how events.jsonl marks a run of it on this machine. A run that continues another is left out.
    """
    keys: dict[str, str] = {}
    n_starts: Counter[tuple[str, str]] = Counter()
    runs = []

    @cache
    def read(step: str, key: str) -> dict[str, Any]:
        return read_manifest(workspace.get_artifact_folder(step, key)) or {}

    for event in workspace.read_events():
        kind, step, key = event.get("event"), event.get("stage", ""), event.get("key", "")
        n_starts[step, key] += kind == "start"
        if kind in ("hit", "done"):
            keys[step] = key
        if kind == "done" and n_starts.pop((step, key)) == 1 and event.get("machine") == machines.get(step, ""):
            stage = STAGES_BY_NAME[step]
            upstream = {path.split("/")[0] for path in (*stage.inputs, *stage.optional_inputs)}
            manifests = {name: found for name in (step, *upstream) if (found := read(name, keys.get(name, "")))}
            if {step, *(path.split("/")[0] for path in stage.inputs)} <= manifests.keys():
                runs.append(PastRun(step, event["seconds"], event["memory"], event["work"], manifests))
    return runs


def select_similar_runs(
    step: str, runs: Sequence[PastRun], now: Mapping[str, Mapping[str, Any]], ignored: Set[str] = frozenset()
) -> list[PastRun]:
    """The runs of `step` whose version, models and settings are those of `now`, but for `ignored` settings.

    `now`: step -> `Runner.collect_settings`. The settings of encode count for search too, since they decide the size of
    the vectors, and those of train for evaluate, since they decide the size of the model.
    """
    names = {"search": ("encode", "search"), "evaluate": ("train", "evaluate")}.get(step, (step,))

    def list_settings(manifests: Mapping[str, Mapping[str, Any]]) -> list[Any]:
        parts = [(one["version"], one["key_extras"], one["parameters"]) for one in map(manifests.__getitem__, names)]
        return [(*part, {key: value for key, value in given.items() if key not in ignored}) for *part, given in parts]

    return [run for run in runs if run.step == step and list_settings(run.manifests) == list_settings(now)]


class WorkCounter:
    """A progress that passes everything on and keeps the counts: of each unit, and of tokens."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._last: dict[str, int] = {}
        self.counts: Counter[str] = Counter()

    def advance(self, done: int, total: int | None, unit: str, tokens: int = 0) -> None:
        """Count what was done since the last report; one that starts again from below is work of its own."""
        for name, count in ((unit, done), *([("tokens", tokens)] if tokens else [])):
            last = self._last.get(name, 0)
            self.counts[name] += count - last if count >= last else count
            self._last[name] = count
        self._progress.advance(done, total, unit, tokens)

    def log(self, message: str) -> None:
        """Pass a line on."""
        self._progress.log(message)
