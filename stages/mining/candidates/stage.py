"""Evidence: all that speaks for or against a candidate, before any rule decides. The mask goes by it in seconds.

A candidate is a (query, document) pair, whichever retrievers found it, with what is known of it without a score (a
positive by id or by text, a document that holds the answer, one that people judged), its likeness to the positives,
and p_false_negative with the features behind it (`stages.mining.estimator.model`).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.core import schemas
from stages.core.model_files import file_digest
from stages.core.params import Params as BaseParams
from stages.core.params import option
from stages.core.query_batches import in_order, of_block, ordered, query_blocks
from stages.core.schemas import DENSE, Summary, Tools
from stages.embedding.vector_store import Floats
from stages.mining.candidates import known_positives
from stages.mining.candidates.documents import Held, Vectorise, document_vectors, loose_forms, text_keys
from stages.retrieval.exact.scoring import pair_scores

if TYPE_CHECKING:
    from stages.embedding.lookup import Vectors
    from stages.mining.estimator.table_estimator import Suspects

VERSION = 7

ROWS_A_BLOCK = 100_000
"""Candidates looked at together; bounds memory (their document vectors are in it) and changes no result."""


class Params(BaseParams):
    """What is looked for."""

    answers: bool = option(
        True, "Set documents aside that hold a known answer of the query as whole words (DPR's rule)."
    )
    min_answer_chars: int = option(
        4, "Answers narrower than this are not looked for; a Chinese, Japanese or Korean character counts as two.", ge=1
    )
    estimate: bool = option(
        True,
        "Estimate for every candidate how likely it is a false negative. mask = learned goes by it; with a fixed rule "
        "it says how many of the negatives written are false.",
    )


def identity(params: Params) -> dict[str, str]:
    """The shipped prior, where an estimate hangs on it."""
    from stages.mining.estimator.model import PRIOR

    return {"prior": file_digest(PRIOR)} if params.estimate else {}


def run(params: Params, inputs: Mapping[str, Path], out: Path, tools: Tools) -> Summary:
    """Write evidence.parquet, a row for each candidate and curated negative; and what its estimator learned from.

    shown.parquet: the candidates of the questions whose positives were hidden, with the p of the fold that did not see
    them; estimator.json: which sources the estimate has, why it can't be trusted, and the models as numbers.
    """
    from threadpoolctl import threadpool_limits

    from stages.embedding.lookup import Vectors

    candidates = schemas.scan_table(inputs["candidates"], schemas.CANDIDATES)
    judged = schemas.scan_table(inputs["judged"], schemas.JUDGED)
    queries = schemas.read_table(inputs["queries"], schemas.QUERIES, ["query_id", "query"]).sort("query_id")
    answers = schemas.read_table(inputs["answers"], schemas.ANSWERS)
    truth = Truth(
        positives=known_positives.united_positives(queries, judged.select("query_id", "doc_id", "relevance").collect()),
        twins=text_keys(inputs["corpus"]).filter(pl.len().over("text_key") > 1),
        needles=known_positives.usable_answers(answers if params.answers else answers.clear(), params.min_answer_chars),
    )
    forms = loose_forms(inputs["corpus"], tools.scratch / "loose.arrow") if len(truth.needles) else None
    vectors = Vectors(inputs["encoding"], tools.vectors)
    vectorise = document_vectors(inputs["corpus"], vectors)
    measure = dense_scores(queries, vectors, vectorise)
    ids, total = queries["query_id"], pq.read_metadata(inputs["candidates"]).num_rows

    def judged_rows(block: pl.Series) -> pl.DataFrame:
        found, labels = united(of_block(candidates, block), measure), of_block(judged, block)
        positives = truth.positives.filter(pl.col("query_id").is_in(block.implode()))
        documents = Held.of(pl.concat([found["doc_id"], labels["doc_id"], positives["doc_id"]]), vectorise)
        rows = flagged(found, labels, positives, truth, documents, forms)
        return ordered(suspects.judged(rows, documents) if suspects and not suspects.unfit else rows)

    pairs, blocks = 0, list(query_blocks(ids, total, ROWS_A_BLOCK))
    # What is multiplied here is small: more threads of BLAS wait longer than they compute, and hours where others work.
    alone = threadpool_limits(1, "blas")
    with alone, schemas.writer(out / "evidence.parquet", schemas.EVIDENCE) as writer:
        suspects = _suspects(inputs, vectors, vectorise, truth, tools) if params.estimate else None
        for done, rows in enumerate(in_order(judged_rows, blocks), 1):
            writer.write_table(schemas.to_arrow(rows, schemas.EVIDENCE))
            pairs += len(rows)
            tools.progress.advance(min(done * len(blocks[0]), len(ids)), len(ids), "queries")
    taught = suspects.taught() if suspects else pl.DataFrame(pl.from_arrow(schemas.TAUGHT.empty_table()))
    schemas.write_table(taught, schemas.TAUGHT, out / "shown.parquet")
    about = suspects.about() if suspects else {"source": None, "unfit": "estimate is switched off", "models": []}
    (out / "estimator.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return {"pairs": pairs, "estimated": suspects.summary if suspects else None}


@dataclass(frozen=True)
class Truth:
    """What is known of the whole collection before any score is looked at."""

    positives: pl.DataFrame
    """query_id, doc_id, own: `known.united_positives`."""
    twins: pl.DataFrame
    """doc_id, text_key of the documents whose text another one has too: `documents.text_keys`."""
    needles: pl.DataFrame
    """query_id, needle: `known.usable_answers`."""


def _suspects(
    inputs: Mapping[str, Path], vectors: "Vectors", vectorise: Vectorise, truth: Truth, tools: Tools
) -> "Suspects":
    from stages.mining.estimator.table_estimator import Suspects

    return Suspects(inputs, vectors, vectorise, truth.positives, tools.progress)


def united(candidates: pl.DataFrame, measure: Callable[[pl.DataFrame], Floats]) -> pl.DataFrame:
    """One row a pair of CANDIDATES that several sources may have found.

    Its source is their names joined by "+", in their order; its rank that of the first encoder, or else the best of
    another; its score that of the first encoder, by which the rules measure: `measure` gives it for pairs (query_id,
    doc_id) that this one did not find.
    """
    if candidates["source"].is_in([DENSE]).all():
        return candidates
    first = pl.col("source") == DENSE
    rows = candidates.group_by("query_id", "doc_id", maintain_order=True).agg(
        source=pl.col("source").str.join("+"),
        rank=pl.coalesce(pl.col("rank").filter(first).first(), pl.col("rank").min()),
        score=pl.col("score").filter(first).first(),
    )
    lacking = rows.filter(pl.col("score").is_null()).select("query_id", "doc_id")
    measured = lacking.with_columns(measured=pl.Series(measure(lacking), dtype=pl.Float32))
    rows = rows.join(measured, on=["query_id", "doc_id"], how="left", maintain_order="left")
    return rows.with_columns(score=pl.coalesce("score", "measured")).drop("measured")


def dense_scores(queries: pl.DataFrame, vectors: "Vectors", vectorise: Vectorise) -> Callable[[pl.DataFrame], Floats]:
    """A function from pairs (query_id, doc_id) to their scores by the first encoder [n], as search computes them."""
    hashes = vectors.query_hashes(queries)
    places = queries.select("query_id").with_row_index("place")

    def measure(pairs: pl.DataFrame) -> Floats:
        if pairs.is_empty():
            return np.empty(0, np.float32)
        asked = pairs.join(places, on="query_id", how="left", maintain_order="left")["place"].to_numpy()
        return pair_scores(vectors.read(hashes[asked]), vectorise(pairs))

    return measure


def flagged(
    candidates: pl.DataFrame,
    judged: pl.DataFrame,
    positives: pl.DataFrame,
    truth: Truth,
    documents: Held,
    forms: pa.Table | None = None,
) -> pl.DataFrame:
    """Some queries' candidates and curated negatives with what is known of them.

    `candidates`, `judged` and `positives` hold all rows of these queries, as their contracts and `Truth` say;
    `documents` are at least theirs; `forms` (doc_id, loose) is needed where `truth.needles` has rows. Columns: those of
    EVIDENCE up to positive_similarity.
    """
    pair = ["query_id", "doc_id"]
    curated = judged.filter(pl.col("relevance") == 0).select(*pair, "score", curated=pl.lit(True))
    missing = curated.join(candidates, on=pair, how="anti").select(
        *pair, source=pl.lit("curated"), rank=pl.lit(0, pl.Int32), score="score"
    )
    rows = pl.concat([candidates.select(missing.columns), missing])
    rows = known_positives.positive_similarity(rows, positives, documents)
    rows = rows.join(positives, on=pair, how="left").join(curated.drop("score"), on=pair, how="left")
    texts = positives.join(truth.twins, on="doc_id").select("query_id", "text_key", same_text=pl.lit(True)).unique()
    rows = rows.join(truth.twins, on="doc_id", how="left").join(texts, on=["query_id", "text_key"], how="left")
    if not len(truth.needles) or forms is None:
        return rows.drop("text_key")
    asked = rows.filter(pl.col("own").is_null() & pl.col("curated").is_null())
    asked = asked.join(truth.needles, on="query_id", how="semi")
    texts_of = forms.filter(pc.is_in(forms["doc_id"], asked["doc_id"].unique().to_arrow()))
    holding = known_positives.containing_answer(asked, truth.needles, pl.DataFrame(pl.from_arrow(texts_of)))
    return rows.join(holding.with_columns(contains_answer=pl.lit(True)), on=pair, how="left").drop("text_key")
