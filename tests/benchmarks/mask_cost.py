"""What the estimate, a mask and composing cost on a judged collection: `python -m tests.benchmarks.mask_cost FOLDER`.

FOLDER holds queries, corpus and qrels as `prep bench negatives` reads them. All questions are train questions, all
judgements are known. Prints a line a stage: seconds, peak memory so far, and what its summary says of the negatives.
"""

import argparse
import resource
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl

from pipeline.cli.progress import make_progress
from stages.bench.collections import read_judged_collection
from stages.core import schemas
from stages.core.context import StageContext
from stages.embedding import stage as embedding_stage
from stages.mining import candidate_features, mask
from stages.mining.sampling import stage as sampling_stage
from stages.mining.verify import stage as verify_stage
from stages.retrieval import stage as retrieval_stage

SUMMARY_KEYS = ("candidates", "n_pairs", "estimate", "fill_rate", "hardness", "expected_false_negative_rate")


def write_inputs(folder: Path, work: Path) -> dict[str, Path]:
    """The collection as the stages read it."""
    found = read_judged_collection(folder)
    wrong = found.nonrelevant.with_columns(relevance=pl.lit(0, pl.Int32))
    frames = {
        "queries": found.queries.with_columns(split=pl.lit("train"), group="query_id"),
        "corpus": found.corpus,
        "qrels": pl.concat([found.positives, wrong]).sort("query_id", "doc_id"),
        "answers": pl.DataFrame(pl.from_arrow(schemas.ANSWERS.empty_table())),
        "near_duplicates": pl.DataFrame(pl.from_arrow(schemas.NEAR_DUPLICATES.empty_table())),
    }
    for name, frame in frames.items():
        schemas.write_table(frame, schemas.TABLES[name], work / f"{name}.parquet")
    return {name: work / f"{name}.parquet" for name in frames}


def main() -> None:
    """Run the stages one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("mask-cost"), help="where vectors and tables are kept")
    given = parser.parse_args()
    work = given.folder.absolute() / given.collection.name
    work.mkdir(parents=True, exist_ok=True)
    tools = StageContext(make_progress(False, False), work, given.folder.absolute() / "vectors", work)
    inputs = write_inputs(given.collection, work)

    def run(stage: ModuleType, params: Any, *outputs: str) -> None:
        started = time.monotonic()
        summary = stage.run(params, inputs, work, tools)
        seconds, peak = time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        shown = {name: summary[name] for name in SUMMARY_KEYS if name in summary}
        print(f"{stage.__name__}: {seconds:.1f} s, {peak:.2f} GiB, {shown}", flush=True)
        inputs.update({name.partition(".")[0]: work / name for name in outputs})

    run(embedding_stage, embedding_stage.Params(), "encoder.json", "text_hashes.npy")
    run(retrieval_stage, retrieval_stage.Params(), "candidates.parquet", "qrels_scored.parquet", "encoder_fit.json")
    run(
        candidate_features,
        candidate_features.Params(),
        "features.parquet",
        "holdout_candidates.parquet",
        "estimator.json",
    )
    run(verify_stage, verify_stage.Params(), "verifier_scores.parquet", "holdout_verified.parquet")
    for chosen in (mask.Params(), mask.Params(max_false_negatives=0.01), mask.Params(mask="perc")):
        run(mask, chosen, "verdicts.parquet")
        run(sampling_stage, sampling_stage.Params())
    tools.progress.close()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
