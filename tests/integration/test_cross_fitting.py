"""Cross-fitting with a tiny random BERT: no query is scored by a model that saw its group."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from stages.core.context import StageContext
from stages.core.schemas import CANDIDATES, CORPUS, write_table
from stages.mining.verify import cross_fitting
from stages.mining.verify.cross_fitting import CrossFitReranker, TrainingSet, assign_group_folds, build_training_queries
from stages.mining.verify.stacking import auc
from stages.reranking.cross_encoder import load_reranker, save_reranker, score_pairs
from stages.training import trainer
from stages.training.examples import MinedQuery
from stages.training.stage import Params
from tests.fakes import RecordedProgress

pytestmark = pytest.mark.usefixtures("one_thread")

N_QUERIES = 40
RIGHT = {f"q{i:02}": f"d{i:02}" for i in range(N_QUERIES)}
WRONG = [f"w{i}" for i in range(12)]
TEXTS = {d: f"{'abcdefgh'[int(d[1:]) % 8]} {'mnop'[int(d[1:]) % 4]} z z z" for d in RIGHT.values()}
TEXTS |= {d: f"{'abcdefgh'[i % 8]} {'mnop'[i % 4]} k" for i, d in enumerate(WRONG)}
# two questions a group
GROUPS = {query_id: f"g{i // 2}" for i, query_id in enumerate(RIGHT)}


class KillingProgress(RecordedProgress):
    """Kills the process after some steps of the second fold's training."""

    def advance(self, done: int, total: int | None, unit: str, tokens: int = 0) -> None:
        if unit == "steps" and done == 4 and any("verifier 2 of 2" in line for line in self.messages):
            os.kill(os.getpid(), signal.SIGKILL)


def settings(model: Path | str) -> Params:
    return Params(
        base=str(model),
        num_negatives=3,
        epochs=2,
        batch_size=4,
        max_length=32,
        learning_rate=5e-3,
        distill_epochs=0,
        device="cpu",
        dtype="float32",
    )


def make_reranker(model: Path | str, folder: Path, progress: RecordedProgress, **changed: Any) -> CrossFitReranker:
    folder.mkdir(parents=True, exist_ok=True)
    documents = pl.DataFrame({"doc_id": list(TEXTS), "text": list(TEXTS.values())})
    write_table(documents, CORPUS, folder / "corpus.parquet")
    found = [(q, d, "dense", rank, 1 / rank) for q in RIGHT for rank, d in enumerate(WRONG, 1)]
    candidates = pl.DataFrame(found, schema=["query_id", "doc_id", "source", "rank", "score"], orient="row")
    write_table(candidates, CANDIDATES, folder / "candidates.parquet")
    mined = tuple(MinedQuery(q, f"find {q}", (d,), tuple(WRONG)) for q, d in RIGHT.items())
    return CrossFitReranker(
        settings(model).model_copy(update=changed),
        2,
        TrainingSet(mined, TEXTS, GROUPS),
        folder / "candidates.parquet",
        folder / "corpus.parquet",
        folder / "self",
        folder / "cache",
        StageContext(progress, folder / "scratch", folder, folder / "logs"),
    )


QUERY_IDS = [q for q in RIGHT for _ in range(4)]
PAIRS = [(f"find {q}", TEXTS[d]) for q in RIGHT for d in (RIGHT[q], *WRONG[:3])]


@pytest.fixture(scope="module")
def undisturbed(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, np.ndarray, RecordedProgress]:
    folder, progress = tmp_path_factory.mktemp("undisturbed"), RecordedProgress()
    return folder, make_reranker(tiny_model, folder, progress).score_pairs(QUERY_IDS, PAIRS), progress


def test_folds_depend_only_on_the_group() -> None:
    fold = assign_group_folds(list(GROUPS.values()), 2)
    assert np.array_equal(fold[::2], fold[1::2])
    assert np.array_equal(assign_group_folds(list(GROUPS.values())[::-1], 2), fold[::-1])
    thirds = np.bincount(assign_group_folds([f"g{i}" for i in range(3000)], 3))
    assert thirds.min() > 900


def test_no_model_saw_a_group_that_it_scores(tiny_model: Path, tmp_path: Path) -> None:
    found = make_reranker(tiny_model, tmp_path, RecordedProgress())
    for fold, queries in enumerate(found.training_queries_by_fold):
        trained = {GROUPS[query.query_id] for query in queries}
        scored = {
            GROUPS[q] for q, f in zip(RIGHT, assign_group_folds(list(GROUPS.values()), 2), strict=True) if f == fold
        }
        assert trained
        assert scored
        assert trained & scored == set()
        assert trained | scored == set(GROUPS.values())


def test_each_fold_is_scored_by_the_model_of_the_other(
    undisturbed: tuple[Path, np.ndarray, RecordedProgress],
) -> None:
    folder, scores, progress = undisturbed
    right = np.arange(len(PAIRS)) % 4 == 0
    assert auc(scores, right) > 0.95
    assert [line for line in progress.messages if "self-trained" in line] == [
        f"self-trained verifier {fold + 1} of 2: training on {n} questions"
        for fold, n in enumerate(np.bincount(assign_group_folds(list(GROUPS.values()), 2))[::-1])
    ]
    fold = assign_group_folds([GROUPS[query_id] for query_id in QUERY_IDS], 2)
    for number in range(2):
        model = load_reranker(folder / "self" / f"fold-{number}" / "reranker", "cpu", 32)
        here = np.flatnonzero(fold == number)
        assert np.array_equal(scores[here], score_pairs(model, [PAIRS[i] for i in here], "float32"))
    assert not list((folder / "self").glob("*/training"))


