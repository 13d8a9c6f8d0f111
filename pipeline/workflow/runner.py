"""Runs stages by key: a committed artifact of the same key is used again; any other is made, checked and committed."""

import errno
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.workflow.artifact_store import Artifact, Workspace, digest_json
from pipeline.workflow.graph import PIPELINE, STAGES_BY_NAME
from pipeline.workflow.run_history import WorkCounter
from pipeline.workflow.stage import Stage, Store, resolve_function
from stages.core.context import Progress, StageContext, Summary
from stages.core.device import describe_machine
from stages.core.errors import InputError, QualityGateError
from stages.core.executor import Executor, InProcessExecutor
from stages.core.libraries import get_library_versions
from stages.core.memory import peak_rss, reset_peak_rss
from stages.core.model_files import model_digest, resolve_model
from stages.core.params import BaseParams

_KEY_FIELDS = ("version", "parameters", "key_extras", "inputs", "libraries")


@dataclass(frozen=True)
class StageStatus:
    """The state of a stage: "fresh" (would not run), "stale" (would run, and why) or "absent" (never ran)."""

    stage: str
    state: str
    reasons: tuple[str, ...]
    artifact: Artifact | None
    error: InputError | None = None
    """Why its key can't be computed: a table or a model can't be read."""


@dataclass(frozen=True)
class ResolvedInput:
    """An input of a stage: what the stage and the manifest call it, where it lies, and the digest of its content."""

    name: str
    label: str
    path: Path
    digest: str


