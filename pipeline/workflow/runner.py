"""Runs stages by key: a committed artifact of the same key is a hit; anything else is run, checked and committed."""

import errno
import importlib.metadata
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.workflow.artifact_store import Artifact, Workspace, digest_of
from pipeline.workflow.graph import PIPELINE, STAGES, Stage
from stages.core.errors import GateRefused, InputError
from stages.core.executor import Engine, InProcess
from stages.core.memory import count_anew, peak
from stages.core.model_files import model_digest, resolve_model
from stages.core.params import Params
from stages.core.schemas import Progress, Tools

_KEY_PARTS = ("version", "parameters", "identity", "inputs", "libraries")


@dataclass(frozen=True)
class Standing:
    """How one stage stands: "fresh" (would be a hit), "stale" (would run, and why) or "absent" (never ran)."""

    stage: str
    state: str
    reasons: tuple[str, ...]
    artifact: Artifact | None


class Runner:
    """Brings stages of one workspace up to date under one set of parameters (stage name -> its Params)."""

    def __init__(
        self, workspace: Workspace, params: Mapping[str, Params], progress: Progress, engine: Engine | None = None
    ) -> None:
        self.workspace = workspace
        self.params = params
        self.progress = progress
        self.engine = engine or InProcess()
        self.done: dict[str, Artifact] = {}
        self.ran: list[str] = []

    def bring(self, name: str) -> Artifact:
        """Bring one stage, and first whatever is upstream of it, up to date. Raises `GateRefused` on a collapse."""
        if name in self.done:
            return self.done[name]
        stage = STAGES[name]
        upstream = {source: self.bring(source) for source in stage.upstream(self.params[name])}
        artifact = self.run(stage, self.params[name], upstream)
        self.done[name] = artifact
        if artifact.summary.get("collapse"):
            raise GateRefused(
                f"the reranker collapsed: {artifact.summary['collapse']}. It is not published; `current` is untouched. "
                "Try a smaller learning rate, more queries, or a base that has been trained for ranking."
            )
        return artifact

    def run(
        self,
        stage: Stage,
        params: Params,
        upstream: Mapping[str, Artifact],
        extra: Mapping[str, Path] | None = None,
        extra_digests: Mapping[str, str] | None = None,
    ) -> Artifact:
        """Run one stage unless its key is committed. `extra` are inputs from outside the graph, with their digests."""
        inputs = self._inputs(stage, params, upstream) | dict(extra or {})
        parts = self._parts(stage, params, upstream, extra_digests)
        key = digest_of({"stage": stage.name, **parts})
        tools = self._tools(stage, key)
        found = self._hit(stage, key, inputs)
        if found:
            shutil.rmtree(tools.scratch, ignore_errors=True)  # a kill may have come right after the commit
            self.workspace.event(event="hit", stage=stage.name, key=key)
            return found
        if self.workspace.folder(stage.name, key).exists():
            self.progress.say(f"{stage.name}: the stored result is damaged or incomplete; it is made again")
        self.ran.append(stage.name)
        self.progress.say(f"{stage.name}: running")
        self.workspace.event(event="start", stage=stage.name, key=key)
        started = time.monotonic()
        count_anew()
        try:
            with self.workspace.building(stage.name, key) as out:
                tools.scratch.mkdir(parents=True, exist_ok=True)
                summary = stage.load().run(params, inputs, out, tools)
                missing = [name for name in stage.outputs if not (out / name).exists()]
                if missing:
                    raise RuntimeError(f"stage {stage.name} did not write {missing}")
                self._require_unchanged(stage, parts, self._parts(stage, params, upstream, extra_digests))
                artifact = self.workspace.commit(
                    stage.name, key, out, {"stage": stage.name, **parts, "summary": summary}
                )
        except (Exception, KeyboardInterrupt) as error:
            failure = f"{type(error).__name__}: {error}"
            self.workspace.event(event="failed", stage=stage.name, key=key, error=failure)
            if full := out_of_space(error, self.workspace.root):
                raise full from error
            raise
        shutil.rmtree(tools.scratch, ignore_errors=True)
        seconds = round(time.monotonic() - started, 3)
        self.workspace.event(event="done", stage=stage.name, key=key, seconds=seconds, memory=peak(), summary=summary)
        self.progress.say(f"{stage.name}: done in {seconds:.1f} s")
        return artifact

    def _hit(self, stage: Stage, key: str, inputs: Mapping[str, Path]) -> Artifact | None:
        """The committed artifact of this key, if it is whole, and what it stands for outside its folder is too."""
        found = self.workspace.find(stage.name, key)
        intact = getattr(stage.load(), "intact", None)
        if found and intact and not intact(inputs, found.folder, self._tools(stage, key)):
            return None
        return found

    def _inputs(self, stage: Stage, params: Params, upstream: Mapping[str, Artifact]) -> dict[str, Path]:
        models = {name: resolve_model(getattr(self.params[source], field)) for name, source, field in stage.models}
        return {Path(path).stem: _locate(path, upstream) for path in stage.reads(params)} | models

    def _parts(
        self, stage: Stage, params: Params, upstream: Mapping[str, Artifact], extra: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        models = {n: model_digest(resolve_model(getattr(self.params[s], field))) for n, s, field in stage.models}
        return key_parts(stage, params, upstream, {**models, **(extra or {})})

    def _tools(self, stage: Stage, key: str) -> Tools:
        return Tools(
            progress=self.progress,
            scratch=self.workspace.scratch / f"{stage.name}-{key}",
            vectors=self.workspace.vectors,
            logs=self.workspace.logs / stage.name / key,
            engine=self.engine,
        )

    def _require_unchanged(self, stage: Stage, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        """Raise `InputError` where a table or a model changed while it was read: the result fits neither state.

        The rows of a database are left out: they are read at one moment, and a busy one changes all the time.
        """
        changed = {n for n in before["identity"] if n != "sql" and before["identity"][n] != after["identity"].get(n)}
        changed |= {n for n in before["inputs"] if before["inputs"][n] != after["inputs"].get(n)}
        if changed:
            raise InputError(f"{stage.name}: {', '.join(sorted(changed))} changed while it was read. Run again.")

    def standings(self) -> list[Standing]:
        """How every stage stands, without running any: "prep status"."""
        standings: list[Standing] = []
        fresh: dict[str, Artifact] = {}
        for stage in PIPELINE:
            previous = next(iter(self.workspace.artifacts(stage.name)), None)
            params = self.params[stage.name]
            waiting = [name for name in stage.upstream(params) if name not in fresh]
            if waiting:
                state = "stale" if previous else "absent"
                standings.append(Standing(stage.name, state, (f"{', '.join(waiting)} first",), previous))
                continue
            try:
                parts = self._parts(stage, params, fresh)
                found = self._hit(stage, digest_of({"stage": stage.name, **parts}), self._inputs(stage, params, fresh))
            except InputError as error:
                standings.append(Standing(stage.name, "stale" if previous else "absent", (str(error),), previous))
                continue
            if found:
                fresh[stage.name] = found
                standings.append(Standing(stage.name, "fresh", (), found))
            elif previous:
                standings.append(Standing(stage.name, "stale", differences(previous.manifest, parts), previous))
            else:
                standings.append(Standing(stage.name, "absent", ("never ran",), None))
        return standings


def key_parts(
    stage: Stage, params: Params, upstream: Mapping[str, Artifact], extra_digests: Mapping[str, str]
) -> dict[str, Any]:
    """Everything that shapes a stage's result, in words; its hash is the artifact's key."""
    module = stage.load()
    identity = getattr(module, "identity", None)
    return {
        "version": module.VERSION,
        "parameters": params.model_dump(mode="json", exclude=params.marked("unkeyed")),
        "identity": identity(params) if identity else {},
        "inputs": {path: upstream[path.split("/")[0]].digest(path.split("/", 1)[1]) for path in stage.reads(params)}
        | dict(extra_digests),
        "libraries": {name: installed(name) for name in stage.libraries},
    }


def installed(library: str) -> str:
    """The version of a library, or "absent"."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:  # faiss-gpu in the place of faiss-cpu, say
        return "absent"


def differences(manifest: Mapping[str, Any], parts: Mapping[str, Any]) -> tuple[str, ...]:
    """Why an artifact no longer fits, one phrase a difference: "parameters.depth: 200 -> 100"."""
    found: list[str] = []
    for part in _KEY_PARTS:
        old, new = manifest.get(part), parts[part]
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


def out_of_space(error: BaseException, root: Path) -> InputError | None:
    """An `InputError` where the failure came from a full disk, however the library that met it worded it."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    free = shutil.disk_usage(root).free
    if not full and free > 1 << 20:
        return None
    return InputError(
        f"the disk that holds {root} is full ({free / 1e6:.1f} MB free): {error}. Nothing half-written is kept; "
        "free some space (`prep gc` drops what no publication uses) and run again."
    )


def _locate(path: str, upstream: Mapping[str, Artifact]) -> Path:
    stage, name = path.split("/", 1)
    return upstream[stage].folder / name
