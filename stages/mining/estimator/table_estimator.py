"""The estimator of false negatives for a table: computes features, fits the table models, predicts p_false_negative."""

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
from stages.mining.candidates.documents import DocumentVectoriser, DocumentVectors
from stages.mining.candidates.feature_context import build_feature_context
from stages.mining.candidates.features import FEATURE_DESCRIPTIONS, TRANSFERABLE_FEATURES, compute_features
from stages.mining.candidates.known_positives import compute_positive_score_range
from stages.mining.estimator.blended_model import N_HOLDOUT_ROUNDS, BlendedModel, fit_table_models
from stages.mining.estimator.folds import assign_folds
from stages.mining.estimator.holdout import hold_out_one
from stages.mining.estimator.logistic_model import model_to_dict
from stages.mining.estimator.pretrained_model import PretrainedModel

MAX_TABLE_MODEL_QUERIES = 1_000
"""Queries with several positives that the table models are fitted on, sampled by hash."""
MAX_TABLE_WEIGHT_FOR_SHIFT_CHECK = 0.9
"""If the table models have a higher weight, the table need not be similar to those of the pretrained model."""
SHIFT_CHECK_QUERIES = 200
"""Queries, sampled by hash, whose candidates are compared with those that the pretrained model was fitted on."""
MAX_FEATURE_SHIFT = 3.0
"""If the mean of a feature is so many standard deviations from that of the pretrained model's data, the pretrained
model is not used."""


