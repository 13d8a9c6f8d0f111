"""How a command opens a workspace: locked, to change it; or as it is, to look only."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipeline.cli.progress import make_progress
from pipeline.executors.factory import open_executor
from pipeline.workflow.artifact_store import Artifact, UnwritableWorkspaceError, Workspace
from pipeline.workflow.config import PipelineSettings, load_settings, remember_settings
from pipeline.workflow.publish import find_published_artifacts
from pipeline.workflow.remote_files import fetch_files, find_cached_files
from pipeline.workflow.remote_tables import replace_stdin_tables
from pipeline.workflow.runner import Runner
from stages.core.context import NullProgress
from stages.core.errors import InputError, PrepError, WorkspaceBusyError
from stages.training import distributed


@contextmanager
def open_session(
    options: Mapping[str, Any], *, trains: bool = False, remembers: bool = False, fetch: bool = True
) -> Iterator[tuple[Runner, PipelineSettings]]:
    """A runner on the locked workspace under the settings of this command. Tables behind URLs are fetched.

    `trains`: the command may train, so it refuses to run in several copies. `remembers`: later commands use what this
    one was given, if no file holds the settings.
    """
    if trains:
        distributed.check_launcher()
    workspace = Workspace(options["workspace"])
    progress = make_progress(options["quiet"], options["verbose"])
    try:
        with workspace.lock(), open_executor(options.get("executor", "local"), progress) as executor:
            given = replace_stdin_tables(workspace, options["given"])
            settings, from_file = load_settings(options["config"], workspace, given)
            if notice := settings.describe_given() if from_file else settings.describe_remembered():
                progress.log(notice)
            settings.local_paths = (fetch_files if fetch else find_cached_files)(
                workspace, settings.sections.get("pairs", {})
            )
            yield Runner(workspace, settings.validate_params(), progress, executor), settings
            if remembers and not from_file:
                remember_settings(workspace, given)
    finally:
        progress.close()


def open_read_only(options: Mapping[str, Any]) -> tuple[Runner, PipelineSettings]:
    """A runner that only looks: no lock is taken, nothing is fetched or written."""
    workspace = Workspace(options["workspace"])
    workspace.require_current_layout()
    settings, _ = load_settings(options["config"], workspace, options["given"])
    settings.local_paths = find_cached_files(workspace, settings.sections.get("pairs", {}))
    return Runner(workspace, settings.validate_params(), NullProgress()), settings


@dataclass(frozen=True)
class LoadedArtifacts:
    """The artifacts that a command reads; `notice` is the reason if they are not of the current tables and settings."""

    runner: Runner
    artifacts: Mapping[str, Artifact]
    notice: str | None = None

    @property
    def notices(self) -> list[str]:
        """The notice as lines to print."""
        return [self.notice] if self.notice else []


def load_artifacts(options: Mapping[str, Any], needed: Collection[str], wanted: str | None = None) -> LoadedArtifacts:
    """The artifacts of the steps in `needed`, and that of `wanted` if there is one.

    They are taken as they are if they are up to date, which needs no lock. Else they are brought up to date. If that
    is impossible, because another run holds the workspace, it can't be written or the tables are not there, those of
    the publication are taken.
    """
    runner, _ = open_read_only(options)
    statuses = {status.stage: status for status in runner.get_status()}
    fresh = {name: one.artifact for name, one in statuses.items() if one.state == "fresh" and one.artifact}
    if fresh.keys() >= {*needed, wanted or "pairs"}:
        return LoadedArtifacts(runner, fresh)
    try:
        if error := statuses["pairs"].error:
            raise error
        return _build_artifacts(options, needed, wanted)
    except (WorkspaceBusyError, UnwritableWorkspaceError) as error:
        reason: PrepError = error
    except InputError as error:
        if error is not statuses["pairs"].error:
            raise
        reason = error
    if fresh.keys() >= set(needed):
        return LoadedArtifacts(runner, fresh)
    published = find_published_artifacts(runner.workspace)
    if not published.keys() >= set(needed):
        raise reason
    return LoadedArtifacts(runner, published, f"these are the published results, since {reason}")


def _build_artifacts(options: Mapping[str, Any], needed: Collection[str], wanted: str | None) -> LoadedArtifacts:
    with open_session(options) as (runner, _):
        for name in needed:
            runner.build(name)
        if wanted:
            try:
                runner.build(wanted)
            except InputError as error:  # a person may want to see why nothing is left
                runner.progress.log(f"{wanted} has no result: {error}")
        return LoadedArtifacts(runner, runner.artifacts)
