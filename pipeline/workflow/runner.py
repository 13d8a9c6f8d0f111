"""Runs stages by key: a committed artifact of the same key is a hit; anything else is run, checked and committed."""

import errno
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.workflow.artifact_store import Artifact, Workspace, digest_json
from pipeline.workflow.graph import PIPELINE, STAGES_BY_NAME, Stage
from stages.core.context import Progress, StageContext
from stages.core.errors import InputError, QualityGateError
from stages.core.executor import Executor, InProcessExecutor
from stages.core.libraries import get_library_versions
from stages.core.memory import peak_rss, reset_peak_rss
from stages.core.model_files import model_digest, resolve_model
from stages.core.params import BaseParams

_KEY_FIELDS = ("version", "parameters", "identity", "inputs", "libraries")


@dataclass(frozen=True)
class StageStatus:
    """How one stage stands: "fresh" (would be a hit), "stale" (would run, and why) or "absent" (never ran)."""

    stage: str
    state: str
    reasons: tuple[str, ...]
    artifact: Artifact | None


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

    def build(self, name: str) -> Artifact:
        """Bring one stage, and first whatever is upstream of it, up to date. Raises `QualityGateError` on a
        collapse."""
        if name in self.artifacts:
            return self.artifacts[name]
        stage = STAGES_BY_NAME[name]
        upstream = {source: self.build(source) for source in stage.list_upstream_stages(self.params[name])}
        artifact = self.run_stage(stage, self.params[name], upstream)
        self.artifacts[name] = artifact
        if artifact.summary.get("collapse"):
            raise QualityGateError(
                f"the reranker collapsed: {artifact.summary['collapse']}. It is not published; `current` is untouched. "
                "Try a smaller learning rate, more queries, or a base that has been trained for ranking."
            )
        return artifact

    def run_stage(
        self,
        stage: Stage,
        params: BaseParams,
        upstream: Mapping[str, Artifact],
        external_inputs: Mapping[str, Path] | None = None,
        external_digests: Mapping[str, str] | None = None,
    ) -> Artifact:
        """Run one stage unless its key is committed. `external_inputs` are inputs from outside the graph, with their
        digests."""
        inputs = self._collect_input_paths(stage, params, upstream) | dict(external_inputs or {})
        key_fields = self._collect_key_fields(stage, params, upstream, external_digests)
        key = digest_json({"stage": stage.name, **key_fields})
        context = self._make_context(stage, key)
        cached = self._find_valid_artifact(stage, key, inputs)
        if cached:
            shutil.rmtree(context.scratch_dir, ignore_errors=True)  # a kill may have come right after the commit
            self.workspace.log_event(event="hit", stage=stage.name, key=key)
            return cached
        if self.workspace.get_artifact_folder(stage.name, key).exists():
            self.progress.log(f"{stage.name}: the stored result is damaged or incomplete; it is made again")
        self.executed_stages.append(stage.name)
        self.progress.log(f"{stage.name}: running")
        self.workspace.log_event(event="start", stage=stage.name, key=key)
        started = time.monotonic()
        reset_peak_rss()
        try:
            with self.workspace.create_build_folder(stage.name, key) as out:
                context.scratch_dir.mkdir(parents=True, exist_ok=True)
                summary = stage.load_module().run(params, inputs, out, context)
                missing = [name for name in stage.outputs if not (out / name).exists()]
                if missing:
                    raise RuntimeError(f"stage {stage.name} did not write {missing}")
                self._require_unchanged(
                    stage, key_fields, self._collect_key_fields(stage, params, upstream, external_digests)
                )
                artifact = self.workspace.commit_artifact(
                    stage.name, key, out, {"stage": stage.name, **key_fields, "summary": summary}
                )
        except (Exception, KeyboardInterrupt) as error:
            failure = f"{type(error).__name__}: {error}"
            self.workspace.log_event(event="failed", stage=stage.name, key=key, error=failure)
            if disk_error := make_disk_full_error(error, self.workspace.root):
                raise disk_error from error
            raise
        shutil.rmtree(context.scratch_dir, ignore_errors=True)
        seconds = round(time.monotonic() - started, 3)
        self.workspace.log_event(
            event="done", stage=stage.name, key=key, seconds=seconds, memory=peak_rss(), summary=summary
        )
        self.progress.log(f"{stage.name}: done in {seconds:.1f} s")
        return artifact

    def _find_valid_artifact(self, stage: Stage, key: str, inputs: Mapping[str, Path]) -> Artifact | None:
        """The committed artifact of this key, if it is whole, and what it stands for outside its folder is too."""
        found = self.workspace.find_artifact(stage.name, key)
        is_valid = getattr(stage.load_module(), "is_valid", None)
        if found and is_valid and not is_valid(inputs, found.folder, self._make_context(stage, key)):
            return None
        return found

    def _collect_input_paths(
        self, stage: Stage, params: BaseParams, upstream: Mapping[str, Artifact]
    ) -> dict[str, Path]:
        models = {
            name: resolve_model(getattr(self.params[source], field)) for name, source, field in stage.model_inputs
        }
        return {Path(path).stem: _locate_output(path, upstream) for path in stage.select_inputs(params)} | models

    def _collect_key_fields(
        self,
        stage: Stage,
        params: BaseParams,
        upstream: Mapping[str, Artifact],
        external_digests: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        models = {n: model_digest(resolve_model(getattr(self.params[s], field))) for n, s, field in stage.model_inputs}
        return collect_key_fields(stage, params, upstream, {**models, **(external_digests or {})})

    def _make_context(self, stage: Stage, key: str) -> StageContext:
        return StageContext(
            progress=self.progress,
            scratch_dir=self.workspace.scratch / f"{stage.name}-{key}",
            vectors_dir=self.workspace.vectors,
            logs_dir=self.workspace.logs / stage.name / key,
            executor=self.executor,
        )

    def _require_unchanged(self, stage: Stage, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        """Raise `InputError` where a table or a model changed while it was read: the result fits neither state.

        The rows of a database are left out: they are read at one moment, and a busy one changes all the time.
        """
        changed = {n for n in before["identity"] if n != "sql" and before["identity"][n] != after["identity"].get(n)}
        changed |= {n for n in before["inputs"] if before["inputs"][n] != after["inputs"].get(n)}
        if changed:
            raise InputError(f"{stage.name}: {', '.join(sorted(changed))} changed while it was read. Run again.")

    def get_status(self) -> list[StageStatus]:
        """How every stage stands, without running any: "prep status"."""
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
                key_fields = self._collect_key_fields(stage, params, fresh)
                found = self._find_valid_artifact(
                    stage,
                    digest_json({"stage": stage.name, **key_fields}),
                    self._collect_input_paths(stage, params, fresh),
                )
            except InputError as error:
                statuses.append(StageStatus(stage.name, "stale" if previous else "absent", (str(error),), previous))
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


def collect_key_fields(
    stage: Stage, params: BaseParams, upstream: Mapping[str, Artifact], external_digests: Mapping[str, str]
) -> dict[str, Any]:
    """Everything that shapes a stage's result, in words; its hash is the artifact's key."""
    module = stage.load_module()
    key_extras = getattr(module, "key_extras", None)
    return {
        "version": module.VERSION,
        "parameters": params.model_dump(mode="json", exclude=params.fields_with_mark("unkeyed")),
        "identity": key_extras(params) if key_extras else {},
        "inputs": {
            path: upstream[path.split("/")[0]].digest_output(path.split("/", 1)[1])
            for path in stage.select_inputs(params)
        }
        | dict(external_digests),
        "libraries": get_library_versions(stage.libraries),
    }


def describe_key_changes(manifest: Mapping[str, Any], key_fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Why an artifact no longer fits, one phrase a difference: "parameters.depth: 200 -> 100"."""
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
            if part in ("inputs", "identity"):
                found.append(
                    f"{name} {'changed' if name in old and name in new else 'is new' if name in new else 'is gone'}"
                )
            else:
                found.append(f"{part}.{name}: {old.get(name)} -> {new.get(name)}")
    return tuple(found) or ("the stored result is damaged",)


def make_disk_full_error(error: BaseException, root: Path) -> InputError | None:
    """An `InputError` where the failure came from a full disk, however the library that met it worded it."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    free = shutil.disk_usage(root).free
    if not full and free > 1 << 20:
        return None
    return InputError(
        f"the disk that holds {root} is full ({free / 1e6:.1f} MB free): {error}. Nothing half-written is kept; "
        "free some space (`prep gc` drops what no publication uses) and run again."
    )


def _locate_output(path: str, upstream: Mapping[str, Artifact]) -> Path:
    stage, name = path.split("/", 1)
    return upstream[stage].folder / name
