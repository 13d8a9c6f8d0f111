"""How many queries a self-trained verifier needs.

Run `python -m tests.benchmarks.self_trained_verifier SET [--train N ...]`.

It holds out half of each query's positives, estimates p (cross-validated, with a pretrained model of other
collections), trains rerankers on N queries of the other folds, and scores uncertain candidates of the same queries for
every N. For each N it prints a JSON line: AUC and log loss on the held-out positives with and without the verifier,
whether it is used, the same without documents that are a training positive of another query, and the candidates that
each margin in logits would exclude. The collections are in ../shared/data.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline.cli.progress import make_progress
from stages.bench.collections import HoldoutCollection, read_holdout_collection, write_stage_inputs
from stages.core.context import StageContext
from stages.core.hashing import sample_by_hash
from stages.core.model_files import DEFAULT_ENCODER
from stages.core.schemas import PAIR_COLUMNS, QRELS_SCORED, read_table, scan_documents
from stages.core.text import match_key
from stages.embedding import stage as embedding_stage
from stages.embedding.lookup import VectorLookup
from stages.mining.candidates.documents import make_document_vectoriser
from stages.mining.estimator.pretrained_model import read_pretrained_model
from stages.mining.estimator.table_estimator import FalseNegativeEstimator
from stages.mining.verify import cross_fitting, stacking
from stages.mining.verify.cross_encoder import (
    collect_pairs_to_score,
    join_verifier_scores,
    select_uncertain,
)
from stages.pairs.split import MAX_COMPONENT_RATIO, find_components
from stages.retrieval import stage as retrieval_stage
from stages.training.params import Params

ROOT = Path(__file__).parent.parent.parent
MARGINS = tuple((rule, value) for rule in ("margin", "margin_max") for value in (-1.0, 0.0, 0.5, 1.0, 2.0))


def groups(collection: HoldoutCollection) -> dict[str, str]:
    """As build-pairs groups questions: those that restate one another or share a positive; a giant is taken apart."""
    ids = collection.queries["query_id"].to_list()
    place = {query_id: i for i, query_id in enumerate(ids)}
    forms, documents = ({}, {})  # type: ignore[var-annotated]
    form = np.array([forms.setdefault(match_key(text), len(forms)) for text in collection.queries["query"]])
    every = pl.concat(
        [collection.known_positives.select(PAIR_COLUMNS), collection.held_out_positives.select(PAIR_COLUMNS)]
    )
    owner = np.array([place[query_id] for query_id in every["query_id"]])
    document = np.array([documents.setdefault(doc_id, len(documents)) for doc_id in every["doc_id"]])
    same = np.arange(len(ids)), form
    whole, apart = find_components(len(ids), [same, (owner, document)]), find_components(len(ids), [same])
    giant = np.bincount(whole)[whole] > max(1, MAX_COMPONENT_RATIO * len(ids))
    return {q: f"{'q' if g else 'c'}{a if g else w}" for q, g, a, w in zip(ids, giant, apart, whole, strict=True)}


def suspects_of(
    folder: Path, work: Path, most: int, tools: StageContext
) -> tuple[HoldoutCollection, dict[str, Path], FalseNegativeEstimator]:
    """The searched collection with half of each query's positives held out, and its estimator."""
    collection = read_holdout_collection(folder, 0, most)
    inputs = write_stage_inputs(collection, work)
    embedding_stage.run(embedding_stage.Params(), inputs, work, tools)
    inputs |= {"encoder": work / "encoder.json", "text_hashes": work / "text_hashes.npy"}
    retrieval_stage.run(retrieval_stage.Params(), inputs, work, tools)
    inputs |= {name: work / f"{name}.parquet" for name in ("candidates", "qrels_scored")}
    vectors = VectorLookup(inputs, tools.vectors_dir)
    vectorise = make_document_vectoriser(inputs["corpus"], vectors)
    judged = read_table(inputs["qrels_scored"], QRELS_SCORED)
    own = judged.filter(pl.col("relevance") > 0).select(*PAIR_COLUMNS, positive_kind=pl.lit("own"))
    return (
        collection,
        inputs,
        FalseNegativeEstimator(
            inputs, vectors, vectorise, own, read_pretrained_model(collection.digest), tools.progress
        ),
    )


def prepared(folder: Path, work: Path, most: int, tools: StageContext) -> dict[str, Any]:
    """The set with p for every candidate of the questions whose positives were hidden."""
    collection, inputs, suspects = suspects_of(folder, work, most, tools)
    rows, found = suspects.collect_candidates(collection.held_out_positives)
    p = suspects.predict_probability(rows, found)
    hidden = collection.held_out_positives.with_columns(hidden=True)
    rows = rows.select(*PAIR_COLUMNS, "score").with_columns(p_false_negative=pl.Series(p))
    rows = rows.join(hidden, on=PAIR_COLUMNS, how="left", maintain_order="left").with_columns(
        pl.col("hidden").fill_null(False)
    )
    texts = dict(scan_documents(inputs["corpus"]).collect().iter_rows())
    return {"collection": collection, "rows": rows, "inputs": inputs, "texts": texts, "source": suspects.summary}


