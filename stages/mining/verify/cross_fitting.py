"""Cross-fitting: where no teacher is at hand, rerankers trained on the table itself, each for other questions.

Questions are put in K folds by a hash of their group; a reranker is trained on all folds but one and scores that one,
so no question is scored by a model that saw it (Chernozhukov et al. 2018 for the name). What a group is, `build-pairs`
has settled: restated questions always share one, and, unless --split-by says otherwise or the table hangs together as a
whole, so do questions that share a positive. Where such documents stand in several folds, a model has seen some as the
right answer to *another* question. That is no label of the question at hand, but it speaks for documents that are
anybody's positive, as hidden positives are and unlabelled ones may not be: `Cross.seen` says which these are, so that
the gain can be looked at without them (tests/benchmarks/self_teacher.py does).

What is learned from is safe: positives, and candidates whose p says that they are no false negatives, half of them the
hardest of those. Whether the teacher is worth hearing, `opinion.fit` decides.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.core.hashing import draw
from stages.core.schemas import Tools
from stages.mining.verify.cross_encoder import LOW, Floats, Pair, Teacher
from stages.reranking.cross_encoder import save_reranker
from stages.training import stage as training_stage
from stages.training.examples import Mined, sample, some

NEGATIVES = 16
"""Of a question, to draw from."""
LEAST_QUERIES = 200
"""To train a fold on; with fewer it is not tried. Measured with a new head on MiniLM's body that first learns the
retriever's scores, by tests/benchmarks/self_teacher.py on all 1,958 questions of bioasq (4,826 hidden positives where p
is unsure): with 200 questions the teacher's AUC is 0.664 (p: 0.890) and the log loss falls by 0.0033, three standard
errors, from 0.3824; with 900, 0.778 and 0.0131. Without that first lesson 100 questions of stackfaq taught nothing
(0.51; p: 0.997). A base that had learned to rank on 1,500 questions of squad_dev, in its place, gave 0.690 with 200 and
0.723 with 900, on 400 of bioasq's questions where 900 with that lesson gave 0.749."""


@dataclass(frozen=True)
class Material:
    """What the rerankers are taught with: train questions only, so that no label of dev or test is learned."""

    mined: tuple[Mined, ...]
    texts: Mapping[str, str]
    """doc_id -> text."""
    groups: Mapping[str, str]
    """query_id -> group, of every question that is to be scored or trained on."""


