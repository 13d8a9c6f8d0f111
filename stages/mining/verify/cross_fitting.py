"""Cross-fitting: a self-trained verifier, made of rerankers that are trained on the table itself.

Queries are split into K folds by a hash of their group. A reranker is trained on all folds but one and scores that one,
so that no query is scored by a model that saw it (Chernozhukov et al. 2018). `build-pairs` defines the groups: a query
and its paraphrases share one, and usually queries that share a positive do too. If they do not (--split-by, or a table
that would be one group), a model may have seen a document as the positive of *another* query. That is no label leak,
but it favours documents that are somebody's positive, as held-out positives are.
`CrossFitReranker.is_training_positive` finds these documents, so that the gain can be measured without them
(tests/benchmarks/self_trained_verifier.py).

Training uses only safe labels: positives, and candidates with a low p_false_negative, half of them the hardest ones.
`stacking.fit_stacked_model` decides whether the scores are used.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from stages.core.arrays import Bools, Floats, Ints
from stages.core.context import StageContext
from stages.core.hashing import sample_by_hash, stable_hash
from stages.core.schemas import PAIR_COLUMNS
from stages.mining.verify.cross_encoder import MIN_UNCERTAIN_P, CrossEncoderVerifier
from stages.reranking.cross_encoder import TextPair, save_reranker
from stages.training import stage as training_stage
from stages.training.collapse import detect_training_collapse
from stages.training.examples import MinedQuery, subsample_queries
from stages.training.params import Params as TrainParams

NEGATIVES_PER_QUERY = 16
"""Negatives of a training query; each epoch samples from them."""
MIN_QUERIES_PER_FOLD = 200
"""Training queries that a fold needs. Measured by tests/benchmarks/self_trained_verifier.py with a new head on MiniLM
that is first distilled from the retriever's scores, on all 1,958 queries of bioasq (4,826 held-out positives with an
uncertain p): with 200 queries the verifier's AUC is 0.664 (p: 0.890) and the log loss falls from 0.3824 by 0.0033,
three standard errors; with 900 queries, 0.778 and 0.0131. Without distillation, 100 queries of stackfaq gave 0.51 (p:
0.997). A base trained to rank on 1,500 queries of squad_dev, instead of distillation, gave 0.690 with 200 and 0.723
with 900, on 400 queries of bioasq where distillation and 900 gave 0.749."""


@dataclass(frozen=True)
class TrainingSet:
    """The training data of the rerankers: train queries only, so that no label of dev or test is used."""

    queries: tuple[MinedQuery, ...]
    document_texts: Mapping[str, str]
    """doc_id -> text."""
    query_groups: Mapping[str, str]
    """query_id -> group, for every query that is scored or trained on."""


class CrossFitReranker:
    """K rerankers, trained when they are first needed and saved in `folder`, so that a killed run can resume.

    `params` are training parameters; `max_queries` limits the training queries of each fold. `candidates` and `corpus`
    are files. `cache_folder` is that of `CrossEncoderVerifier`.
    """

    def __init__(
        self,
        params: TrainParams,
        n_folds: int,
        training_set: TrainingSet,
        candidates: Path,
        corpus: Path,
        folder: Path,
        cache_folder: Path,
        context: StageContext,
    ) -> None:
        self.params, self.n_folds, self.training_set = params, n_folds, training_set
        self._candidates, self._corpus, self._folder, self._cache_folder, self._context = (
            candidates,
            corpus,
            folder,
            cache_folder,
            context,
        )
        query_folds = assign_group_folds(
            [training_set.query_groups[query.query_id] for query in training_set.queries], n_folds
        )
        self.training_queries_by_fold = tuple(
            subsample_queries(
                [q for q, f in zip(training_set.queries, query_folds, strict=True) if f != fold],
                params.max_queries,
                params.seed,
            )
            for fold in range(n_folds)
        )
        """The training queries of each fold's model."""
        self.counts = {"scored": 0, "cached": 0}
        self.collapse_reasons: list[str] = []
        """The collapsed models, each with the reason in words."""
        n_smallest = min(len(queries) for queries in self.training_queries_by_fold)
        self.skip_reason = (
            f"a fold has {n_smallest} training questions, and {MIN_QUERIES_PER_FOLD} are needed"
            if n_smallest < MIN_QUERIES_PER_FOLD
            else None
        )
        """Why no reranker should be trained, in words; None if one should."""

    def score_pairs(self, query_ids: Sequence[str], pairs: Sequence[TextPair]) -> Floats:
        """The logit of each (query, document) by the model that did not see the query's group: float32 [n]."""
        pair_folds = assign_group_folds(
            [self.training_set.query_groups[query_id] for query_id in query_ids], self.n_folds
        )
        out = np.empty(len(pairs), np.float32)
        for fold in np.unique(pair_folds).tolist():
            rows = np.flatnonzero(pair_folds == fold)
            verifier = self._load_fold_verifier(fold)
            out[rows] = verifier.score_pairs([pairs[row] for row in rows.tolist()])
            for name, count in verifier.counts.items():
                self.counts[name] += count
        return out

    def is_training_positive(self, query_ids: Sequence[str], doc_ids: Sequence[str]) -> Bools:
        """Whether the model that scores the query was trained with the document as another query's positive: [n]."""
        fold_positives = [
            {doc_id for query in queries for doc_id in query.positives} for queries in self.training_queries_by_fold
        ]
        pair_folds = assign_group_folds(
            [self.training_set.query_groups[query_id] for query_id in query_ids], self.n_folds
        )
        return np.array(
            [doc_id in fold_positives[fold] for doc_id, fold in zip(doc_ids, pair_folds, strict=True)], np.bool_
        )

    def _load_fold_verifier(self, fold: int) -> CrossEncoderVerifier:
        model_folder = self._folder / f"fold-{fold}" / "reranker"
        if not model_folder.exists():
            self._train_fold(fold, model_folder)
        return CrossEncoderVerifier(
            str(model_folder),
            self._cache_folder,
            self.params.device,
            self.params.max_length,
            self.params.dtype,
            self._context.progress,
        )

    def _train_fold(self, fold: int, model_folder: Path) -> None:
        training_queries = self.training_queries_by_fold[fold]
        self._context.progress.log(
            f"self-trained verifier {fold + 1} of {self.n_folds}: training on {len(training_queries)} questions"
        )
        context = replace(
            self._context,
            scratch=model_folder.parent / "training",
            logs=self._context.logs_dir / model_folder.parent.name,
        )
        context.scratch_dir.mkdir(parents=True, exist_ok=True)
        trained = training_stage.train_reranker(
            self.params,
            training_queries,
            self.training_set.document_texts,
            self._candidates,
            self._corpus,
            dev_evaluator=None,
            context=context,
        )
        if collapse_reason := detect_training_collapse(
            trained.history, trained.chance_losses, trained.n_distill_epochs
        ):
            self.collapse_reasons.append(collapse_reason)
            self._context.progress.log(
                f"self-trained verifier {fold + 1} ranks no better than chance: {collapse_reason}"
            )
        temporary_folder = model_folder.with_suffix(".tmp")
        shutil.rmtree(temporary_folder, ignore_errors=True)
        save_reranker(trained.model, temporary_folder)
        temporary_folder.rename(model_folder)
        shutil.rmtree(context.scratch_dir)