def margins(table: pl.DataFrame) -> list[dict[str, Any]]:
    """The share of held-out positives and of others that each margin excludes; and that of p with as many others."""
    score, lowest, best = (table[f"verifier_{name}"].to_numpy() for name in ("score", "positive_min", "positive_max"))
    p, hidden = table["p_false_negative"].to_numpy(), table["hidden"].to_numpy()
    out = []
    for rule, value in MARGINS:
        taken = score > (lowest if rule == "margin" else best) - value
        others = float(taken[~hidden].mean())
        limit = np.quantile(p[~hidden], 1 - others)
        out.append(
            {
                "rule": f"{rule} {value:g}",
                "hidden": round(float(taken[hidden].mean()), 3),
                "others": round(others, 3),
                "hidden_by_p": round(float((p[hidden] > limit).mean()), 3),
            }
        )
    return out


def tried(
    found: dict[str, Any], params: Params, folds: int, questions: int, work: Path, tools: StageContext
) -> dict[str, Any]:
    """Train with one size, score the uncertain candidates of some queries, and test the verifier."""
    collection, rows = found["collection"], found["rows"]
    started = time.monotonic()
    known = collection.known_positives.select(PAIR_COLUMNS)
    mined = cross_fitting.build_training_queries(
        collection.queries.filter(pl.col("split") == "train"), rows, known, params.seed
    )
    material = cross_fitting.TrainingSet(mined, found["texts"], groups(collection))
    cross = cross_fitting.CrossFitReranker(
        params, folds, material, found["inputs"]["candidates"], found["inputs"]["corpus"], work, work / "scores", tools
    )
    drawn = sample_by_hash(rows["query_id"], questions, "self teacher")
    unsure = rows.filter(
        pl.Series(select_uncertain(rows["p_false_negative"].to_numpy())) & pl.col("query_id").is_in(drawn)
    )
    pairs = collect_pairs_to_score(unsure, known).join(
        collection.queries.select("query_id", "query"), on="query_id", how="left"
    )
    pairs = pairs.sort(PAIR_COLUMNS)
    texts = [(query, found["texts"][doc_id]) for query, doc_id in zip(pairs["query"], pairs["doc_id"], strict=True)]
    scores = cross.score_pairs(pairs["query_id"].to_list(), texts)
    table = join_verifier_scores(unsure, known, pairs.with_columns(verifier_score=pl.Series(scores)))
    fresh = ~cross.is_training_positive(table["query_id"].to_list(), table["doc_id"].to_list())
    line: dict[str, Any] = {
        "set": collection.name,
        "questions": len(drawn),
        "of": rows["query_id"].n_unique(),
        "pairs": len(pairs),
    }
    line |= {
        "trained_on": [len(queries) for queries in cross.training_queries_by_fold],
        "collapsed": cross.collapse_reasons,
    }
    for name, part in (("all", table), ("unseen", table.filter(pl.Series(fresh)))):
        names = ("p_false_negative", "verifier_score", "verifier_positive_min", "verifier_positive_max", "hidden")
        columns = [part[column].to_numpy() for column in names]
        weights = np.full(len(part), 2.0, np.float32)  # half is hidden
        p, score, lowest, best, labels = columns
        judged = stacking.fit_stacked_model(p, score, lowest, best, labels, weights, part["query_id"].to_list())
        line[name] = {"is_used": bool(judged.models), **judged.metrics}
    return line | {"margins": margins(table), "minutes": round((time.monotonic() - started) / 60, 1)}


def main() -> None:
    """Print one JSON line for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", help="a folder of --data")
    parser.add_argument("--train", type=int, nargs="*", default=[100, 200, 400], help="questions a fold is trained on")
    parser.add_argument("--distill", type=int, default=0, help="epochs of the retriever's scores before the judgements")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--base", default=DEFAULT_ENCODER, help="encoder (new head) or cross-encoder to start from")
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--questions", type=int, default=300, help="queries whose uncertain candidates are scored")
    parser.add_argument("--most", type=int, default=3000, help="questions at all")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument(
        "--folder", type=Path, default=Path("self-trained-verifier"), help="where vectors and models are kept"
    )
    given = parser.parse_args()
    work = given.folder.absolute() / given.set
    work.mkdir(parents=True, exist_ok=True)
    progress = make_progress(False, False)
    tools = StageContext(progress, work, given.folder.absolute() / "vectors", work / "logs")
    try:
        found = prepared(given.data / given.set, work, given.most, tools)
        for size in given.train:
            params = Params(
                base=given.base,
                epochs=given.epochs,
                distill_epochs=given.distill,
                num_negatives=5,
                max_length=given.max_length,
                max_queries=size,
            )
            place = work / f"{size}-{given.distill}-{given.epochs}"
            line = {"distill": given.distill, "epochs": given.epochs, "p_from": found["source"]["source"]}
            print(json.dumps(line | tried(found, params, given.folds, given.questions, place, tools)), flush=True)
    finally:
        progress.close()


if __name__ == "__main__":
    main()
