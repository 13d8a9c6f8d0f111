"""`prep bench downstream`: what each rule's negatives do to a reranker. Every training's scores are kept under a key of
all that shaped them, so a kill costs one training at most and a repeated command trains nothing."""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli.bench import mine, require_names
from pipeline.cli.output import Result, Table
from pipeline.cli.progress import progress_for
from pipeline.workflow.artifact_store import Workspace, digest_of
from stages.core.schemas import QRELS, Tools, scan_documents, write_table

if TYPE_CHECKING:
    from stages.bench.downstream import Params

LIBRARIES = ("torch", "transformers", "sentence-transformers", "tokenizers")


def downstream(options: Mapping[str, Any], folders: Sequence[Path], params: "Params") -> Result:
    """Bench the rules on `folders`."""
    require_names(folders)
    workspace = Workspace(options["workspace"])
    progress = progress_for(options["quiet"], options["verbose"])
    sets: dict[str, Any] = {}
    try:
        with workspace.locked():
            for folder in folders:
                progress.say(f"{folder.name}: reading, encoding and searching")
                sets[folder.name] = _bench(folder, params, workspace, progress)
    finally:
        progress.close()
    return Result({"sets": sets, "parameters": params.model_dump(mode="json")}, tables(sets))


def _bench(folder: Path, params: "Params", workspace: Workspace, progress: Any) -> dict[str, Any]:
    """One collection: its report."""
    import numpy as np

    from stages.bench import downstream
    from stages.bench.split import read_trial
    from stages.evaluation.candidate_lists import fix_lists
    from stages.reranking.scoring import pair_texts

    scratch = workspace.scratch / f"downstream-{folder.name}"
    scratch.mkdir(parents=True, exist_ok=True)
    tools = Tools(progress, scratch, workspace.vectors, workspace.logs)
    trial = read_trial(folder, params.seed)
    for note in trial.notes:
        progress.say(f"{folder.name}: {note}")
    found = mine(trial.collection, params.encoder, params.negatives, tools)
    lessons = downstream.compose(trial, found.rows, found.mined, params)
    progress.say(
        f"{folder.name}: {lessons.queries} questions to train on; {lessons.unfilled} of {len(found.mined.lists.room)} "
        f"are left out, as a rule finds fewer than {params.negatives} negatives for them"
    )
    write_table(trial.tests, QRELS, scratch / "tests.parquet")
    fixed = fix_lists(
        found.inputs | {"qrels": scratch / "tests.parquet"}, ("test",), top_k=params.top_k,
        max_queries=params.test_queries, seed=params.seed, forced=False,
    )  # fmt: skip
    documents = scan_documents(found.inputs["corpus"]).collect()
    queries = dict(trial.collection.queries.select("query_id", "query").iter_rows())
    texts = dict(documents.iter_rows())
    pairs = fixed.pairs()
    asked = pair_texts(pairs, fixed.queries, documents)
    values: dict[str, list[Any]] = {rule: [] for rule in params.rule}
    told: dict[str, dict[str, Any]] = {}
    for seed in range(params.seeds):  # the outer loop, so that what a kill leaves can be compared
        training = params.training(seed)
        for rule in params.rule:
            epochs = downstream.epochs_of(lessons.mined[rule], found.inputs["candidates"], training)
            said = f"{folder.name}: seed {seed + 1} of {params.seeds}, {rule}"
            kept = _studied(epochs, queries, texts, asked, training, workspace, tools, said)
            scores = pairs.with_columns(reranker=np.array(kept.pop("scores"), np.float32))
            values[rule].append(downstream.measured(fixed, scores))
            losses = [*told.get(rule, {}).get("loss", []), kept["loss"]]
            count = sum(len(group.documents) for groups in epochs for group in groups)
            told[rule] = {"pairs": count, "steps": kept["steps"], "loss": losses}
    report = downstream.report(
        {rule: np.stack(of_rule) for rule, of_rule in values.items()},
        downstream.of_run(fixed, fixed.lists, "embedder"),
        fixed.queries["group"].to_numpy(),
        params,
    )
    for rule, of_rule in report["rules"].items():
        of_rule |= lessons.figures[rule] | told[rule]
    about = {
        "train_queries": lessons.queries,
        "unfilled": lessons.unfilled,
        "test_queries": len(fixed.queries),
        "test_units": fixed.queries["group"].n_unique(),
        "documents": len(documents),
        "chance_loss": math.log(1 + params.negatives),
        "learned_from": found.learned,
        "notes": trial.notes,
    }
    return about | report


