"""`prep bench negatives`: the false negatives of each rule, on judged collections."""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli.output import CommandResult, ResultTable
from pipeline.cli.progress import make_progress
from pipeline.executors.factory import open_executor
from pipeline.workflow.artifact_store import Workspace
from stages.core.context import StageContext
from stages.core.errors import InputError
from stages.core.files import write_durably
from stages.core.schemas import QRELS_SCORED, read_table

if TYPE_CHECKING:
    from stages.mining.estimator.holdout import KeptPositives


def require_unique_names(folders: Sequence[Path]) -> None:
    """Raise `InputError` if two folders have the same name."""
    if len({folder.resolve().name for folder in folders}) < len(folders):
        raise InputError("two of the folders have the same name, and the report is by name: rename one")


def run_leak_benchmark(
    options: dict[str, Any],
    folders: Sequence[Path],
    seed: int,
    n_negatives: int,
    max_queries: int,
    keep_positives: "KeptPositives",
    encoder: str,
    model_path: Path | None,
) -> CommandResult:
    """Benchmark the rules on `folders`; with `model_path`, also fit the pretrained model on them and write it there."""
    from stages.bench import leak
    from stages.bench.collections import read_holdout_collection
    from stages.core.model_files import model_display_name

    require_unique_names(folders)
    workspace = Workspace(options["workspace"])
    progress = make_progress(options["quiet"], options["verbose"])
    reports: dict[str, Any] = {}
    training_sets: dict[str, list[leak.EstimatorTrainingSet]] = {"half": [], "one": []}
    holdout_modes: tuple[KeptPositives, ...] = ("half", "one") if model_path else (keep_positives,)
    try:
        with workspace.lock(), open_executor("local", progress) as executor:
            for folder in folders:
                progress.log(f"{folder.name}: reading, encoding and searching")
                scratch = workspace.scratch / f"bench-{folder.name}"
                scratch.mkdir(parents=True, exist_ok=True)
                context = StageContext(progress, scratch, workspace.vectors, workspace.logs, executor)
                for holdout_mode in holdout_modes:
                    collection = read_holdout_collection(folder, seed, max_queries, holdout_mode)
                    found = mine_collection(collection, encoder, n_negatives, context)
                    if model_path:
                        leak.require_both_classes(folder.name, found.is_held_out)
                    training_sets[holdout_mode].append((collection, found.features, found.is_held_out))
                    if holdout_mode == keep_positives:
                        reports[folder.name] = _summarise_collection(collection, found) | leak.build_leak_report(
                            found.candidate_matrix
                        )
    finally:
        progress.close()
    if model_path:
        command = f"prep {shlex.join(sys.argv[1:])}"
        pretrained_model = leak.build_pretrained_model_json(
            training_sets["half"], training_sets["one"], command, model_display_name(encoder)
        )
        write_durably(model_path, json.dumps(pretrained_model, indent=1) + "\n")
    medians = leak.compute_median_leak_ratios(reports)
    return CommandResult(
        {"sets": reports, "median_ratio": medians.get("perc_max 0.9"), "medians": medians},
        format_leak_report(reports, medians),
    )


@dataclass(frozen=True)
class MinedCollection:
    """A collection after encode, search and the learned mask."""

    inputs: dict[str, Path]
    """The tables of the steps, by name."""
    candidates: Any
    """The candidates [n] of the mined queries."""
    features: Any
    is_held_out: Any
    candidate_matrix: Any
    """`stages.bench.leak.CandidateMatrix` of the candidates."""
    estimator_summary: dict[str, Any]


