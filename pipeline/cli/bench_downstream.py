"""`prep bench downstream`: what each rule's negatives do to a reranker. Every training's scores are kept under a key of
all that shaped them, so a kill costs one training at most and a repeated command trains nothing."""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli.bench_leak import mine_collection, require_unique_names
from pipeline.cli.output import CommandResult, ResultTable
from pipeline.cli.progress import make_progress
from pipeline.workflow.artifact_store import Workspace, digest_json
from stages.core.context import StageContext
from stages.core.libraries import get_library_versions
from stages.core.schemas import QRELS, scan_documents, write_table

if TYPE_CHECKING:
    from stages.bench.downstream import Params

TRAINING_LIBRARIES = ("torch", "transformers", "sentence-transformers", "tokenizers")


def run_downstream_benchmark(options: Mapping[str, Any], folders: Sequence[Path], params: "Params") -> CommandResult:
    """Bench the rules on `folders`."""
    require_unique_names(folders)
    workspace = Workspace(options["workspace"])
    progress = make_progress(options["quiet"], options["verbose"])
    reports: dict[str, Any] = {}
    try:
        with workspace.lock():
            for folder in folders:
                progress.log(f"{folder.name}: reading, encoding and searching")
                reports[folder.name] = _bench_collection(folder, params, workspace, progress)
    finally:
        progress.close()
    return CommandResult(
        {"sets": reports, "parameters": params.model_dump(mode="json")}, format_downstream_report(reports)
    )


def _bench_collection(folder: Path, params: "Params", workspace: Workspace, progress: Any) -> dict[str, Any]:
    """One collection: its report."""
    import numpy as np

    from stages.bench import downstream
    from stages.bench.split import read_benchmark_split
    from stages.evaluation.candidate_lists import build_candidate_lists
    from stages.reranking.scoring import gather_pair_texts
    from stages.training.examples import count_pairs
    from stages.training.stage import build_training_epochs

    scratch = workspace.scratch / f"downstream-{folder.name}"
    scratch.mkdir(parents=True, exist_ok=True)
    context = StageContext(progress, scratch, workspace.vectors, workspace.logs)
    benchmark_split = read_benchmark_split(folder, params.seed)
    for note in benchmark_split.notes:
        progress.log(f"{folder.name}: {note}")
    found = mine_collection(benchmark_split.collection, params.encoder, params.num_negatives, context)
    training_data = downstream.build_rule_training_sets(
        benchmark_split, found.candidates, found.candidate_matrix, params
    )
    progress.log(
        f"{folder.name}: {training_data.n_queries} questions to train on; {training_data.n_unfilled_queries} of "
        f"{len(found.candidate_matrix.lists.quota)} "
        f"are left out, as a rule finds fewer than {params.num_negatives} negatives for them"
    )
    write_table(benchmark_split.test_qrels, QRELS, scratch / "tests.parquet")
    candidate_lists = build_candidate_lists(
        found.inputs | {"qrels": scratch / "tests.parquet"}, ("test",), top_k=params.top_k,
        max_queries=params.test_queries, seed=params.seed, include_forced=False,
    )  # fmt: skip
    documents = scan_documents(found.inputs["corpus"]).collect()
    queries = dict(benchmark_split.collection.queries.select("query_id", "query").iter_rows())
    texts = dict(documents.iter_rows())
    pairs = candidate_lists.select_unique_pairs()
    test_pairs = gather_pair_texts(pairs, candidate_lists.queries, documents)
    values: dict[str, list[Any]] = {rule: [] for rule in params.rule}
    training_stats: dict[str, dict[str, Any]] = {}
    for seed in range(params.seeds):  # the outer loop, so that what a kill leaves can be compared
        training = params.build_training_params(seed)
        for rule in params.rule:
            epochs = build_training_epochs(
                training, training_data.mined_queries[rule], found.inputs["candidates"], params.distill_epochs
            )
            log_prefix = f"{folder.name}: seed {seed + 1} of {params.seeds}, {rule}"
            result = _train_or_load(epochs, queries, texts, test_pairs, training, workspace, context, log_prefix)
            scores = pairs.with_columns(reranker=np.array(result.pop("scores"), np.float32))
            values[rule].append(downstream.compute_test_metrics(candidate_lists, scores))
            losses = [*training_stats.get(rule, {}).get("loss", []), result["loss"]]
            training_stats[rule] = {"pairs": count_pairs(epochs), "steps": result["steps"], "loss": losses}
    report = downstream.build_downstream_report(
        {rule: np.stack(of_rule) for rule, of_rule in values.items()},
        downstream.evaluate_score_column(candidate_lists, candidate_lists.lists, "embedder"),
        candidate_lists.queries["group"].to_numpy(),
        params,
    )
    for rule, of_rule in report["rules"].items():
        of_rule |= training_data.leak_metrics[rule] | training_stats[rule]
    about = {
        "train_queries": training_data.n_queries,
        "unfilled": training_data.n_unfilled_queries,
        "test_queries": len(candidate_lists.queries),
        "test_units": candidate_lists.queries["group"].n_unique(),
        "documents": len(documents),
        "chance_loss": math.log(1 + params.num_negatives),
        "learned_from": found.estimator_summary,
        "notes": benchmark_split.notes,
    }
    return about | report


