"""The estimate over whole tables: when a table is too unlike what the prior was fitted on to be judged by it."""

from pathlib import Path

import polars as pl
import pytest

from stages.core import schemas
from stages.mining.candidates.features import TRANSFERABLE_FEATURES
from stages.mining.estimator import model
from stages.mining.estimator.model import LogisticModel, PretrainedModel
from stages.mining.estimator.table_estimator import MAX_FEATURE_SHIFT, FalseNegativeEstimator
from tests.fakes import RecordedProgress
from tests.unit.stages.mining.collection import stand_in, table, write

VECTORS = {"Which?": [1.0, 0.0], "p": [0.8, 0.6], "x": [0.6, 0.8], "y": [0.0, 1.0]}


def suspects(folder: Path, monkeypatch: pytest.MonkeyPatch, usual_log_rank: float) -> FalseNegativeEstimator:
    """Of a question with one positive and two candidates, by a prior to which no feature but log_rank is ever strange:
    that has a standard deviation of 1 around `usual_log_rank`."""
    stand_in(monkeypatch, VECTORS)
    inputs = write(
        folder,
        queries=table(schemas.QUERIES, ("q", "Which?", "train", "q")),
        corpus=table(schemas.CORPUS, ("p", "the one"), ("x", "another"), ("y", "a third")),
        candidates=table(
            schemas.CANDIDATES, ("q", "p", "dense", 1, 0.8), ("q", "x", "dense", 2, 0.6), ("q", "y", "dense", 3, 0.0)
        ),
        qrels_scored=table(schemas.QRELS_SCORED, ("q", "p", 1, 0.8)),
    )
    mean = tuple(usual_log_rank if name == "log_rank" else 0.0 for name in TRANSFERABLE_FEATURES)
    scale = tuple(1.0 if name == "log_rank" else 1e9 for name in TRANSFERABLE_FEATURES)
    one = LogisticModel(TRANSFERABLE_FEATURES, mean, scale, (0.0,) * len(TRANSFERABLE_FEATURES), 0.0)
    monkeypatch.setattr(model, "read_pretrained_model", lambda without: PretrainedModel(one, one))
    from stages.embedding.lookup import VectorLookup

    vectors = VectorLookup(folder, folder)
    positives = pl.DataFrame({"query_id": ["q"], "doc_id": ["p"], "positive_kind": ["own"]})

    def vectorise(pairs: pl.DataFrame):  # type: ignore[no-untyped-def]
        return vectors.read(vectors.hash_documents(pairs))

    return FalseNegativeEstimator(inputs, vectors, vectorise, positives, RecordedProgress())


def test_a_table_unlike_those_of_the_prior_is_not_judged_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = 0.5 * 0.6931  # the mean of log 1 and log 2
    assert MAX_FEATURE_SHIFT == 3.0
    assert suspects(tmp_path, monkeypatch, here + 2.9).unreliable_reason is None
    for off in (3.1, -3.1):
        strange = suspects(tmp_path, monkeypatch, here + off)
        assert strange.unreliable_reason is not None
        assert strange.summary["unreliable_reason"] == strange.unreliable_reason