def mine_collection(collection: Any, encoder: str, n_negatives: int, context: StageContext) -> MinedCollection:
    """Encode a collection, search it, and estimate false negatives for its train queries."""
    import polars as pl

    from stages.bench import leak
    from stages.bench.collections import write_stage_inputs
    from stages.embedding import stage as embedding_stage
    from stages.embedding.lookup import VectorLookup
    from stages.mining.candidates.documents import DocumentVectors, make_document_vectoriser
    from stages.mining.candidates.known_positives import add_positive_similarity
    from stages.mining.estimator.pretrained_model import read_pretrained_model
    from stages.mining.estimator.table_estimator import FalseNegativeEstimator
    from stages.retrieval import stage as retrieval_stage

    inputs = write_stage_inputs(collection, context.scratch_dir)
    embedding_stage.run(embedding_stage.Params(model=encoder), inputs, context.scratch_dir, context)
    inputs |= {"encoder": context.scratch_dir / "encoder.json", "text_hashes": context.scratch_dir / "text_hashes.npy"}
    retrieval_stage.run(retrieval_stage.Params(), inputs, context.scratch_dir, context)
    inputs |= {name: context.scratch_dir / f"{name}.parquet" for name in ("candidates", "qrels_scored")}
    vectors = VectorLookup(inputs, context.vectors_dir)
    vectorise = make_document_vectoriser(inputs["corpus"], vectors)
    qrels_scored = read_table(inputs["qrels_scored"], QRELS_SCORED)
    positives = qrels_scored.filter(pl.col("relevance") > 0).select("query_id", "doc_id", positive_kind=pl.lit("own"))
    estimator = FalseNegativeEstimator(
        inputs, vectors, vectorise, positives, read_pretrained_model(collection.digest), context.progress
    )
    train_queries = collection.queries.filter(pl.col("split") == "train")
    rows, features = estimator.collect_candidates(train_queries)
    p = estimator.predict_probability(rows, features)
    documents = DocumentVectors.load(pl.concat([rows["doc_id"], positives["doc_id"]]), vectorise)
    near_duplicates = add_positive_similarity(rows, positives, documents).filter(
        pl.col("positive_similarity") >= leak.NEAR_POSITIVE_COSINE
    )
    matrix = leak.build_candidate_matrix(
        rows, p, qrels_scored, n_negatives, collection.held_out_positives, collection.nonrelevant, near_duplicates
    )
    is_held_out = rows.join(
        collection.held_out_positives.with_columns(is_held_out=True),
        on=["query_id", "doc_id"],
        how="left",
        maintain_order="left",
    )["is_held_out"]
    return MinedCollection(inputs, rows, features, is_held_out.fill_null(False).to_numpy(), matrix, estimator.summary)


def _summarise_collection(collection: Any, found: MinedCollection) -> dict[str, Any]:
    return {
        "queries": len(found.candidate_matrix.lists.quota),
        "documents": len(collection.corpus),
        "hidden": len(collection.held_out_positives),
        "learned": found.estimator_summary,
    }


def format_leak_report(reports: dict[str, Any], medians: dict[str, float]) -> list[str | ResultTable]:
    """The report for a person."""
    parts: list[str | ResultTable] = []
    for name, found in reports.items():
        rows = [
            [
                rule,
                *(_format_percent(of_rule[f]) for f in ("leak", "rows")),
                _format_number(of_rule["hardness"]),
                *(_format_percent(of_rule[f]) for f in ("fill", "near_duplicates", "judged_negatives")),
            ]
            for rule, of_rule in found["rules"].items()
        ]
        equal = {one["rule"]: one["leak_learned"] for one in found["equal_hardness"]}
        for row in rows:
            row.append(_format_percent(equal.get(row[0])))
        parts.append(
            ResultTable(
                f"{name}: {found['queries']:,} questions, {found['hidden']:,} held-out positives; learned from "
                f"{found['learned']['source']}"
                f"{'; perc would be used here' if found['learned']['unreliable_reason'] else ''}",
                ["rule", "leak", "rows", "hardness", "fill", "near", "judged", "learned, as hard"],
                rows,
            )
        )
        budgets = [
            [
                _format_percent(b["max_false_negatives"]),
                _format_percent(b["expected"]),
                _format_percent(b["leak"]),
                _format_number(b["hardness"]),
                _format_percent(b["fill"]),
            ]
            for b in found["budgets"]
        ]
        parts.append(
            ResultTable(
                f"{name}: learned, within a budget", ["accepted", "expected", "leak", "hardness", "fill"], budgets
            )
        )
    lines = [
        f"{rule}: leaks {value:.1f} times what the learned mask does at its hardness" for rule, value in medians.items()
    ]
    return [*parts, "medians over the sets:", *lines]


def _format_percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _format_number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
