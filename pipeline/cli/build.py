"""The commands that make something: each is a function from its options to a printable result."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pipeline.cli.config_template import render_commented_toml
from pipeline.cli.output import CommandResult
from pipeline.cli.session import open_read_only, open_session
from pipeline.cli.summaries import format_gate_verdict, format_summary
from pipeline.workflow.artifact_store import Artifact, Workspace
from pipeline.workflow.graph import PIPELINE, PUBLISHED_OUTPUTS
from pipeline.workflow.publish import RERANKER, list_published_outputs, read_publication
from pipeline.workflow.remote_files import POINTER_FILE, redact_url, upload_publication
from stages.core.errors import InputError
from stages.core.files import write_durably


def write_config(path: Path, force: bool) -> CommandResult:
    """Write the commented settings file."""
    if path.exists() and not force:
        raise InputError(f"{path} is there already. --force overwrites it.")
    try:
        write_durably(path, render_commented_toml())
    except OSError as error:
        raise InputError(f"{path} can't be written: {error.strerror}") from error
    return CommandResult({"written": str(path)}, [f"wrote {path}: set `tables` under [pairs], then run `prep refresh`"])


def build_stage(target: str, sections: Collection[str], options: Mapping[str, Any]) -> CommandResult:
    """Bring a step up to date; report it and the steps before it whose settings stand in `sections`."""
    with open_session(options, trains=target in ("train", "evaluate"), remembers=True) as (runner, _):
        runner.build(target)
    steps = [stage.name for stage in PIPELINE if stage.name in runner.artifacts and stage.section in sections]
    parts = [part for step in steps for part in format_summary(step, runner.artifacts)]
    if not runner.executed_stages:
        parts.append("nothing to do: everything is up to date")
    parts += list_result_files(runner.workspace, {step: runner.artifacts[step] for step in steps})
    return CommandResult(
        {
            "ran": runner.executed_stages,
            "artifacts": {name: str(artifact.folder) for name, artifact in runner.artifacts.items()},
            "summary": {name: artifact.summary for name, artifact in runner.artifacts.items()},
        },
        parts,
    )


def run_refresh(options: Mapping[str, Any], force: bool) -> CommandResult:
    """Every step, then publish."""
    from pipeline.report.page import render_report
    from pipeline.workflow.refresh import refresh
    from stages.evaluation.conclusions import describe_publication

    with open_session(options, trains=True, remembers=True) as (runner, settings):
        refresh_params = settings.validate_refresh_params()
        refreshed = refresh(runner, refresh_params.keep, force, render_report)
        is_uploaded, upload_error = False, None
        try:
            is_uploaded = bool(refresh_params.publish_to) and upload_publication(
                runner.workspace, str(refresh_params.publish_to)
            )
        except InputError as error:
            upload_error = (
                error  # raised below: the settings are remembered first, so that the next refresh tries again
            )
    if upload_error:
        raise InputError(
            f"{refreshed.status} here as {refreshed.publication}, but not at publish_to: {upload_error}"
        ) from upload_error
    parts = [part for stage in PIPELINE for part in format_summary(stage.name, runner.artifacts)]
    current, has_reranker = options["workspace"] / "current", refreshed.ranking == RERANKER
    if refreshed.n_moved_queries:
        parts.append(f"{refreshed.n_moved_queries:,} queries changed their split, because rows were added or changed")
    if refreshed.gate_verdict:
        parts.append(format_gate_verdict(refreshed.gate_verdict))
    if refreshed.status == "unchanged":
        parts.append(f"nothing to do: {current} is up to date")
    else:
        parts += [
            f"published in {current}:",
            f"  {current}/report.html    the refresh on one page, for a browser",
            f"  {current}/mined.jsonl    the training file, with scores and ids",
            f"  {current}/metrics.json   all figures of the evaluation",
            *([f"  {current}/reranker       load it with sentence_transformers.CrossEncoder"] * has_reranker),
            "`prep show QUERY` says why each candidate is a negative or not",
        ]
    parts.append(describe_publication(runner.artifacts["evaluate"].summary["verdict"]["test"], refreshed.ranking))
    if is_uploaded:
        parts.append(
            f"copied to {redact_url(str(refresh_params.publish_to))}; {POINTER_FILE} there names the newest publication"
        )
    return CommandResult(
        {
            "status": refreshed.status,
            "publication": refreshed.publication,
            "ranking": refreshed.ranking,
            "copied": is_uploaded,
            "ran": refreshed.executed_stages,
            "gate": refreshed.gate_verdict,
            "moved": refreshed.n_moved_queries,
            "summary": {name: artifact.summary for name, artifact in runner.artifacts.items()},
        },
        parts,
    )


def list_result_files(workspace: Workspace, artifacts: Mapping[str, Artifact]) -> list[str]:
    """The files of these artifacts that readers use: by their names in current/, or as not published yet."""
    publication = read_publication(workspace.current) or {"artifacts": {}, "ranking": RERANKER}
    readable = list_published_outputs(publication["ranking"])
    published, left_out, unpublished = list[str](), list[str](), list[str]()
    for path in PUBLISHED_OUTPUTS:
        step, name = path.split("/", 1)
        if step in artifacts:
            is_current = publication["artifacts"].get(step) == artifacts[step].key
            (unpublished if not is_current else published if path in readable else left_out).append(name)
    lines = [f"in {workspace.current}: {', '.join(published)}"] if published else []
    if left_out:
        lines.append(f"left out: {', '.join(left_out)}, which ranks worse than the embedder (--json gives the path)")
    if unpublished:
        lines.append(f"not published yet: {', '.join(unpublished)} (`prep refresh` publishes, --json gives the paths)")
    return lines


def run_gc(options: Mapping[str, Any], keep: int | None, dry_run: bool = False) -> CommandResult:
    """Delete what no publication uses; with `dry_run`, only count it, which needs no lock."""
    from pipeline.workflow.garbage_collection import collect_garbage, find_garbage

    if dry_run:
        runner, settings = open_read_only(options)
        counts = find_garbage(runner.workspace, keep or settings.validate_refresh_params().keep).count()
    else:
        with open_session(options, fetch=False) as (runner, settings):
            counts = collect_garbage(runner.workspace, keep or settings.validate_refresh_params().keep)
    words = ", ".join(f"{counts[name]} {name}" for name in ("publications", "artifacts", "encoders"))
    deleted = "would delete" if dry_run else "deleted"
    return CommandResult(counts, [f"{deleted} {words} and files of no use to them: {counts['bytes'] / 1e6:,.1f} MB"])
