"""Evidence: all that speaks for or against a candidate, before any rule decides. The mask goes by it in seconds.

A candidate is a (query, document) pair, whichever retrievers found it, with what is known of it without a score (a
positive by id or by text, a document that holds the answer, one that people judged), its likeness to the positives,
and p_false_negative with the features behind it (`stages.mining.estimator.model`).
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
    compute_text_keys,
    make_document_vectoriser,
    write_document_words,
)
from stages.mining.candidates.known_facts import KnownFacts, add_known_facts
from stages.mining.candidates.merge import make_dense_scorer, merge_sources

if TYPE_CHECKING:
    from stages.embedding.lookup import VectorLookup
    from stages.mining.estimator.table_estimator import FalseNegativeEstimator

VERSION = 8

CANDIDATE_ROWS_PER_BLOCK = 100_000
"""Candidates looked at together; bounds memory (their document vectors are in it) and changes no result."""


class Params(BaseParams):
    """What is looked for."""

    exclude_answers: bool = option(True, "Set aside documents that contain a known answer of the query.", advanced=True)
    estimate_false_negatives: bool = option(
        True,
        "Estimate for each candidate how likely it is a false negative. mask = learned needs it.",
        advanced=True,
    )


def key_extras(params: Params) -> dict[str, str]:
    """The shipped prior, where an estimate hangs on it."""
    from stages.mining.estimator.model import PRETRAINED_MODEL_PATH

    return {"pretrained_model": file_digest(PRETRAINED_MODEL_PATH)} if params.estimate_false_negatives else {}


def run(params: Params, inputs: Mapping[str, Path], out: Path, context: StageContext) -> Summary:
    """Write features.parquet, a row for each candidate and curated negative; and what its estimator learned from.

    holdout_candidates.parquet: the candidates of the questions whose positives were held out, with the p of the fold
    that did not see them; estimator.json: the estimate's sources, why it can't be trusted, and the models as numbers.
    """
    from threadpoolctl import threadpool_limits

    from stages.embedding.lookup import VectorLookup

    candidates = schemas.scan_table(inputs["candidates"], schemas.CANDIDATES)
    qrels_scored = schemas.scan_table(inputs["qrels_scored"], schemas.QRELS_SCORED)
    queries = schemas.read_table(inputs["queries"], schemas.QUERIES, ["query_id", "query"]).sort("query_id")
    answers = schemas.read_table(inputs["answers"], schemas.ANSWERS)
    facts = KnownFacts(
        positives=known_positives.pool_positives(
            queries, qrels_scored.select("query_id", "doc_id", "relevance").collect()
        ),
        duplicate_docs=compute_text_keys(inputs["corpus"]).filter(pl.len().over("text_key") > 1),
        answer_strings=known_positives.select_answer_strings(answers if params.exclude_answers else answers.clear()),
    )
    document_words = None
    if len(facts.answer_strings):
        document_words = write_document_words(inputs["corpus"], context.scratch_dir / "words.arrow")
    vectors = VectorLookup(inputs["encoder"], context.vectors_dir)
    vectorise = make_document_vectoriser(inputs["corpus"], vectors)
    score_pairs = make_dense_scorer(queries, vectors, vectorise)
    ids, total = queries["query_id"], pq.read_metadata(inputs["candidates"]).num_rows

    def build_block(block: pl.Series) -> pl.DataFrame:
        found, labels = (
            merge_sources(collect_query_batch(candidates, block), score_pairs),
            collect_query_batch(qrels_scored, block),
        )
        positives = facts.positives.filter(pl.col("query_id").is_in(block.implode()))
        documents = DocumentVectors.load(pl.concat([found["doc_id"], labels["doc_id"], positives["doc_id"]]), vectorise)
        rows = add_known_facts(found, labels, positives, facts, documents, document_words)
        return sort_by_score(
            estimator.add_estimates(rows, documents) if estimator and not estimator.unreliable_reason else rows
        )

    n_pairs, blocks = 0, list(iter_query_batches(ids, total, CANDIDATE_ROWS_PER_BLOCK))
    # What is multiplied here is small: more threads of BLAS wait longer than they compute, and hours where others work.
    single_thread = threadpool_limits(1, "blas")
    with single_thread, schemas.open_parquet_writer(out / "features.parquet", schemas.CANDIDATE_FEATURES) as writer:
        estimator = (
            _fit_estimator(inputs, vectors, vectorise, facts, context) if params.estimate_false_negatives else None
        )
        for done, rows in enumerate(map_query_batches(build_block, blocks), 1):
            writer.write_table(schemas.to_arrow_table(rows, schemas.CANDIDATE_FEATURES))
            n_pairs += len(rows)
            context.progress.advance(min(done * len(blocks[0]), len(ids)), len(ids), "queries")
    holdout_candidates = (
        estimator.build_holdout_candidates()
        if estimator
        else pl.DataFrame(pl.from_arrow(schemas.HOLDOUT_CANDIDATES.empty_table()))
    )
    schemas.write_table(holdout_candidates, schemas.HOLDOUT_CANDIDATES, out / "holdout_candidates.parquet")
    description = (
        estimator.describe()
        if estimator
        else {"source": None, "unreliable_reason": "estimate_false_negatives is switched off", "models": []}
    )
    (out / "estimator.json").write_text(json.dumps(description, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return {"n_pairs": n_pairs, "estimate": estimator.summary if estimator else None}


def _fit_estimator(
    inputs: Mapping[str, Path],
    vectors: "VectorLookup",
    vectorise: DocumentVectoriser,
    facts: KnownFacts,
    context: StageContext,
) -> "FalseNegativeEstimator":
    from stages.mining.estimator.table_estimator import FalseNegativeEstimator

    return FalseNegativeEstimator(inputs, vectors, vectorise, facts.positives, context.progress)