def test_models_and_scores_are_reused(tiny_model: Path, undisturbed: tuple[Path, np.ndarray, RecordedProgress]) -> None:
    folder, scores, _ = undisturbed
    progress = RecordedProgress()
    again = make_reranker(tiny_model, folder, progress)
    assert np.array_equal(again.score_pairs(QUERY_IDS[::-1], PAIRS[::-1]), scores[::-1])
    assert progress.messages == []
    assert again.counts["scored"] == 0
    assert again.counts["cached"] > 0


def test_a_changed_label_does_not_change_the_scores_of_its_query(
    tiny_model: Path, tmp_path: Path, undisturbed: tuple[Path, np.ndarray, RecordedProgress]
) -> None:
    _, scores, _ = undisturbed
    other = make_reranker(tiny_model, tmp_path, RecordedProgress())
    fold = assign_group_folds([GROUPS[query_id] for query_id in QUERY_IDS], 2)
    changed_queries = tuple(
        replace(query, positives=(WRONG[0],), negatives=tuple(WRONG[1:]))
        if assign_group_folds([GROUPS[query.query_id]], 2)[0] == 0
        else query
        for query in other.training_set.queries
    )
    changed = CrossFitReranker(
        other.params,
        2,
        replace(other.training_set, queries=changed_queries),
        tmp_path / "candidates.parquet",
        tmp_path / "corpus.parquet",
        tmp_path / "self",
        tmp_path / "cache",
        StageContext(RecordedProgress(), tmp_path / "scratch", tmp_path, tmp_path / "logs"),
    )
    found = changed.score_pairs(QUERY_IDS, PAIRS)
    assert np.array_equal(found[fold == 0], scores[fold == 0])
    assert not np.array_equal(found[fold == 1], scores[fold == 1])


def test_documents_that_were_right_elsewhere_are_named(tiny_model: Path, tmp_path: Path) -> None:
    found = make_reranker(tiny_model, tmp_path, RecordedProgress())
    fold = assign_group_folds(list(GROUPS.values()), 2)
    mine = next(q for q, f in zip(RIGHT, fold, strict=True) if f == 0)
    same = next(q for q, f in zip(RIGHT, fold, strict=True) if f == 0 and q != mine)
    other = next(q for q, f in zip(RIGHT, fold, strict=True) if f == 1)
    assert found.is_training_positive([mine] * 4, [RIGHT[mine], RIGHT[same], RIGHT[other], "w1"]).tolist() == [
        False,
        False,
        True,
        False,
    ]


def test_too_few_queries_are_found_before_training(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = make_reranker(tiny_model, tmp_path, RecordedProgress())
    fewest = min(len(queries) for queries in found.training_queries_by_fold)
    assert found.skip_reason == (
        f"a fold has {fewest} training questions, and {cross_fitting.MIN_QUERIES_PER_FOLD} are needed"
    )
    monkeypatch.setattr(cross_fitting, "MIN_QUERIES_PER_FOLD", fewest)
    assert make_reranker(tiny_model, tmp_path, RecordedProgress()).skip_reason is None
    small = make_reranker(tiny_model, tmp_path, RecordedProgress(), max_queries=7)
    assert [len(queries) for queries in small.training_queries_by_fold] == [7, 7]


def test_a_collapsed_model_is_logged(tiny_model: Path, tmp_path: Path) -> None:
    model = load_reranker(tiny_model, "cpu")
    model.model.classifier.weight.data.zero_()
    save_reranker(model, tmp_path / "flat")
    progress = RecordedProgress()
    collapsed = make_reranker(tmp_path / "flat", tmp_path, progress, learning_rate=1e-12)
    collapsed.score_pairs(QUERY_IDS, PAIRS)
    assert len(collapsed.collapse_reasons) == 2
    assert any(line.startswith("self-trained verifier 1 ranks no better than chance: ") for line in progress.messages)


def test_training_queries_by_hand() -> None:
    queries = pl.DataFrame({"query_id": ["b", "a", "c", "d"], "query": ["B", "A", "C", "D"]})
    positives = pl.DataFrame({"query_id": ["a", "a", "b", "c"], "doc_id": ["p2", "p1", "p1", "p3"]})
    rows = [("a", f"n{i:02}", 1 - i / 100, 0.01 if i > 1 else 0.5) for i in range(30)]
    rows += [("a", "p1", 2.0, 0.0), ("b", "x", 0.5, 0.02), ("c", "x", 0.5, 0.03), ("d", "x", 0.5, 0.0)]
    table = pl.DataFrame(rows, schema=["query_id", "doc_id", "score", "p_false_negative"], orient="row")
    found = build_training_queries(queries, table, positives, seed=0)
    # c has no safe negative and d no positive; n00 and n01 have a high p, p1 is a positive
    assert [(query.query_id, query.query, query.positives) for query in found] == [
        ("a", "A", ("p1", "p2")),
        ("b", "B", ("p1",)),
    ]
    assert found[1].negatives == ("x",)
    assert found[0].negatives[:8] == tuple(f"n{i:02}" for i in range(2, 10))
    rest = found[0].negatives[8:]
    assert len(set(rest)) == 8
    assert set(rest) <= {f"n{i:02}" for i in range(10, 30)}
    assert build_training_queries(queries.reverse(), table.reverse(), positives.reverse(), seed=0) == found
    assert build_training_queries(queries, table, positives, seed=1)[0].negatives[8:] != rest


if __name__ == "__main__":
    trainer.CHECKPOINT_STEPS = 2
    make_reranker(sys.argv[1], Path(sys.argv[2]), KillingProgress()).score_pairs(QUERY_IDS, PAIRS)
