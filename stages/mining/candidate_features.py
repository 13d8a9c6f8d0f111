"""The features step: all that is known of each candidate, before a rule decides on it. So the mask takes seconds.

A candidate is a pair of query and document that some retriever found. Its row holds what is known without a model (it
is a positive by id or by text, contains an answer, was judged not relevant), its similarity to the positives, its
features, and the p_false_negative that follows from them (`stages.mining.estimator`).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pyarrow.parquet as pq

from stages.core import schemas
from stages.core.context import StageContext, Summary
from stages.core.files import file_digest
from stages.core.params import BaseParams as BaseParams
from stages.core.params import option
from stages.core.query_batches import collect_query_batch, iter_query_batches, map_query_batches, sort_by_score
from stages.mining.candidates import known_positives
from stages.mining.candidates.documents import (
    DocumentVectoriser,
    DocumentVectors,
    make_document_vectoriser,
    write_document_words,
)
from stages.mining.candidates.known_facts import KnownFacts, add_known_facts
from stages.mining.candidates.merge import make_dense_scorer, merge_sources

if TYPE_CHECKING:
    from stages.embedding.lookup import VectorLookup
    from stages.mining.estimator.table_estimator import FalseNegativeEstimator

VERSION = 10

CANDIDATE_ROWS_PER_BATCH = 100_000
"""Candidates that are processed at once, with their document vectors in memory. Results do not depend on it."""


class Params(BaseParams):
    """What is looked up and estimated for each candidate."""

    exclude_answers: bool = option(True, "Exclude documents that contain a known answer of the query.", advanced=True)
    estimate_false_negatives: bool = option(
        True,
        "Estimate for each candidate how likely it is a false negative. mask = learned needs it.",
        advanced=True,
    )


def key_extras(params: Params) -> dict[str, str]:
    """The pretrained model, if the estimate uses it."""
    from stages.mining.estimator.pretrained_model import PRETRAINED_MODEL_PATH

    return {"pretrained_model": file_digest(PRETRAINED_MODEL_PATH)} if params.estimate_false_negatives else {}


def run(params: Params, inputs: Mapping[str, Path], out: Path, context: StageContext) -> Summary:
    """Write features.parquet, holdout_candidates.parquet and estimator.json.

    features.parquet: a row for each candidate and curated negative. holdout_candidates.parquet: the candidates of the
    queries with held-out positives, with the p_false_negative of the fold that was not fitted on them. estimator.json:
    the sources of the estimate, why it can't be trusted if so, and the parameters of its models.
    """
    from threadpoolctl import threadpool_limits

    from stages.embedding.lookup import VectorLookup

    candidates = schemas.scan_table(inputs["candidates"], schemas.CANDIDATES)
    qrels_scored = schemas.scan_table(inputs["qrels_scored"], schemas.QRELS_SCORED)
    queries = schemas.read_table(inputs["queries"], schemas.QUERIES, ["query_id", "query"])
    facts = _collect_known_facts(params, inputs, queries)
    document_words = None
    if len(facts.answer_strings):
        document_words = write_document_words(inputs["corpus"], context.scratch_dir / "words.arrow")
    vectors = VectorLookup(inputs, context.vectors_dir)
    vectorise = make_document_vectoriser(inputs["corpus"], vectors)
    score_pairs = make_dense_scorer(queries, vectors, vectorise)
    query_ids, n_candidates = queries["query_id"], pq.read_metadata(inputs["candidates"]).num_rows
    estimator: FalseNegativeEstimator | None = None

    def build_batch(batch: pl.Series) -> pl.DataFrame:
        found = merge_sources(collect_query_batch(candidates, batch), score_pairs)
        labels = collect_query_batch(qrels_scored, batch)
        positives = facts.positives.filter(pl.col("query_id").is_in(batch.implode()))
        documents = DocumentVectors.load(pl.concat([found["doc_id"], labels["doc_id"], positives["doc_id"]]), vectorise)
        rows = add_known_facts(found, labels, positives, facts, documents, document_words)
        if estimator and not estimator.unreliable_reason:
            rows = estimator.add_estimates(rows, documents)
        return sort_by_score(rows)

    n_pairs, batches = 0, list(iter_query_batches(query_ids, n_candidates, CANDIDATE_ROWS_PER_BATCH))
    # The matrices are small: with more threads BLAS waits longer than it computes, for hours if other processes run.
    single_thread = threadpool_limits(1, "blas")
    with single_thread, schemas.open_parquet_writer(out / "features.parquet", schemas.CANDIDATE_FEATURES) as writer:
        if params.estimate_false_negatives:
            estimator = _fit_estimator(inputs, vectors, vectorise, facts, context)
        for done, rows in enumerate(map_query_batches(build_batch, batches), 1):
            writer.write_table(schemas.to_arrow_table(rows, schemas.CANDIDATE_FEATURES))
            n_pairs += len(rows)
            context.progress.advance(min(done * len(batches[0]), len(query_ids)), len(query_ids), "queries")
    holdout_candidates = pl.DataFrame(pl.from_arrow(schemas.HOLDOUT_CANDIDATES.empty_table()))
    description: Summary = {
        "source": None,
        "unreliable_reason": "estimate_false_negatives is switched off",
        "models": [],
    }
    if estimator:
        holdout_candidates, description = estimator.build_holdout_candidates(), estimator.describe()
    schemas.write_table(holdout_candidates, schemas.HOLDOUT_CANDIDATES, out / "holdout_candidates.parquet")
    (out / "estimator.json").write_text(json.dumps(description, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return {"n_pairs": n_pairs, "estimate": estimator.summary if estimator else None}


def _fit_estimator(
    inputs: Mapping[str, Path],
    vectors: "VectorLookup",
    vectorise: DocumentVectoriser,
    facts: KnownFacts,
    context: StageContext,
) -> "FalseNegativeEstimator":
    from stages.embedding.encoder_fit import EncoderFit
    from stages.mining.estimator.pretrained_model import read_pretrained_model
    from stages.mining.estimator.table_estimator import FalseNegativeEstimator

    fit = EncoderFit.from_dict(json.loads(inputs["encoder_fit"].read_text(encoding="utf-8")))
    misfit_reason = f"the encoder does not fit it: {fit.reasons[0]}" if fit.verdict == "misfit" else None
    return FalseNegativeEstimator(
        inputs, vectors, vectorise, facts.positives, read_pretrained_model(), context.progress, misfit_reason
    )


def _collect_known_facts(params: Params, inputs: Mapping[str, Path], queries: pl.DataFrame) -> KnownFacts:
    qrels = schemas.read_table(inputs["qrels_scored"], schemas.QRELS_SCORED, ["query_id", "doc_id", "relevance"])
    answers = schemas.read_table(inputs["answers"], schemas.ANSWERS)
    return KnownFacts(
        positives=known_positives.pool_positives(queries, qrels),
        near_duplicates=schemas.read_table(inputs["near_duplicates"], schemas.NEAR_DUPLICATES),
        answer_strings=known_positives.select_answer_strings(answers if params.exclude_answers else answers.clear()),
    )
