"""`prep bench`: what a rule leaks, measured on judged collections. Vectors are kept in the workspace."""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli.output import Result, Table
from pipeline.cli.progress import progress_for
from pipeline.executors.factory import engine_for
from pipeline.workflow.artifact_store import Workspace, write_durably
from stages.core.errors import InputError
from stages.core.schemas import JUDGED, Tools, read_table

if TYPE_CHECKING:
    from stages.mining.estimator.holdout import Left


def require_names(folders: Sequence[Path]) -> None:
    """Raise `InputError` where two folders bear the same name."""
    if len({folder.resolve().name for folder in folders}) < len(folders):
        raise InputError("two of the folders have the same name, by which the report tells them apart: rename one")


def negatives(
    options: dict[str, Any],
    folders: Sequence[Path],
    seed: int,
    k: int,
    most: int,
    left: "Left",
    encoder: str,
    prior: Path | None,
) -> Result:
    """Bench the rules on `folders`; with `prior`, fit the shipped prior on them and write it there as well."""
    from stages.bench import leak
    from stages.bench.collections import read_collection
    from stages.core.model_files import model_name

    require_names(folders)
    workspace = Workspace(options["workspace"])
    progress = progress_for(options["quiet"], options["verbose"])
    sets: dict[str, Any] = {}
    shown: dict[str, list[leak.Shown]] = {"half": [], "one": []}
    sides: tuple[Left, ...] = ("half", "one") if prior else (left,)
    try:
        with workspace.locked(), engine_for(options, progress) as engine:
            for folder in folders:
                progress.say(f"{folder.name}: reading, encoding and searching")
                scratch = workspace.scratch / f"bench-{folder.name}"
                scratch.mkdir(parents=True, exist_ok=True)
                tools = Tools(progress, scratch, workspace.vectors, workspace.logs, engine)
                for side in sides:
                    collection = read_collection(folder, seed, most, side)
                    found = mine(collection, encoder, k, tools)
                    if prior:
                        leak.require_lessons(folder.name, found.hidden)
                    shown[side].append((collection, found.features, found.hidden))
                    if side == left:
                        sets[folder.name] = _about(collection, found) | leak.report(found.mined)
    finally:
        progress.close()
    if prior:
        command = f"prep {shlex.join(sys.argv[1:])}"
        held = leak.prior_file(shown["half"], shown["one"], command, model_name(encoder))
        write_durably(prior, json.dumps(held, indent=1) + "\n")
    medians = leak.medians(sets)
    return Result(
        {"sets": sets, "median_ratio": medians.get("perc_max 0.9"), "medians": medians}, tables(sets, medians)
    )


@dataclass(frozen=True)
class Found:
    """A collection after encode, search and the learned mask."""

    inputs: dict[str, Path]
    """The tables that it went through by name, candidates and judged among them."""
    rows: Any
    """The candidates of the questions mined for, and of each [n] its features, and whether it is hidden."""
    features: Any
    hidden: Any
    mined: Any
    """`stages.bench.leak.Mined` of the rows."""
    learned: dict[str, Any]
    """What the learned mask says of itself."""


def mine(collection: Any, encoder: str, k: int, tools: Tools) -> Found:
    """One collection through encode, search and the learned mask; mined for are its train questions."""
    import polars as pl

    from stages.bench import leak
    from stages.bench.collections import write_inputs
    from stages.embedding import stage as embedding_stage
    from stages.embedding.lookup import Vectors
    from stages.mining.candidates.documents import Held, document_vectors
    from stages.mining.candidates.known_positives import positive_similarity
    from stages.mining.estimator.table_estimator import Suspects
    from stages.retrieval import stage as retrieval_stage

    inputs = write_inputs(collection, tools.scratch)
    embedding_stage.run(embedding_stage.Params(model=encoder), inputs, tools.scratch, tools)
    inputs["encoding"] = tools.scratch / "encoding.json"
    retrieval_stage.run(retrieval_stage.Params(), inputs, tools.scratch, tools)
    inputs |= {name: tools.scratch / f"{name}.parquet" for name in ("candidates", "judged")}
    vectors = Vectors(inputs["encoding"], tools.vectors)
    vectorise = document_vectors(inputs["corpus"], vectors)
    judged = read_table(inputs["judged"], JUDGED)
    positives = judged.filter(pl.col("relevance") > 0).select("query_id", "doc_id", own=pl.lit(True))
    suspects = Suspects(inputs, vectors, vectorise, positives, tools.progress, without=collection.digest)
    asked = collection.queries.filter(pl.col("split") == "train")
    rows, features = suspects.candidates_of(asked)
    p = suspects.probability(rows, features)
    documents = Held.of(pl.concat([rows["doc_id"], positives["doc_id"]]), vectorise)
    near = positive_similarity(rows, positives, documents).filter(pl.col("positive_similarity") >= leak.NEAR)
    mined = leak.as_lists(rows, p, judged, k, collection.hidden, collection.wrong, near)
    hidden = rows.join(
        collection.hidden.with_columns(hidden=True), on=["query_id", "doc_id"], how="left", maintain_order="left"
    )["hidden"]
    return Found(inputs, rows, features, hidden.fill_null(False).to_numpy(), mined, suspects.summary)


def _about(collection: Any, found: Found) -> dict[str, Any]:
    return {
        "queries": len(found.mined.lists.room),
        "documents": len(collection.corpus),
        "hidden": len(collection.hidden),
        "learned": found.learned,
    }


def tables(sets: dict[str, Any], medians: dict[str, float]) -> list[str | Table]:
    """The report for a person."""
    parts: list[str | Table] = []
    for name, found in sets.items():
        rows = [
            [
                rule,
                *(_percent(of_rule[f]) for f in ("leak", "rows")),
                _number(of_rule["hardness"]),
                *(_percent(of_rule[f]) for f in ("fill", "near_duplicates", "judged_negatives")),
            ]
            for rule, of_rule in found["rules"].items()
        ]
        equal = {one["rule"]: one["leak_learned"] for one in found["equal_hardness"]}
        for row in rows:
            row.append(_percent(equal.get(row[0])))
        parts.append(
            Table(
                f"{name}: {found['queries']:,} questions, {found['hidden']:,} positives hidden; learned from "
                f"{found['learned']['source']}{'; perc would be used here' if found['learned']['unfit'] else ''}",
                ["rule", "leak", "rows", "hardness", "fill", "near", "judged", "learned, as hard"],
                rows,
            )
        )
        budgets = [
            [
                _percent(b["max_false_negatives"]),
                _percent(b["expected"]),
                _percent(b["leak"]),
                _number(b["hardness"]),
                _percent(b["fill"]),
            ]
            for b in found["budgets"]
        ]
        parts.append(
            Table(f"{name}: learned, within a budget", ["accepted", "expected", "leak", "hardness", "fill"], budgets)
        )
    lines = [
        f"{rule}: leaks {value:.1f} times what the learned mask does at its hardness" for rule, value in medians.items()
    ]
    return [*parts, "medians over the sets:", *lines]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