class FalseNegativeEstimator:
    """p_false_negative for the candidates of a table.

    `inputs` are the paths of queries, corpus, candidates and qrels_scored. `pooled_positives` is the result of
    `known_positives.pool_positives`: positives of paraphrases are neither positives nor negatives for the table models.
    `misfit_reason`: why vectors of this encoder are not to be trusted on this table, as the end of a sentence.
    """

    def __init__(
        self,
        inputs: Mapping[str, Path],
        vectors: VectorLookup,
        vectorise: DocumentVectoriser,
        pooled_positives: pl.DataFrame,
        pretrained_model: PretrainedModel,
        progress: Progress,
        misfit_reason: str | None = None,
    ) -> None:
        self._candidates = schemas.scan_table(inputs["candidates"], schemas.CANDIDATES)
        queries = schemas.read_table(inputs["queries"], schemas.QUERIES, ["query_id", "query", "split"])
        qrels_scored = schemas.read_table(inputs["qrels_scored"], schemas.QRELS_SCORED)
        self._pooled_positives = pooled_positives
        self._vectorise = vectorise
        self._positives = qrels_scored.filter(pl.col("relevance") > 0).drop("relevance").sort(PAIR_COLUMNS)
        match_keys = [match_key(text) for text in queries["query"]]
        self._match_keys = dict(zip(queries["query_id"], match_keys, strict=True))
        train = queries.filter(pl.col("split") == "train").select("query_id")
        train_positives = self._positives.join(train, on="query_id", how="semi", maintain_order="left")
        # A positive that is held out from a query may stay a positive of its paraphrase. So queries with paraphrases
        # are not used for fitting.
        unique_queries = queries.with_columns(pl.Series("match_key", match_keys, dtype=pl.String)).filter(
            pl.len().over("match_key") == 1
        )
        self._fitting_positives = train_positives.join(unique_queries, on="query_id", how="semi", maintain_order="left")
        self._context = build_feature_context(inputs["corpus"], queries, vectors, vectorise, train_positives)
        self.model, self._holdout_rows, self._holdout_features = self._fit_model(pretrained_model)
        self.unreliable_reason = misfit_reason or self._explain_unreliable()
        n_queries = self._holdout_rows["query_id"].n_unique()
        self.summary: Summary = {
            "source": "pretrained+table" if self.model.table_weight else "pretrained",
            "table_weight": round(self.model.table_weight, 3),
            "n_held_out_positives": self.model.n_held_out_positives,
            "n_table_queries": n_queries,
            "logit_offsets": self.model.logit_offsets,
            "unreliable_reason": self.unreliable_reason,
        }
        usable = f"{n_queries:,} queries with several positives"
        progress.log(
            f"estimate of false negatives: fitted on {usable} of this table ({self.model.n_held_out_positives:,} of "
            "their positives were held out and found again)"
            if self.model.table_weight
            else f"estimate of false negatives: by the pretrained model alone; {usable} are too few to fit on"
        )

    def add_estimates(self, rows: pl.DataFrame, documents: DocumentVectors) -> pl.DataFrame:
        """`rows` (of `known_facts.add_known_facts`) with the features and p_false_negative of each candidate.

        They are null for known positives, curated negatives, and candidates of queries without a positive. `documents`
        contains the documents of `rows` and of these queries' positives.
        """
        is_unlabelled = pl.col("positive_kind").is_null() & pl.col("curated_negative").is_null()
        unlabelled = sort_by_score(
            rows.filter(is_unlabelled).join(self._positives.select("query_id").unique(), on="query_id", how="semi")
        ).select(*PAIR_COLUMNS, "score", listed=pl.col("source").str.split("+").list.contains(DENSE_SOURCE))
        features = compute_features(unlabelled, self._positives, documents, self._context)
        p = self.predict_probability(unlabelled, features)
        estimates = (
            unlabelled.select(PAIR_COLUMNS)
            .hstack(pl.DataFrame(features, schema=dict.fromkeys(FEATURES, pl.Float32), orient="row"))
            .with_columns(p_false_negative=pl.Series(p, dtype=pl.Float32))
        )
        return rows.join(estimates, on=PAIR_COLUMNS, how="left")

    def predict_probability(self, rows: pl.DataFrame, features: Floats) -> Floats:
        """p_false_negative [n] of rows (query_id, sorted by it) with features [n, len(FEATURES)]."""
        queries = rows["query_id"].rle().struct.unnest()
        fold = assign_folds([self._match_keys[query_id] for query_id in queries["value"]])
        return self.model.predict_probability(features, np.repeat(fold, queries["len"].to_numpy()))

    def collect_candidates(self, queries: pl.DataFrame) -> tuple[pl.DataFrame, Floats]:
        """The candidates of `queries` (query_id) without known positives, sorted by score, and their features."""
        positives = self._positives.join(queries.select("query_id").unique(), on="query_id", how="semi")
        rows = self._collect_rows(positives)
        return rows, self._compute_features(rows, positives)

    def build_holdout_candidates(self) -> pl.DataFrame:
        """The rows that the table models were fitted on, as HOLDOUT_CANDIDATES; none without table models."""
        if not self.model.table_models:
            return pl.DataFrame(pl.from_arrow(schemas.HOLDOUT_CANDIDATES.empty_table()))
        p = self.predict_probability(self._holdout_rows, self._holdout_features)
        return self._holdout_rows.with_columns(p_false_negative=pl.Series(p, dtype=pl.Float32)).drop("source", "listed")

    def describe(self) -> Summary:
        """The summary and the parameters of all models."""
        models = {
            "pretrained_single_positive": self.model.pretrained_model.single_positive,
            "pretrained_multi_positive": self.model.pretrained_model.multi_positive,
        }
        models |= {f"table_fold_{fold}": model for fold, model in enumerate(self.model.table_models)}
        return self.summary | {"models": {name: model_to_dict(model) for name, model in models.items()}}

    def _fit_model(self, pretrained_model: PretrainedModel) -> tuple[BlendedModel, pl.DataFrame, Floats]:
        """The model; the rows that it was fitted on (HOLDOUT_CANDIDATES without p), and their features."""
        multi_positives = self._fitting_positives.filter(pl.len().over("query_id") > 1)
        sampled_ids = sample_by_hash(multi_positives["query_id"], MAX_TABLE_MODEL_QUERIES, "fit")
        sampled = multi_positives.filter(pl.col("query_id").is_in(sampled_ids))
        rounds = [self._build_holdout_round(hold_out_one(sampled, i), i) for i in range(N_HOLDOUT_ROUNDS)]
        rows = pl.concat([rows for rows, _ in rounds])
        features = np.concatenate([features for _, features in rounds])
        match_keys = [self._match_keys[query_id] for query_id in rows["query_id"]]
        labels, weights = rows["held_out"].to_numpy(), rows["weight"].to_numpy().astype(np.float64)
        return fit_table_models(features, labels, weights, match_keys, pretrained_model), rows, features

    def _build_holdout_round(self, positives: pl.DataFrame, round_index: int) -> tuple[pl.DataFrame, Floats]:
        """The held-out ones of `positives` (of `hold_out_one`) and the other candidates of their queries.

        Returned are HOLDOUT_CANDIDATES without p, and their features.
        """
        kept, held_out = (positives.filter(side) for side in (~pl.col("held_out"), pl.col("held_out")))
        score_range = compute_positive_score_range(kept).join(kept.select("query_id", "weight").unique(), on="query_id")
        rows = (
            self._collect_rows(kept, held_out)
            .join(held_out.select(*PAIR_COLUMNS, "held_out"), on=PAIR_COLUMNS, how="left", maintain_order="left")
            .join(score_range, on="query_id", how="left", maintain_order="left")
            .with_columns(pl.col("held_out").fill_null(False), fold=pl.lit(round_index, pl.Int32))
        )
        return rows, self._compute_features(rows, kept)

    def _collect_rows(self, positives: pl.DataFrame, held_out: pl.DataFrame | None = None) -> pl.DataFrame:
        """The first encoder's candidates of the queries of `positives`, as rows of `features.compute_features`.

        Known positives are left out, except those in `held_out`.
        """
        queries = positives.select("query_id").unique().lazy()
        is_dense = pl.col("source") == DENSE_SOURCE
        found = self._candidates.filter(is_dense).join(queries, on="query_id", how="semi").collect()
        known = self._pooled_positives
        if held_out is not None:
            known = known.join(held_out, on=PAIR_COLUMNS, how="anti")
        return sort_by_score(found.join(known, on=PAIR_COLUMNS, how="anti")).with_columns(listed=pl.lit(True))

    def _compute_features(self, rows: pl.DataFrame, positives: pl.DataFrame) -> Floats:
        documents = DocumentVectors.load(pl.concat([rows["doc_id"], positives["doc_id"]]), self._vectorise)
        return compute_features(rows, positives, documents, self._context)

    def _explain_unreliable(self) -> str | None:
        """Why p_false_negative can't be trusted on this table, as the end of a sentence; None if it can."""
        if self._positives.is_empty():
            return "no query has a positive"
        if self.model.table_weight > MAX_TABLE_WEIGHT_FOR_SHIFT_CHECK:
            return None
        sampled_ids = sample_by_hash(self._positives["query_id"], SHIFT_CHECK_QUERIES, "look")
        _, features = self.collect_candidates(pl.DataFrame({"query_id": sampled_ids}))
        if not len(features):
            return "there are no candidates besides the positives"
        shift = self.model.pretrained_model.compute_feature_shift(features)
        if shift.max() > MAX_FEATURE_SHIFT:
            difference = FEATURE_DESCRIPTIONS[TRANSFERABLE_FEATURES[int(shift.argmax())]]
            return (
                f"this table differs from those that the pretrained model was fitted on in {difference} "
                f"({shift.max():.1f} standard deviations, the limit is {MAX_FEATURE_SHIFT:g})"
            )
        return None