def _studied(
    epochs: Sequence[Sequence[Any]],
    queries: Mapping[str, str],
    texts: Mapping[str, str],
    pairs: Sequence[tuple[str, str]],
    training: Any,
    workspace: Workspace,
    tools: Tools,
    said: str,
) -> dict[str, Any]:
    """One training's steps, loss of its last epoch, and scores of `pairs`: kept, or made and kept."""
    from stages.bench import downstream
    from stages.training import stage as training_stage

    parts = {
        "version": [downstream.VERSION, training_stage.VERSION],
        "parameters": training.model_dump(mode="json", exclude=training.marked("unkeyed")),
        "identity": training_stage.identity(training),
        "libraries": {name: version(name) for name in LIBRARIES},
        "lessons": digest_of(
            [[queries[g.query_id], [texts[d] for d in g.documents], g.labels] for groups in epochs for g in groups]
        ),
        "pairs": digest_of([list(pair) for pair in pairs]),
    }
    key = digest_of(parts)
    found = workspace.find("downstream", key)
    scratch = workspace.scratch / f"downstream-{key}"
    if not found:
        tools.progress.say(f"{said}: training")
        scratch.mkdir(parents=True, exist_ok=True)
        mine = Tools(tools.progress, scratch, tools.vectors, workspace.logs / "downstream" / key)
        scores, history = downstream.study(epochs, queries, texts, pairs, training, mine)
        result = {"steps": history.steps, "loss": history.epochs[-1]["loss"], "scores": scores.tolist()}
        with workspace.building("downstream", key) as out:
            (out / "scores.json").write_text(json.dumps(result), encoding="utf-8")
            found = workspace.commit("downstream", key, out, {"stage": "downstream", **parts, "summary": {}})
    else:
        tools.progress.say(f"{said}: trained before")
    shutil.rmtree(scratch, ignore_errors=True)
    kept: dict[str, Any] = json.loads((found.folder / "scores.json").read_text(encoding="utf-8"))
    return kept


def tables(sets: Mapping[str, Any]) -> list[str | Table]:
    """The report for a person."""
    parts: list[str | Table] = []
    for name, found in sets.items():
        compared = found["differences"]
        rows = [["embedder", "", "", *_metrics(found["embedder"]), *_compared(compared.get("embedder"))]]
        for rule, of_rule in found["rules"].items():
            hardness = f"{of_rule['hardness']:.4f}"
            rows.append([rule, f"{of_rule['leak']:.2%}", hardness, *_metrics(of_rule), *_compared(compared.get(rule))])
        columns = ["negatives by", "leak", "hardness", "nDCG@10", "MRR@10", "fused nDCG@10", "fused MRR@10"]
        ours = found["learned"]
        columns += [f"{ours} - it, nDCG@10", "MRR@10 "] if ours else ["", " "]
        one = next(iter(found["rules"].values()))
        title = (
            f"{name}: {found['train_queries']:,} train questions ({found['unfilled']:,} left out), {one['pairs']:,} "
            f"pairs, {one['steps']:,} steps, {len(one['by_seed']['nDCG@10'])} seeds; {found['test_queries']:,} test "
            "questions"
        )
        parts.append(Table(title, columns, rows))
    return [
        *parts,
        "A difference comes with its 95 % interval over test questions (paired bootstrap); one that holds 0 may be",
        "luck. It knows nothing of the seeds: --json has each seed's figures (by_seed), and more seeds make it surer.",
    ]


def _metrics(figures: Mapping[str, Any]) -> list[str]:
    names = ("nDCG@10", "MRR@10", "fused nDCG@10", "fused MRR@10")
    return [f"{figures[name]:.4f}" if name in figures else "" for name in names]


def _compared(differences: Mapping[str, Sequence[float | None]] | None) -> list[str]:
    return [_interval(differences[name]) if differences else "" for name in ("nDCG@10", "MRR@10")]


def _interval(difference: Sequence[float | None]) -> str:
    mean, low, high = difference
    return f"{mean:+.4f}" + ("" if low is None else f" [{low:+.4f}, {high:+.4f}]")