class Cross:
    """K rerankers, trained when they are first needed and kept in `folder` (which outlives a kill) until it goes.

    `params` are those of [train]; its `max_queries` bounds the questions of each fold's training. `candidates` and
    `corpus` are the files, `cache` is where scores are kept, as `Teacher` does.
    """

    def __init__(
        self,
        params: training_stage.Params,
        folds: int,
        material: Material,
        candidates: Path,
        corpus: Path,
        folder: Path,
        cache: Path,
        tools: Tools,
    ) -> None:
        self.params, self.folds, self.material = params, folds, material
        self._candidates, self._corpus, self._folder, self._cache, self._tools = (
            candidates,
            corpus,
            folder,
            cache,
            tools,
        )
        of = fold_of([material.groups[query.query_id] for query in material.mined], folds)
        self.lessons = tuple(
            some([q for q, f in zip(material.mined, of, strict=True) if f != fold], params.max_queries, params.seed)
            for fold in range(folds)
        )
        """What each fold's model is trained on."""
        self.counts = {"scored": 0, "cached": 0}
        self.collapsed: list[str] = []
        """Why a fold's model tells nothing apart, in words."""
        fewest = min(len(lesson) for lesson in self.lessons)
        self.unfit = (
            f"{fewest} questions to train a fold on are too few, {LEAST_QUERIES} are needed"
            if fewest < LEAST_QUERIES
            else None
        )
        """Why it is not worth trying, in words; None where it is."""

    def scores(self, query_ids: Sequence[str], pairs: Sequence[Pair]) -> Floats:
        """The logit of each (query, document) by the model that saw no question of the query's group: float32 [n]."""
        of = fold_of([self.material.groups[query_id] for query_id in query_ids], self.folds)
        out = np.empty(len(pairs), np.float32)
        for fold in np.unique(of).tolist():
            rows = np.flatnonzero(of == fold)
            teacher = self._teacher(fold)
            out[rows] = teacher.scores([pairs[row] for row in rows.tolist()])
            for name, count in teacher.counts.items():
                self.counts[name] += count
        return out

    def seen(self, query_ids: Sequence[str], doc_ids: Sequence[str]) -> NDArray[np.bool_]:
        """Whether the model that scores the query has been taught that the document is right for another one: [n]."""
        right = [{doc_id for query in lesson for doc_id in query.positives} for lesson in self.lessons]
        of = fold_of([self.material.groups[query_id] for query_id in query_ids], self.folds)
        return np.array([doc_id in right[fold] for doc_id, fold in zip(doc_ids, of, strict=True)], np.bool_)

    def _teacher(self, fold: int) -> Teacher:
        model = self._folder / f"fold-{fold}" / "reranker"
        if not model.exists():
            self._train(fold, model)
        return Teacher(
            str(model), self._cache, self.params.device, self.params.max_length, self.params.dtype, self._tools.progress
        )

    def _train(self, fold: int, model: Path) -> None:
        lesson = self.lessons[fold]
        self._tools.progress.say(f"self-taught teacher {fold + 1} of {self.folds}: training on {len(lesson)} questions")
        tools = replace(self._tools, scratch=model.parent / "training", logs=self._tools.logs / model.parent.name)
        tools.scratch.mkdir(parents=True, exist_ok=True)
        found = training_stage.learn(
            self.params, lesson, self.material.texts, self._candidates, self._corpus, measure=None, tools=tools
        )
        if flaw := training_stage.collapse(found.history, found.chances, found.taught):
            self.collapsed.append(flaw)
            self._tools.progress.say(f"self-taught teacher {fold + 1} tells nothing apart: {flaw}")
        writing = model.with_suffix(".tmp")
        shutil.rmtree(writing, ignore_errors=True)
        save_reranker(found.model, writing)
        writing.rename(model)
        shutil.rmtree(tools.scratch)


def fold_of(groups: Sequence[str], folds: int) -> NDArray[np.int64]:
    """The fold of each group, by a hash of its name: [n]."""
    return np.array([draw(0, "crossfit", group) % folds for group in groups], np.int64)


def lessons(
    queries: pl.DataFrame, rows: pl.DataFrame, positives: pl.DataFrame, seed: int, safe: float = LOW
) -> tuple[Mined, ...]:
    """The questions of `queries` (query_id, query) that have a positive and a safe negative, sorted by id.

    `rows` (query_id, doc_id, score, p_false_negative) are candidates; those with p of at most `safe` count, of which
    the 8 that the retriever scores highest are taken and 8 drawn by hash. `positives`: query_id, doc_id.
    """
    order = ["query_id", "score", "doc_id"]
    held = rows.join(positives, on=["query_id", "doc_id"], how="anti").filter(pl.col("p_false_negative") <= safe)
    wrong = held.sort(order, descending=[False, True, False]).group_by("query_id", maintain_order=True).agg("doc_id")
    right = positives.sort("query_id", "doc_id").group_by("query_id", maintain_order=True).agg(right="doc_id")
    found = queries.select("query_id", "query").join(right, on="query_id").join(wrong, on="query_id").sort("query_id")
    return tuple(
        Mined(
            query_id,
            query,
            tuple(own),
            (*others[: NEGATIVES // 2], *sample(others[NEGATIVES // 2 :], NEGATIVES // 2, seed, f"self:{query_id}")),
        )
        for query_id, query, own, others in found.iter_rows()
    )