class Runner:
    """Brings stages of one workspace up to date under one set of parameters (stage name -> its Params)."""

    def __init__(
        self,
        workspace: Workspace,
        params: Mapping[str, BaseParams],
        progress: Progress,
        executor: Executor | None = None,
    ) -> None:
        self.workspace = workspace
        self.params = params
        self.progress = progress
        self.executor = executor or InProcessExecutor()
        self.artifacts: dict[str, Artifact] = {}
        self.executed_stages: list[str] = []

    def build(self, name: str, published: Mapping[str, Artifact] | None = None) -> Artifact:
        """Bring one stage up to date, and first whatever is upstream of it.

        `published`: the artifacts of the current publication, for a stage with `published_inputs`. Raises
        `QualityGateError` if the trained reranker collapsed.
        """
        if name in self.artifacts:
            return self.artifacts[name]
        stage = STAGES_BY_NAME[name]
        upstream = {source: self.build(source) for source in stage.list_upstream_stages(self.params[name])}
        artifact = self._run_stage(stage, upstream, published or {})
        self.artifacts[name] = artifact
        if artifact.summary.get("collapse_reason"):
            raise QualityGateError(
                f"the reranker collapsed: {artifact.summary['collapse_reason']}. It is not published; `current` is "
                "untouched. Try a smaller learning rate, more queries, or a base that has been trained for ranking."
            )
        return artifact

    def _run_stage(self, stage: Stage, upstream: Mapping[str, Artifact], published: Mapping[str, Artifact]) -> Artifact:
        """Run one stage unless its key is committed."""
        params = self.params[stage.name]
        inputs = self._resolve_inputs(stage, upstream, published)
        key_fields = self._collect_key_fields(stage, inputs)
        key = digest_json({"stage": stage.name, **key_fields})
        context = self._make_context(stage, key)
        cached = self._find_valid_artifact(stage, key, context)
        if cached:
            _delete_scratch(context)  # a kill may have come between the commit and this
            self.workspace.log_event(event="hit", stage=stage.name, key=key)
            return cached
        if self.workspace.get_artifact_folder(stage.name, key).exists():
            self.progress.log(f"{stage.name}: the stored result is damaged or incomplete; it is made again")
        self.executed_stages.append(stage.name)
        self.progress.log(f"{stage.name}: running")
        if stage.name == "train":
            context = replace(context, seconds_per_step=get_seconds_per_step(self.workspace.read_events()))
            for previous in self.workspace.list_artifacts("train")[:1]:
                changes = "; ".join(describe_key_changes(previous.manifest, key_fields))
                self.progress.log(f"the reranker is trained again. Since the last training: {changes}")
        self.workspace.log_event(event="start", stage=stage.name, key=key)
        started = time.monotonic()
        counter = WorkCounter(self.progress)
        reset_peak_rss()
        try:
            with self.workspace.create_build_folder(stage.name, key) as out:
                if context.scratch:
                    context.scratch.mkdir(parents=True, exist_ok=True)
                paths = {one.name: one.path for one in inputs}
                summary = stage.load_module().run(params, paths, out, replace(context, progress=counter))
                missing = [name for name in stage.outputs if not (out / name).exists()]
                if missing:
                    raise RuntimeError(f"stage {stage.name} did not write {missing}")
                inputs_after = self._resolve_inputs(stage, upstream, published)
                _require_unchanged(stage, key_fields, self._collect_key_fields(stage, inputs_after))
                artifact = self.workspace.commit_artifact(
                    stage.name, key, out, {"stage": stage.name, **key_fields, "summary": summary}
                )
        except (Exception, KeyboardInterrupt) as error:
            failure = f"{type(error).__name__}: {error}"
            self.workspace.log_event(event="failed", stage=stage.name, key=key, error=failure)
            if disk_error := make_disk_full_error(error, self.workspace.root):
                raise disk_error from error
            raise
        _delete_scratch(context)
        seconds = round(time.monotonic() - started, 3)
        measured = {"seconds": seconds, "memory": peak_rss(), "machine": self.describe_machine(params)}
        self.workspace.log_event(
            event="done", stage=stage.name, key=key, **measured, work=counter.counts, summary=summary
        )
        self.progress.log(f"{stage.name}: done in {seconds:.1f} s")
        return artifact

    def describe_machine(self, params: BaseParams) -> str:
        """What the speed of a stage with these parameters depends on beside its work: the hardware and the executor."""
        return f"{describe_machine(getattr(params, 'device', 'auto'))}, {type(self.executor).__name__}"

    def find(self, name: str, upstream: Mapping[str, Artifact]) -> Artifact | None:
        """The committed artifact of a stage on these upstream artifacts; None if it would have to run."""
        stage = STAGES_BY_NAME[name]
        key_fields = self._collect_key_fields(stage, self._resolve_inputs(stage, upstream, {}))
        key = digest_json({"stage": name, **key_fields})
        return self._find_valid_artifact(stage, key, self._make_context(stage, key))

    def run_uncommitted(self, name: str, upstream: Mapping[str, Artifact], out: Path) -> Summary:
        """Run a stage on these upstream artifacts into the folder `out`; the workspace keeps nothing of it."""
        stage = STAGES_BY_NAME[name]
        inputs = {one.name: one.path for one in self._resolve_inputs(stage, upstream, {})}
        return stage.load_module().run(self.params[name], inputs, out, self._make_context(stage, "uncommitted"))

    def _find_valid_artifact(self, stage: Stage, key: str, context: StageContext) -> Artifact | None:
        """The artifact of this key, if it is committed, complete, and the stores hold what it refers to."""
        found = self.workspace.find_artifact(stage.name, key)
        if not found or not found.is_complete:
            return None
        if stage.is_valid and not resolve_function(stage.is_valid)(found.folder, context):
            return None
        return found

    def _resolve_inputs(
        self, stage: Stage, upstream: Mapping[str, Artifact], published: Mapping[str, Artifact]
    ) -> list[ResolvedInput]:
        files = [
            _resolve_output(Path(path).stem, path, path, upstream)
            for path in stage.select_inputs(self.params[stage.name])
        ]
        files += [_resolve_output(name, name, path, published) for name, path in stage.published_inputs.items()]
        for name, source, field in stage.model_inputs:
            folder = resolve_model(getattr(self.params[source], field))
            files.append(ResolvedInput(name, name, folder, model_digest(folder)))
        return files

    def collect_settings(self, stage: Stage, may_ask: bool = True) -> dict[str, Any]:
        """The part of an artifact's key that does not depend on other artifacts: code version, parameters and models.

        `may_ask`: whether a model behind a URL may be asked what it is; else it is taken for what it was.
        """
        params = self.params[stage.name]
        extras = resolve_function(stage.key_extras)(params) if stage.key_extras else {}
        if stage.server_key_extras:
            context = replace(self._make_context(stage, ""), may_ask_servers=may_ask)
            extras |= resolve_function(stage.server_key_extras)(params, context)
        return {
            "version": stage.load_module().VERSION,
            "parameters": params.model_dump(mode="json", exclude=params.fields_with_mark("unkeyed")),
            "key_extras": extras,
        }

    def _collect_key_fields(
        self, stage: Stage, inputs: Iterable[ResolvedInput], may_ask: bool = True
    ) -> dict[str, Any]:
        """Everything that shapes a stage's result, in words; its hash is the artifact's key."""
        return self.collect_settings(stage, may_ask) | {
            "inputs": {one.label: one.digest for one in inputs},
            "libraries": get_library_versions(stage.libraries),
        }

    def _make_context(self, stage: Stage, key: str) -> StageContext:
        """The context of a stage, with the folders of the stores that the graph declares for it."""
        folders = {
            Store.SCRATCH: self.workspace.scratch / f"{stage.name}-{key}",
            Store.VECTORS: self.workspace.vectors,
            Store.LOGS: self.workspace.logs / stage.name / key,
            Store.SCORES: self.workspace.scores,
        }
        declared: dict[str, Any] = {store.value: folder for store, folder in folders.items() if store in stage.stores}
        return StageContext(self.progress, executor=self.executor, **declared)

    def get_status(self) -> list[StageStatus]:
        """The state of every stage, without running any or asking a server."""
        statuses: list[StageStatus] = []
        fresh: dict[str, Artifact] = {}
        for stage in PIPELINE:
            previous = next(iter(self.workspace.list_artifacts(stage.name)), None)
            params = self.params[stage.name]
            stale_upstream = [name for name in stage.list_upstream_stages(params) if name not in fresh]
            if stale_upstream:
                state = "stale" if previous else "absent"
                statuses.append(StageStatus(stage.name, state, (f"{', '.join(stale_upstream)} first",), previous))
                continue
            try:
                key_fields = self._collect_key_fields(stage, self._resolve_inputs(stage, fresh, {}), may_ask=False)
                key = digest_json({"stage": stage.name, **key_fields})
                found = self._find_valid_artifact(stage, key, self._make_context(stage, key))
            except InputError as error:
                state = "stale" if previous else "absent"
                statuses.append(StageStatus(stage.name, state, (str(error),), previous, error))
                continue
            if found:
                fresh[stage.name] = found
                statuses.append(StageStatus(stage.name, "fresh", (), found))
            elif previous:
                statuses.append(
                    StageStatus(stage.name, "stale", describe_key_changes(previous.manifest, key_fields), previous)
                )
            else:
                statuses.append(StageStatus(stage.name, "absent", ("never ran",), None))
        return statuses