def assign_group_folds(groups: Sequence[str], n_folds: int) -> Ints:
    """The fold of each group, by a hash: [n]."""
    return np.array([stable_hash(0, "crossfit", group) % n_folds for group in groups], np.int64)


def build_training_queries(
    queries: pl.DataFrame, candidates: pl.DataFrame, positives: pl.DataFrame, seed: int, max_p: float = MIN_UNCERTAIN_P
) -> tuple[MinedQuery, ...]:
    """The queries of `queries` (query_id, query) with a positive and a safe negative, sorted by id.

    Safe negatives are the `candidates` (query_id, doc_id, score, p_false_negative) with a p of at most `max_p`. The 8
    with the highest score and 8 random ones are used. `positives`: query_id, doc_id.
    """
    order = ["query_id", "score", "doc_id"]
    safe_negatives = candidates.join(positives, on=PAIR_COLUMNS, how="anti").filter(pl.col("p_false_negative") <= max_p)
    negatives_by_query = (
        safe_negatives.sort(order, descending=[False, True, False])
        .group_by("query_id", maintain_order=True)
        .agg("doc_id")
    )
    positives_by_query = (
        positives.sort("query_id", "doc_id").group_by("query_id", maintain_order=True).agg(positives="doc_id")
    )
    joined = (
        queries.select("query_id", "query")
        .join(positives_by_query, on="query_id")
        .join(negatives_by_query, on="query_id")
        .sort("query_id")
    )
    n_half = NEGATIVES_PER_QUERY // 2
    return tuple(
        MinedQuery(
            query_id,
            query,
            tuple(positive_ids),
            (*negative_ids[:n_half], *sample_by_hash(negative_ids[n_half:], n_half, f"self:{query_id}", seed)),
        )
        for query_id, query, positive_ids, negative_ids in joined.iter_rows()
    )
