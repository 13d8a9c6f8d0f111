"""A training of seconds for tests: a tiny model, documents that a model can learn to rank, and a run that is disturbed.

As a program (`python -m tests.small_training MODEL INPUTS WORK STEP SIGNAL`) it sends itself a
signal after a step.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from stages.core.context import StageContext, Summary
from stages.core.schemas import CANDIDATES, CORPUS, QRELS, QUERIES, write_table
from stages.training import stage as training_stage
from stages.training.params import Params
from tests.fakes import RecordedProgress

TRAIN, DEV = 21, 4
STEPS = 6
"""21 groups in batches of 4: six steps an epoch, the last of one group."""


def act_at(step: int, act: Callable[[], None]) -> RecordedProgress:
    """A progress that calls `act` after a step."""
    return RecordedProgress(lambda done: act() if done == step else None)


def make_inputs(folder: Path, negatives: int = 5) -> dict[str, Path]:
    """Documents with a z are relevant to their query, the others to none; query q03 has fewer negatives."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = "abcdefghijkl"
    texts = {f"d{i:02}": " ".join(letters[(i * k + k) % 12] for k in range(3 + i % 5)) for i in range(40)}
    right = {f"q{i:02}": f"d{i:02}" for i in range(TRAIN + DEV)}
    texts |= {doc_id: f"{texts[doc_id]} z z z" for doc_id in right.values()}
    wrong = [f"d{i:02}" for i in range(TRAIN + DEV, 40)]
    split = {query_id: "train" if i < TRAIN else "dev" for i, query_id in enumerate(right)}
    queries = pl.DataFrame(
        {"query_id": list(right), "query": [f"find {q}" for q in right], "split": list(split.values())}
    )
    write_table(queries.with_columns(group="query_id"), QUERIES, folder / "queries.parquet")
    write_table(pl.DataFrame({"doc_id": list(texts), "text": list(texts.values())}), CORPUS, folder / "corpus.parquet")
    judged = pl.DataFrame({"query_id": list(right), "doc_id": list(right.values())})
    write_table(judged.with_columns(relevance=pl.lit(1, pl.Int32)), QRELS, folder / "qrels.parquet")
    found = [(q, d, "dense", rank, 1 / rank) for q in right for rank, d in enumerate([*wrong[:6], right[q]], 1)]
    candidates = pl.DataFrame(found, schema=["query_id", "doc_id", "source", "rank", "score"], orient="row")
    write_table(candidates, CANDIDATES, folder / "candidates.parquet")
    lines = []
    for i, (query_id, doc_id) in enumerate(right.items()):
        chosen = wrong[: 2 if i == 3 else negatives]
        row = {"query_id": query_id, "query": f"find {query_id}", "pos": [texts[doc_id]], "pos_ids": [doc_id]}
        row |= {
            "neg": [texts[d] for d in chosen],
            "neg_ids": chosen,
            "pos_scores": [1.0],
            "neg_scores": [0.1] * len(chosen),
        }
        lines += [json.dumps(row)] * (split[query_id] == "train")
    (folder / "mined.jsonl").write_text("\n".join(lines) + "\n")
    names = ("queries.parquet", "corpus.parquet", "qrels.parquet", "candidates.parquet", "mined.jsonl")
    return {Path(name).stem: folder / name for name in names}


def run(
    params: Params, inputs: Mapping[str, Path], folder: Path, progress: RecordedProgress | None = None
) -> tuple[Summary, dict[str, Any]]:
    """Run the step with its scratch in `folder`; returns the summary and training.json."""
    out = folder / "out"
    out.mkdir(parents=True, exist_ok=True)
    (folder / "scratch").mkdir(exist_ok=True)
    summary = training_stage.run(
        params, inputs, out, StageContext(progress or RecordedProgress(), folder / "scratch", folder, folder / "logs")
    )
    return summary, json.loads((out / "training.json").read_text())


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def settings(model: Path) -> Params:
    # with dropout, so that a resumed training has to restore the state of the random numbers
    return Params(
        base=str(model),
        num_negatives=4,
        batch_size=4,
        max_length=32,
        learning_rate=3e-3,
        dropout=0.1,
        distill_epochs=0,
        device="cpu",
    )


if __name__ == "__main__":
    model, inputs_folder, work = map(Path, sys.argv[1:4])
    step, signal_number = map(int, sys.argv[4:])
    inputs = {path.stem: path for path in inputs_folder.iterdir()}
    run(settings(model), inputs, work, act_at(step, lambda: os.kill(os.getpid(), signal_number)))
