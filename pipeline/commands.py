"""What each command does, as a function from its options to a printable result."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.config import Settings, commented_toml, load_settings, remember
from pipeline.graph import PIPELINE
from pipeline.printing import Result, Table
from pipeline.progress import progress_for
from pipeline.runner import Runner
from pipeline.sources import spooled
from pipeline.store import MANIFEST, Artifact, Workspace, write_durably
from stages.errors import InputError

TARGETS = {
    "build-pairs": "pairs",
    "encode": "encode",
    "mine-negatives": "compose",
    "train": "train",
    "evaluate": "evaluate",
}
SECTIONS = {
    "build-pairs": "pairs",
    "encode": "encode",
    "mine-negatives": "mine",
    "train": "train",
    "evaluate": "evaluate",
}
_COMMON = ("workspace", "config", "as_json", "verbose", "quiet")


def write_config(path: Path, force: bool) -> Result:
    """Write the commented settings file."""
    if path.exists() and not force:
        raise InputError(f"{path} is there already. --force overwrites it.")
    try:
        write_durably(path, commented_toml())
    except OSError as error:
        raise InputError(f"{path} can't be written: {error.strerror}") from error
    return Result({"written": str(path)}, [f"wrote {path}: set `tables` under [pairs], then run `prep refresh`"])


@contextmanager
def opened(options: Mapping[str, Any], section: str | None) -> Iterator[tuple[Runner, Settings]]:
    """A runner on the locked workspace under the settings of this command; remembers its flags where no file holds
    them."""
    workspace = Workspace(options["workspace"])
    given = {name: v for name, v in options.items() if name not in _COMMON and v is not None and v != ()}
    progress = progress_for(options["quiet"], options["verbose"])
    try:
        with workspace.locked():
            given = spooled(workspace, given)
            settings, from_file = load_settings(options["config"], workspace, section, given)
            yield Runner(workspace, settings.params(), progress), settings
            if section and not from_file:
                remember(workspace, section, given)
    finally:
        progress.close()


def bring(command: str, options: Mapping[str, Any]) -> Result:
    """Bring a command's stage up to date and say what came out of it."""
    target = TARGETS[command]
    with opened(options, SECTIONS[command]) as (runner, _):
        runner.bring(target)
    shown = [stage.name for stage in PIPELINE if stage.name in runner.done and stage.section == SECTIONS[command]]
    parts: list[str | Table] = []
    for name in shown:
        parts += summary_parts(name, runner.done[name])
    if not runner.ran:
        parts.append("nothing to do: everything is up to date")
    parts += [f"wrote {runner.done[name].folder}" for name in shown if name in runner.ran]
    return Result(
        {
            "ran": runner.ran,
            "artifacts": {name: str(artifact.folder) for name, artifact in runner.done.items()},
            "summary": {name: artifact.summary for name, artifact in runner.done.items()},
        },
        parts,
    )


def refresh(options: Mapping[str, Any], force: bool) -> Result:
    """The whole road, published."""
    from pipeline.refresh import refresh as run

    with opened(options, "refresh") as (runner, settings):
        outcome = run(runner, settings.refresh().keep, force)
    parts: list[str | Table] = []
    for stage in PIPELINE:
        parts += summary_parts(stage.name, runner.done[stage.name])
    current = options["workspace"] / "current"
    if outcome.moved:
        parts.append(f"{outcome.moved:,} questions changed their split, because new rows joined two components")
    if outcome.gate:
        parts.append(gate_line(outcome.gate))
    if outcome.status == "unchanged":
        parts.append(f"nothing to do: {current} is up to date ({outcome.publication})")
    else:
        parts += [
            f"published {outcome.publication}; {current} points to it",
            f"  look next:  {current}/mined.jsonl    the training file, with scores and ids",
            f"              {current}/report.html    the whole refresh on one page, for a browser",
            f"              {current}/metrics.json   every figure above, and more",
            f"              {current}/reranker       load it with sentence_transformers.CrossEncoder",
            "              prep show QUESTION            why each candidate is a negative, or is not",
        ]
    return Result(
        {
            "status": outcome.status,
            "publication": outcome.publication,
            "ran": outcome.ran,
            "gate": outcome.gate,
            "moved": outcome.moved,
            "summary": {name: artifact.summary for name, artifact in runner.done.items()},
        },
        parts,
    )


def gate_line(verdict: Mapping[str, Any]) -> str:
    """The gate's finding in one line."""
    if verdict["difference"] is None:
        return "against the published reranker: there is no test question to compare on"
    sure = "" if verdict["low"] is None else f" [{verdict['low']:+.4f}, {verdict['high']:+.4f}]"
    change = f"{verdict['old']:.4f} -> {verdict['new']:.4f}, difference {verdict['difference']:+.4f}{sure}"
    return f"against the published reranker: {verdict['measure']} {change}: {verdict['verdict']}"


