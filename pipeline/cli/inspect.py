"""What the commands do that only look: status, show, calibrate and audit."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.cli.build import opened
from pipeline.cli.output import Result, Table
from pipeline.cli.progress import progress_for
from pipeline.workflow.artifact_store import MANIFEST, Artifact, Workspace
from pipeline.workflow.config import load_settings
from pipeline.workflow.remote_files import at_hand
from pipeline.workflow.runner import Runner
from stages.core.errors import GateRefused, InputError, WorkspaceBusy


def status(options: Mapping[str, Any]) -> Result:
    """How everything stands; takes no lock and runs nothing."""
    from pipeline.workflow.publish import latest_publication, refused

    workspace = Workspace(options["workspace"])
    settings, _ = load_settings(options["config"], workspace, None, {})
    settings.here = at_hand(workspace, settings.sections.get("pairs", {}))
    runner = Runner(workspace, settings.params(), progress_for(True, False))
    rows, stages = [], []
    for standing in runner.standings():
        folder = standing.artifact.folder if standing.artifact else None
        made = _made(folder / MANIFEST) if folder else None
        rows.append([standing.stage, standing.state, age(made), "; ".join(standing.reasons)])
        stages.append(
            {"stage": standing.stage, "state": standing.state, "made": made, "why": list(standing.reasons)}
            | {"folder": str(folder) if folder else None}
        )
    parts: list[str | Table] = [Table(f"{workspace.root}", ["stage", "state", "age", "why"], rows, frozenset({"why"}))]
    data: dict[str, Any] = {"stages": stages, "published": None, "refused": refused(workspace)}
    published = latest_publication(workspace)
    if published is None:
        parts.append("nothing is published yet: `prep refresh` does it")
    else:
        made = _made(workspace.current)
        keys = published["artifacts"].items()
        broken = [f"runs/{stage}/{key}" for stage, key in keys if workspace.find(stage, key) is None]
        data["published"] = {"name": workspace.current.resolve().name, "made": made, "broken": broken}
        parts.append(f"published: {workspace.current.resolve().name}, {age(made)} old")
        parts += [f"damaged or missing: {path}; the next `prep refresh` makes it again" for path in broken]
    if data["refused"]:
        parts.append(f"not published: {data['refused']['why']}")
        parts.append(
            f"  its figures: {workspace.folder('evaluate', data['refused']['artifacts'].get('evaluate', '-'))}"
        )
    return Result(data, parts)


def _made(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:  # dropped by a gc at this moment
        return None


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
    from stages.mining.explain import Policy, headlines, show

    files = {"queries": "pairs", "corpus": "pairs", "judged": "search", "evidence": "evidence", "verified": "verify"}
    made = judged_artifacts(options)
    inputs = {stem: made[stage].folder / f"{stem}.parquet" for stem, stage in {**files, "verdicts": "mask"}.items()}
    if "compose" in made:
        inputs["mined"] = made["compose"].folder / "mined.jsonl"
    said, given = made["mask"].summary, made["mask"].manifest["parameters"]
    policy = Policy(
        said["rule"],
        said["threshold"],
        (given["window_start"], given["window_end"]),
        given["max_false_negatives"],
        made["compose"].summary["false_negatives"] if "compose" in made else None,
        said["estimate"]["unfit"] if said["rule"] != given["mask"] else None,
    )
    found, frame, negatives = show(query, inputs, policy.rule)
    documents = frame.to_dicts()
    positives = [row for row in documents if row["verdict"] == "positive"]
    others = [row for row in documents if row["verdict"] != "positive"]
    rows = [
        [
            *(_rank(row), f"{row['score']:.3f}", row["verdict"], row["mined"] or ""),
            *(row["explanation"], row["doc_id"], _short(row["text"], 100)),
        ]
        for row in [*positives, *others[:top]]
    ]
    header = ["rank", "score", "verdict", "mined", "why", "document", "text"]
    left = len(others) - top
    return Result(
        {**found, "mask": asdict(policy), "negatives": negatives, "documents": [*positives, *others[:top]]},
        [
            f"{found['query_id']} ({found['split']}): {found['query']}",
            *headlines(found, frame, negatives, policy),
            Table("", header, rows, frozenset({"text", "why"})),
            *([f"{left:,} more candidates: --top {len(others)} shows all"] if left > 0 else []),
        ],
    )


def judged_artifacts(options: Mapping[str, Any]) -> dict[str, Artifact]:
    """Those of the stages up to mask, and of compose where something can be composed: as they stand where they are up
    to date, which needs no lock; else brought up to date; else, where another run is at that, those published."""
    from pipeline.workflow.publish import latest_publication

    workspace = Workspace(options["workspace"])
    settings, _ = load_settings(options["config"], workspace, None, {})
    settings.here = at_hand(workspace, settings.sections.get("pairs", {}))
    runner = Runner(workspace, settings.params(), progress_for(True, False))
    fresh = {s.stage: s.artifact for s in runner.standings() if s.state == "fresh" and s.artifact}
    needed = {"pairs", "search", "evidence", "verify", "mask"}
    if {*needed, "compose"} <= fresh.keys():
        return fresh
    try:
        with opened(options, None) as (runner, _):
            runner.bring("mask")
            try:
                runner.bring("compose")
            except InputError as error:  # that nothing is left to compose is what a person may want to look into
                runner.progress.say(f"mined.jsonl is not written: {error}")
    except WorkspaceBusy:
        published = latest_publication(workspace)
        held = {
            stage: workspace.find(stage, key) for stage, key in (published or {"artifacts": {}})["artifacts"].items()
        }
        whole = {stage: artifact for stage, artifact in held.items() if artifact}
        if not needed <= whole.keys():
            raise
        return whole
    return runner.done


def _rank(row: Mapping[str, Any]) -> str:
    return "-" if row["rank"] is None else str(row["rank"])


def _short(text: str, most: int = 160) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def calibrate(options: Mapping[str, Any]) -> Result:
    """What each budget of false negatives, and each fixed rule, would give on this table's candidates."""
    from stages.bench.calibration import trade
    from stages.mining.estimator import validation

    with opened(options, "mine") as (runner, _):  # on the mask alone, so that nothing else takes it for a setting
        given: Any = runner.params["mask"]
        learned = given.model_copy(update={"mask": "learned", "threshold": None, "relabel": "no"})
        runner = Runner(runner.workspace, {**runner.params, "mask": learned}, runner.progress, runner.engine)
        runner.bring("mask")
        folders = {name: artifact.folder for name, artifact in runner.done.items()}
        said = runner.done["mask"].summary
        if said["rule"] != "learned":
            raise InputError(f"the learned mask can't be trusted on this table: {said['estimate']['unfit']}")
        files = {"queries": "pairs", "judged": "search", "verdicts": "mask", "shown": "evidence"}
        found = trade({name: folders[stage] / f"{name}.parquet" for name, stage in files.items()}, learned)
    header = ["expected", "95 %", "hardness", "fill", "found"]
    budgets = [[f"{row['max_false_negatives']:.1%}", *_expectation(row)] for row in found["budgets"]]
    rules = [[row["rule"], *_expectation(row)] for row in found["rules"]]
    return Result(
        {**found, "estimate": said["estimate"]},
        [
            f"{found['queries']:,} of {found['of']:,} train questions; false negatives expected among what is written "
            "(95 %: the luck of the questions, not of the model), and found where positives were hidden:",
            Table("learned mask, by the share that you accept", ["max_false_negatives", *header], budgets),
            Table("fixed rules, on the same candidates", ["rule", *header], rules),
            *validation.lines(said["estimate"]),
        ],
    )


