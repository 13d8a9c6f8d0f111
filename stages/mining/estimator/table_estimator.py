"""Suspects: the estimate of false negatives over whole tables: gathers what its model needs, learns from the table."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from stages.core import schemas
from stages.core.arrays import Floats
from stages.core.context import Progress, Summary
from stages.core.hashing import sample_by_hash
from stages.core.query_batches import sort_by_score
from stages.core.schemas import DENSE_SOURCE, FEATURES, PAIR_COLUMNS
from stages.core.text import match_key
from stages.embedding.lookup import VectorLookup
from stages.mining.candidates import features
from stages.mining.candidates.document_score_stats import DocumentScoreStats
from stages.mining.candidates.documents import DocumentVectoriser, DocumentVectors, find_id_rows, iter_document_texts
from stages.mining.candidates.features import (
    FEATURE_DESCRIPTIONS,
    TRANSFERABLE_FEATURES,
    FeatureContext,
    PositiveQueries,
    ZScaler,
)
from stages.mining.candidates.known_positives import compute_positive_score_range
from stages.mining.estimator import model as learned
from stages.mining.estimator.holdout import hold_out_one
from stages.retrieval.bm25 import Bm25

MAX_TABLE_MODEL_QUERIES = 1_000
"""Questions with several positives that the table's own model learns from, drawn by hash."""
N_SCALER_DOCUMENTS = 1_024
"""Documents drawn by hash whose pairs tell how alike any two are."""
MAX_TABLE_WEIGHT_FOR_SHIFT_CHECK = 0.9
"""A table whose own model has so much of the say is not asked whether it is like those of the prior."""
SHIFT_CHECK_QUERIES = 200
"""Queries, sampled by hash, whose candidates are compared with those that the pretrained model was fitted on."""
MAX_FEATURE_SHIFT = 3.0
"""A feature whose mean lies so many of the prior's standard deviations off is out of what the prior has seen."""