def _train_or_load(
    epochs: Sequence[Sequence[Any]],
    queries: Mapping[str, str],
    texts: Mapping[str, str],
    pairs: Sequence[tuple[str, str]],
    training: Any,
    workspace: Workspace,
    context: StageContext,
    log_prefix: str,
) -> dict[str, Any]:
    """One training's steps, loss of its last epoch, and scores of `select_unique_pairs`: kept, or made and kept."""
    from stages.bench import downstream
    from stages.training import stage as training_stage

    key_fields = {
        "version": [downstream.VERSION, training_stage.VERSION],
        "parameters": training.model_dump(mode="json", exclude=training.fields_with_mark("unkeyed")),
        "key_extras": training_stage.key_extras(training),
        "libraries": get_library_versions(TRAINING_LIBRARIES),
        "lessons": digest_json(
            [[queries[g.query_id], [texts[d] for d in g.documents], g.labels] for groups in epochs for g in groups]
        ),
        "pairs": digest_json([list(pair) for pair in pairs]),
    }
    key = digest_json(key_fields)
    found = workspace.find_artifact("downstream", key)
    scratch = workspace.scratch / f"downstream-{key}"
    if not found:
        context.progress.log(f"{log_prefix}: training")
        scratch.mkdir(parents=True, exist_ok=True)
        training_context = StageContext(
            context.progress, scratch, context.vectors_dir, workspace.logs / "downstream" / key
        )
        scores, history = downstream.train_and_score(epochs, queries, texts, pairs, training, training_context)
        result = {"steps": history.n_steps, "loss": history.epoch_records[-1]["loss"], "scores": scores.tolist()}
        with workspace.create_build_folder("downstream", key) as out:
            (out / "scores.json").write_text(json.dumps(result), encoding="utf-8")
            found = workspace.commit_artifact(
                "downstream", key, out, {"stage": "downstream", **key_fields, "summary": {}}
            )
    else:
        context.progress.log(f"{log_prefix}: trained before")
    shutil.rmtree(scratch, ignore_errors=True)
    kept: dict[str, Any] = json.loads((found.folder / "scores.json").read_text(encoding="utf-8"))
    return kept


def format_downstream_report(reports: Mapping[str, Any]) -> list[str | ResultTable]:
    """The report for a person."""
    parts: list[str | ResultTable] = []
    for name, found in reports.items():
        compared = found["differences"]
        rows = [
            ["embedder", "", "", *_format_metrics(found["embedder"]), *_format_differences(compared.get("embedder"))]
        ]
        for rule, of_rule in found["rules"].items():
            hardness = f"{of_rule['hardness']:.4f}"
            rows.append(
                [
                    rule,
                    f"{of_rule['leak']:.2%}",
                    hardness,
                    *_format_metrics(of_rule),
                    *_format_differences(compared.get(rule)),
                ]
            )
        columns = ["negatives by", "leak", "hardness", "nDCG@10", "MRR@10", "fused nDCG@10", "fused MRR@10"]
        ours = found["learned"]
        columns += [f"{ours} - it, nDCG@10", "MRR@10 "] if ours else ["", " "]
        one = next(iter(found["rules"].values()))
        title = (
            f"{name}: {found['train_queries']:,} train questions ({found['unfilled']:,} left out), {one['pairs']:,} "
            f"pairs, {one['steps']:,} steps, {len(one['by_seed']['nDCG@10'])} seeds; {found['test_queries']:,} test "
            "questions"
        )
        parts.append(ResultTable(title, columns, rows))
    return [
        *parts,
        "A difference comes with its 95 % interval over test questions (paired bootstrap); one that holds 0 may be",
        "luck. It knows nothing of the seeds: --json has each seed's figures (by_seed), and more seeds make it surer.",
    ]


def _format_metrics(figures: Mapping[str, Any]) -> list[str]:
    names = ("nDCG@10", "MRR@10", "fused nDCG@10", "fused MRR@10")
    return [f"{figures[name]:.4f}" if name in figures else "" for name in names]


def _format_differences(differences: Mapping[str, Sequence[float | None]] | None) -> list[str]:
    return [_format_difference(differences[name]) if differences else "" for name in ("nDCG@10", "MRR@10")]


def _format_difference(difference: Sequence[float | None]) -> str:
    from stages.statistics.bootstrap import format_interval

    mean, low, high = difference
    return f"{mean:+.4f}" + (f" {format_interval(low, high, '+.4f')}" if low is not None and high is not None else "")