def _expectation(row: Mapping[str, Any]) -> list[str]:
    again = row["check"]
    found = f"{again['observed']:.2%} ({again['hidden']:,})" if again else "not checked"
    if row["expected"] is None:
        return ["", "", "", "0.0%", found]
    interval = f"[{row['low']:.2%}, {row['high']:.2%}]"
    return [f"{row['expected']:.2%}", interval, f"{row['hardness']:.3f}", f"{row['fill']:.1%}", found]


def audit(
    options: Mapping[str, Any], top: int, out: Path | None, max_share: float | None, force: bool = False
) -> Result:
    """The positives that deserve a look; all of them into `out`, where it is given."""
    from stages.mining.audit import checks as stage
    from stages.mining.audit.export import check_ending, counted, documented, worst, write_findings

    if out:
        check_ending(out)
        if out.exists() and not force:
            raise InputError(
                f"--out {out} is there already, and may hold what somebody decided. --force overwrites it."
            )
    files = {"queries": "pairs", "corpus": "pairs", "decided": "pairs", "judged": "search", "verdicts": "mask"}
    with opened(options, "mine") as (runner, _):
        runner.bring("mask")
        inputs = {name: runner.done[at].folder / f"{name}.parquet" for name, at in files.items()}
        inputs["encoding"] = runner.done["encode"].folder / "encoding.json"
        given: Any = runner.params["compose"]
        found, positives = stage.find(inputs, runner.workspace.vectors, given.audit_rank, given.negatives)
        table = documented(found, inputs)
    summary = counted(table, positives)
    if out:
        write_findings(table, out)
    by_finding = ", ".join(f"{name} {n:,}" for name, n in summary["counts"].items())
    said = f"{summary['flagged']:,} of {positives:,} positives ({summary['share']:.2%}) deserve a look: {by_finding}"
    if max_share is not None and summary["share"] > max_share:
        raise GateRefused(f"{said}. Accepted are {max_share:.2%} (--max-share); `prep audit --out FILE` lists them.")
    parts: list[str | Table] = [said]
    if summary["share"] > stage.DOUBTFUL:
        parts.append("so many say more of the retriever, which may not fit this language or field, than of the labels")
    header = ["question", "positive", "rank", "score", "why"]
    for name, n in summary["counts"].items():
        rows = [
            [_short(row["query"]), _short(row["text"]), _rank(row), f"{row['score']:.3f}", row["explanation"]]
            for row in worst(table, name, top)
        ]
        if rows:
            title = f"{name}: the first {len(rows)} of {n:,}, worst first"
            parts.append(Table(title, header, rows, frozenset({"question", "positive", "why"})))
    if out:
        marked = ": fill in its label, positive or negative, and name it as `decisions` under [pairs]"
        parts.append(f"wrote {out}{'' if out.suffix.lower() == '.parquet' else marked}")
    return Result({**summary, "findings": table.to_dicts()}, parts)