class FalseNegativeEstimator:
    """p_false_negative for the candidates of a search: what the table taught, beside what the prior knows.

    `pooled_positives` is what `known.united_positives` gives: those of restated questions are nobody's negatives, so
    there is nothing to learn from them.
    """

    def __init__(
        self,
        inputs: Mapping[str, Path],
        vectors: VectorLookup,
        vectorise: DocumentVectoriser,
        pooled_positives: pl.DataFrame,
        progress: Progress,
        excluded_digest: str | None = None,
    ) -> None:
        self._candidates = schemas.scan_table(inputs["candidates"], schemas.CANDIDATES)
        queries = schemas.read_table(inputs["queries"], schemas.QUERIES, ["query_id", "query", "split"])
        qrels_scored = schemas.read_table(inputs["qrels_scored"], schemas.QRELS_SCORED)
        self._pooled_positives = pooled_positives
        self._vectorise = vectorise
        self._anchors = qrels_scored.filter(pl.col("relevance") > 0).drop("relevance").sort("query_id", "doc_id")
        match_keys = [match_key(text) for text in queries["query"]]
        self._match_keys = dict(zip(queries["query_id"], match_keys, strict=True))
        # dev and test teach nothing; nor does a question that is there twice: what is hidden of it, its other row owns
        unique_queries = queries.with_columns(pl.Series("form", match_keys, dtype=pl.String)).filter(
            pl.len().over("form") == 1
        )
        train = queries.filter(pl.col("split") == "train").select("query_id")
        train_positives = self._anchors.join(train, on="query_id", how="semi", maintain_order="left")
        self._training_positives = train_positives.join(
            unique_queries, on="query_id", how="semi", maintain_order="left"
        )
        self._context = build_feature_context(inputs["corpus"], queries, vectors, vectorise, train_positives)
        self.model, self._holdout_rows, self._holdout_features = self._fit_model(
            learned.read_pretrained_model(excluded_digest)
        )
        self.unreliable_reason = self._explain_unreliable()
        table_weight, n_queries = self.model.table_weight, self._holdout_rows["query_id"].n_unique()
        self.summary: Summary = {
            "source": "pretrained+table" if table_weight else "pretrained",
            "table_weight": round(table_weight, 3),
            "n_held_out_positives": self.model.n_hidden_positives,
            "n_table_queries": n_queries,
            "logit_offsets": self.model.logit_offsets,
            "unreliable_reason": self.unreliable_reason,
        }
        known = f"{n_queries:,} questions with several positives"
        progress.log(
            f"estimate of false negatives: this table's {known} taught it ({self.model.n_hidden_positives:,} hidden "
            f"positives "
            "found again)"
            if table_weight
            else f"estimate of false negatives: the shipped prior alone, {known} are too few to learn from"
        )

    def add_estimates(self, rows: pl.DataFrame, documents: DocumentVectors) -> pl.DataFrame:
        """`rows` (of `stage.add_known_facts`) with p_false_negative and its features where a candidate has them.

        `documents` are at least theirs and these queries' positives. A row has none where its query has no positive,
        where it is one itself, and where people judged it.
        """
        open_rows = sort_by_score(
            rows.filter(pl.col("positive_kind").is_null() & pl.col("curated_negative").is_null()).join(
                self._anchors.select("query_id").unique(), on="query_id", how="semi"
            )
        ).select("query_id", "doc_id", "score", listed=pl.col("source").str.split("+").list.contains(DENSE_SOURCE))
        feature_values = features.compute_features(open_rows, self._anchors, documents, self._context)
        p = self.predict_probability(open_rows, feature_values)
        figures = pl.DataFrame(feature_values, schema=dict.fromkeys(FEATURES, pl.Float32), orient="row")
        estimates = (
            open_rows.drop("score", "listed")
            .hstack(figures)
            .with_columns(p_false_negative=pl.Series(p, dtype=pl.Float32))
        )
        return rows.join(estimates, on=PAIR_COLUMNS, how="left")

    def predict_probability(self, rows: pl.DataFrame, feature_values: Floats) -> Floats:
        """p_false_negative [n] of rows (query_id) with features [n, len(FEATURES)]."""
        queries = rows["query_id"].rle().struct.unnest()
        fold = learned.assign_folds([self._match_keys[query_id] for query_id in queries["value"]])
        return self.model.predict_probability(feature_values, np.repeat(fold, queries["len"].to_numpy()))

    def collect_candidates(self, queries: pl.DataFrame) -> tuple[pl.DataFrame, Floats]:
        """The candidates of some queries (query_id) without their known positives, in order, and their features."""
        positives = self._anchors.join(queries.select("query_id").unique(), on="query_id", how="semi")
        rows = self._collect_rows(positives)
        return rows, self._compute_features(rows, positives)

    def build_holdout_candidates(self) -> pl.DataFrame:
        """The rows that the table's own model learned from, as TAUGHT; none where it did not."""
        if not self.model.table_models:
            return pl.DataFrame(pl.from_arrow(schemas.HOLDOUT_CANDIDATES.empty_table()))
        p = self.predict_probability(self._holdout_rows, self._holdout_features)
        return self._holdout_rows.with_columns(p_false_negative=pl.Series(p, dtype=pl.Float32)).drop("source", "listed")

    def describe(self) -> Summary:
        """What the estimate hangs on, with the models as numbers that a person can read."""
        prior = self.model.pretrained_model
        models = {
            "pretrained_single_positive": prior.single_positive,
            "pretrained_multi_positive": prior.multi_positive,
        }
        models |= {f"table_fold_{fold}": model for fold, model in enumerate(self.model.table_models)}
        return self.summary | {"models": {name: learned.model_to_dict(model) for name, model in models.items()}}

    def _fit_model(
        self, pretrained_model: learned.PretrainedModel
    ) -> tuple[learned.BlendedModel, pl.DataFrame, Floats]:
        """The estimator; the rows it was taught with (TAUGHT without p), and their features."""
        several = self._training_positives.filter(pl.len().over("query_id") > 1)
        sampled_ids = sample_by_hash(several["query_id"], MAX_TABLE_MODEL_QUERIES, "fit")
        some = several.filter(pl.col("query_id").is_in(sampled_ids))
        rounds = [self._build_holdout_round(hold_out_one(some, turn), turn) for turn in range(learned.N_HOLDOUT_ROUNDS)]
        rows, found = pl.concat([rows for rows, _ in rounds]), np.concatenate([found for _, found in rounds])
        match_keys = [self._match_keys[query_id] for query_id in rows["query_id"]]
        weights = rows["weight"].to_numpy().astype(np.float64)
        return (
            learned.fit_table_models(found, rows["held_out"].to_numpy(), weights, match_keys, pretrained_model),
            rows,
            found,
        )

    def _build_holdout_round(self, positives: pl.DataFrame, round_index: int) -> tuple[pl.DataFrame, Floats]:
        """Of `pooled_positives` (with hidden and weight) those that are hidden, among the other candidates of their
        questions:
        TAUGHT without p, and their features."""
        kept, hidden = (positives.filter(side) for side in (~pl.col("held_out"), pl.col("held_out")))
        score_range = compute_positive_score_range(kept).join(kept.select("query_id", "weight").unique(), on="query_id")
        rows = (
            self._collect_rows(kept, hidden)
            .join(hidden.select("query_id", "doc_id", "held_out"), on=PAIR_COLUMNS, how="left", maintain_order="left")
            .join(score_range, on="query_id", how="left", maintain_order="left")
            .with_columns(pl.col("held_out").fill_null(False), fold=pl.lit(round_index, pl.Int32))
        )
        return rows, self._compute_features(rows, kept)

    def _collect_rows(self, positives: pl.DataFrame, hidden: pl.DataFrame | None = None) -> pl.DataFrame:
        """The candidates of the anchors' queries as `features.compute_features` takes them, without positives but the
        hidden."""
        asked = positives.select("query_id").unique().lazy()
        found = (
            self._candidates.filter(pl.col("source") == DENSE_SOURCE).join(asked, on="query_id", how="semi").collect()
        )
        left_out = (
            self._pooled_positives
            if hidden is None
            else self._pooled_positives.join(hidden, on=PAIR_COLUMNS, how="anti")
        )
        return sort_by_score(found.join(left_out, on=PAIR_COLUMNS, how="anti")).with_columns(listed=pl.lit(True))

    def _compute_features(self, rows: pl.DataFrame, positives: pl.DataFrame) -> Floats:
        documents = DocumentVectors.load(pl.concat([rows["doc_id"], positives["doc_id"]]), self._vectorise)
        return features.compute_features(rows, positives, documents, self._context)

    def _explain_unreliable(self) -> str | None:
        """Why no model can be trusted here, in words; None where one can."""
        if self._anchors.is_empty():
            return "no question has a positive"
        if self.model.table_weight > MAX_TABLE_WEIGHT_FOR_SHIFT_CHECK:
            return None
        sampled_ids = sample_by_hash(self._anchors["query_id"], SHIFT_CHECK_QUERIES, "look")
        _, table = self.collect_candidates(pl.DataFrame({"query_id": sampled_ids}))
        if not len(table):
            return "there is no candidate beside the positives"
        shift = self.model.pretrained_model.compute_feature_shift(table)
        if shift.max() > MAX_FEATURE_SHIFT:
            what = FEATURE_DESCRIPTIONS[TRANSFERABLE_FEATURES[int(shift.argmax())]]
            return (
                f"this table is unlike those that the shipped estimate learned from in {what} "
                f"({shift.max():.1f} standard deviations off, {MAX_FEATURE_SHIFT:g} are trusted)"
            )
        return None