def _require_unchanged(stage: Stage, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Raise `InputError` if a table or a model changed while it was read: the result fits neither state."""
    changed = {
        name
        for part in ("key_extras", "inputs")
        for name in before[part].keys() | after[part].keys()
        if before[part].get(name) != after[part].get(name)
    }
    if changed:
        raise InputError(f"{stage.name}: {', '.join(sorted(changed))} changed while it was read. Run again.")


def describe_key_changes(manifest: Mapping[str, Any], key_fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Why a stored artifact is stale, one phrase for each difference: "parameters.top_k: 200 -> 100"."""
    found: list[str] = []
    for part in _KEY_FIELDS:
        old, new = manifest.get(part), key_fields[part]
        if not isinstance(old, dict) or not isinstance(new, dict):
            if old != new:
                found.append(f"{part}: {old} -> {new}")
            continue
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) == new.get(name):
                continue
            if part in ("inputs", "key_extras"):
                found.append(
                    f"{name} {'changed' if name in old and name in new else 'is new' if name in new else 'is gone'}"
                )
            else:
                found.append(f"{part}.{name}: {old.get(name)} -> {new.get(name)}")
    return tuple(found) or ("the stored result is damaged",)


def get_seconds_per_step(events: Sequence[Mapping[str, Any]]) -> float | None:
    """The seconds a step of the last training that ran from its first step to its last; None if there was none."""
    n_starts = Counter(event.get("key") for event in events if event.get("event") == "start")
    for event in reversed(events):
        if event.get("event") == "done" and event.get("stage") == "train" and n_starts[event["key"]] == 1:
            n_steps = event["summary"].get("n_steps")
            return float(event["seconds"]) / n_steps if n_steps else None
    return None


def make_disk_full_error(error: BaseException, root: Path) -> InputError | None:
    """An `InputError` if the failure came from a full disk, whatever library reported it; else None."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    free = shutil.disk_usage(root).free
    if not full and free > 1 << 20:
        return None
    return InputError(
        f"the disk that holds {root} is full ({free / 1e6:.1f} MB free): {error}. Nothing unfinished is kept; "
        "free some space (`prep gc` deletes what no publication uses) and run again."
    )


def _resolve_output(name: str, label: str, path: str, artifacts: Mapping[str, Artifact]) -> ResolvedInput:
    """The input `name` from "step/file" among `artifacts`."""
    step, output = path.split("/", 1)
    artifact = artifacts[step]
    return ResolvedInput(name, label, artifact.folder / output, artifact.digest_output(output))


def _delete_scratch(context: StageContext) -> None:
    if context.scratch:
        shutil.rmtree(context.scratch, ignore_errors=True)
