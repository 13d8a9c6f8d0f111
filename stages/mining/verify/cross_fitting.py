"""Cross-fitting: where no teacher is at hand, rerankers trained on the table itself, each for other questions.

Questions are put in K folds by a hash of their group; a reranker is trained on all folds but one and scores that one,
so no question is scored by a model that saw it (Chernozhukov et al. 2018 for the name). What a group is, `build-pairs`
has settled: restated questions always share one, and, unless --split-by says otherwise or the table hangs together as a
whole, so do questions that share a positive. Where such documents stand in several folds, a model has seen some as the
right answer to *another* question. That is no label of the question at hand, but it speaks for documents that are
anybody's positive, as hidden positives are and unlabelled ones may not be: `CrossFitReranker.is_training_positive` says
which these are, so that the gain can be looked at without them (tests/benchmarks/self_teacher.py does).

What is learned from is safe: positives, and candidates whose p says that they are no false negatives, half of them the
hardest of those. Whether the teacher is worth hearing, `stacking.fit_stacked_model` decides.
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
"""Of a question, to draw from."""
MIN_QUERIES_PER_FOLD = 200
"""To train a fold on; with fewer it is not tried. Measured with a new head on MiniLM's body that first learns the
retriever's scores, by tests/benchmarks/self_teacher.py on all 1,958 questions of bioasq (4,826 hidden positives where p
is unsure): with 200 questions the teacher's AUC is 0.664 (p: 0.890) and the log loss falls by 0.0033, three standard
errors, from 0.3824; with 900, 0.778 and 0.0131. Without that first lesson 100 questions of stackfaq taught nothing
(0.51; p: 0.997). A base that had learned to rank on 1,500 questions of squad_dev, in its place, gave 0.690 with 200 and
0.723 with 900, on 400 of bioasq's questions where 900 with that lesson gave 0.749."""


@dataclass(frozen=True)
class TrainingSet:
    """What the rerankers are taught with: train questions only, so that no label of dev or test is learned."""

    queries: tuple[MinedQuery, ...]
    document_texts: Mapping[str, str]
    """doc_id -> text."""
    query_groups: Mapping[str, str]
    """query_id -> group, of every question that is to be scored or trained on."""


class CrossFitReranker:
    """K rerankers, trained when they are first needed and kept in `folder` (which outlives a kill) until
    it goes.

    `params` are those of [train]; its `max_queries` bounds the questions of each fold's training. `candidates`
    and `corpus` are the files, `cache_folder` is where scores are kept, as `CrossEncoderVerifier` does.
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
        """What each fold's model is trained on."""
        self.counts = {"scored": 0, "cached": 0}
        self.collapse_reasons: list[str] = []
        """Why a fold's model tells nothing apart, in words."""
        n_smallest = min(len(lesson) for lesson in self.training_queries_by_fold)
        self.skip_reason = (
            f"{n_smallest} questions to train a fold on are too few, {MIN_QUERIES_PER_FOLD} are needed"
            if n_smallest < MIN_QUERIES_PER_FOLD
            else None
        )
        """Why it is not worth trying, in words; None where it is."""

    def score_pairs(self, query_ids: Sequence[str], pairs: Sequence[TextPair]) -> Floats:
        """The logit of each (query, document) by the model that saw no question of the query's group: float32 [n]."""
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
        """Whether the model that scores the query has been taught that the document is right for another one: [n]."""
        fold_positives = [
            {doc_id for query in lesson for doc_id in query.positives} for lesson in self.training_queries_by_fold
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
            f"self-taught teacher {fold + 1} of {self.n_folds}: training on {len(training_queries)} questions"
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
            self._context.progress.log(f"self-taught teacher {fold + 1} tells nothing apart: {collapse_reason}")
        temporary_folder = model_folder.with_suffix(".tmp")
        shutil.rmtree(temporary_folder, ignore_errors=True)
        save_reranker(trained.model, temporary_folder)
        temporary_folder.rename(model_folder)
        shutil.rmtree(context.scratch_dir)


def assign_group_folds(groups: Sequence[str], n_folds: int) -> Ints:
    """The fold of each group, by a hash of its name: [n]."""
    return np.array([stable_hash(0, "crossfit", group) % n_folds for group in groups], np.int64)


def build_training_queries(
    queries: pl.DataFrame, candidates: pl.DataFrame, positives: pl.DataFrame, seed: int, max_p: float = MIN_UNCERTAIN_P
) -> tuple[MinedQuery, ...]:
    """The questions of `queries` (query_id, query) that have a positive and a safe negative, sorted by id.

    `candidates` (query_id, doc_id, score, p_false_negative) are candidates; those with p of at most `max_p` count, of
    which the 8 that the retriever scores highest are taken and 8 drawn by hash. `positives`: query_id, doc_id.
    """
    order = ["query_id", "score", "doc_id"]
    safe_negatives = candidates.join(positives, on=PAIR_COLUMNS, how="anti").filter(pl.col("p_false_negative") <= max_p)
    negatives_by_query = (
        safe_negatives.sort(order, descending=[False, True, False])
        .group_by("query_id", maintain_order=True)
        .agg("doc_id")
    )
    positives_by_query = (
        positives.sort("query_id", "doc_id").group_by("query_id", maintain_order=True).agg(right="doc_id")
    )
    joined = (
        queries.select("query_id", "query")
        .join(positives_by_query, on="query_id")
        .join(negatives_by_query, on="query_id")
        .sort("query_id")
    )
    return tuple(
        MinedQuery(
            query_id,
            query,
            tuple(own),
            (
                *others[: NEGATIVES_PER_QUERY // 2],
                *sample_by_hash(others[NEGATIVES_PER_QUERY // 2 :], NEGATIVES_PER_QUERY // 2, f"self:{query_id}", seed),
            ),
        )
        for query_id, query, own, others in joined.iter_rows()
    )