def summary_parts(stage: str, artifact: Artifact) -> list[str | Table]:
    """What a stage reported, for a person."""
    summary = artifact.summary
    if stage == "pairs":
        from stages.pairs.build import funnel_lines

        return ["", *funnel_lines(summary)]
    if stage == "mask":
        rows = [
            [verdict, reason, f"{n:,}"]
            for verdict, reasons in summary["verdicts"].items()
            for reason, n in reasons.items()
        ]
        return [Table(f"mask: {summary['rule']}", ["verdict", "reason", "candidates"], rows)]
    if stage == "evaluate":
        from stages.evaluation.evaluate import metrics_table

        metrics = json.loads((artifact.folder / "metrics.json").read_text())
        lists = metrics["lists"]["test"]
        title = f"test: {lists['queries']:,} questions, the retriever's best {metrics['parameters']['top_k']} reranked"
        header, *rows = metrics_table(metrics) or [["test: no questions"]]
        return [Table(title, header, rows)]
    return [
        f"{stage}: "
        + ", ".join(f"{name.replace('_', ' ')} {_number(v)}" for name, v in summary.items() if v is not None)
    ]


def _number(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {_number(v)}" for name, v in value.items()) + ")"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def status(options: Mapping[str, Any]) -> Result:
    """How everything stands; takes no lock and runs nothing."""
    from pipeline.refresh import broken_publications, current_publication

    workspace = Workspace(options["workspace"])
    settings, _ = load_settings(options["config"], workspace, None, {})
    runner = Runner(workspace, settings.params(), progress_for(True, False))
    rows, stages = [], []
    for standing in runner.standings():
        artifact = standing.artifact
        made = (artifact.folder / MANIFEST).stat().st_mtime if artifact else None
        why = "; ".join(standing.reasons)
        rows.append([standing.stage, standing.state, age(made), why])
        stages.append({"stage": standing.stage, "state": standing.state, "made": made, "why": list(standing.reasons)})
    published = current_publication(workspace)
    data: dict[str, Any] = {"stages": stages, "published": None}
    parts: list[str | Table] = [Table(f"{workspace.root}", ["stage", "state", "age", "why"], rows, frozenset({"why"}))]
    if published is None:
        parts.append("nothing is published yet: `prep refresh` does it")
    else:
        made = workspace.current.stat().st_mtime
        broken = broken_publications(workspace)
        data["published"] = {"name": workspace.current.resolve().name, "made": made, "broken": broken}
        parts.append(f"published: {workspace.current.resolve().name}, {age(made)} old")
        parts += [f"damaged: {path}; the next `prep refresh` makes it again" for path in broken]
    return Result(data, parts)


def age(made: float | None) -> str:
    """A time span in the largest unit that fits: "3 h"."""
    if made is None:
        return "-"
    seconds = max(0.0, time.time() - made)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def show_query(options: Mapping[str, Any], query: str, top: int) -> Result:
    """One query with its positives and its judged candidates."""
    from stages.negatives.show import show

    with opened(options, None) as (runner, _):
        runner.bring("mask")
    stems = {"queries": "pairs", "corpus": "pairs", "judged": "search", "verdicts": "mask"}
    found, frame = show(query, {stem: runner.done[stage].folder / f"{stem}.parquet" for stem, stage in stems.items()})
    documents = frame.to_dicts()
    positives = [row for row in documents if row["verdict"] == "positive"]
    others = [row for row in documents if row["verdict"] != "positive"][:top]
    rows = [
        [_rank(row), f"{row['score']:.3f}", row["verdict"], row["explanation"], row["doc_id"], _short(row["text"])]
        for row in [*positives, *others]
    ]
    return Result(
        {**found, "documents": [*positives, *others]},
        [
            f"{found['query_id']} ({found['split']}): {found['query']}",
            Table("", ["rank", "score", "verdict", "why", "document", "text"], rows, frozenset({"text", "why"})),
        ],
    )


def _rank(row: Mapping[str, Any]) -> str:
    return "-" if row["rank"] is None else str(row["rank"])


def _short(text: str) -> str:
    return text if len(text) <= 160 else text[:159].rstrip() + "…"


def gc(options: Mapping[str, Any], keep: int | None) -> Result:
    """Drop what no publication uses."""
    from pipeline.refresh import collect

    with opened(options, None) as (runner, settings):
        dropped = collect(runner.workspace, keep or settings.refresh().keep)
    counts = ", ".join(f"{dropped[name]} {name}" for name in ("publications", "artifacts", "encoders"))
    return Result(dropped, [f"dropped {counts}: {dropped['bytes'] / 1e6:,.1f} MB"])