def build_feature_context(
    corpus: Path, queries: pl.DataFrame, vectors: VectorLookup, vectorise: DocumentVectoriser, positives: pl.DataFrame
) -> FeatureContext:
    """What the features need of a whole collection: `queries` (query_id, query), `positives` (query_id, doc_id) of
    those
    that count as owners."""
    query_numbers = (
        queries.select("query_id").with_row_index("query").select("query_id", pl.col("query").cast(pl.Int64))
    )
    doc_ids = schemas.read_table(corpus, schemas.CORPUS, ["doc_id"])["doc_id"]
    hashes = vectors.hash_queries(queries)
    positive_queries = (
        positives.join(query_numbers, on="query_id")
        .select("doc_id", "query_id", owner="query")
        .sort("doc_id", "query_id")
        .group_by("doc_id", maintain_order=True)
        .head(features.MAX_POSITIVE_QUERIES)
    )
    number_by_id = dict(query_numbers.iter_rows())
    probe_ids = sample_by_hash(number_by_id, features.N_PROBE_QUERIES, "probe")
    sampled_doc_ids = pl.Series("doc_id", sample_by_hash(doc_ids, N_SCALER_DOCUMENTS, "pair"), dtype=pl.String)
    probes = vectors.read(hashes[[number_by_id[query_id] for query_id in probe_ids]])
    return FeatureContext(
        query_numbers,
        doc_ids,
        lambda rows: vectors.read(hashes[rows]),
        Bm25(queries["query"].to_list(), (text for _, texts in iter_document_texts(corpus) for text in texts)),
        PositiveQueries.from_pairs(
            find_id_rows(positive_queries["doc_id"], doc_ids), positive_queries["owner"].to_numpy(), len(doc_ids)
        ),
        DocumentScoreStats(len(doc_ids), probes),
        ZScaler.fit(vectorise(sampled_doc_ids.to_frame())),
        ZScaler.fit(probes),
    )
