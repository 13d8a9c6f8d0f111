"""When a table differs too much from the data of the pretrained model for its estimate to be trusted."""

from pathlib import Path

import polars as pl
import pytest

from stages.core import schemas
from stages.mining.candidates.documents import make_document_vectoriser
from stages.mining.candidates.features import TRANSFERABLE_FEATURES
from stages.mining.estimator.logistic_model import LogisticModel
from stages.mining.estimator.pretrained_model import PretrainedModel
from stages.mining.estimator.table_estimator import MAX_FEATURE_SHIFT, FalseNegativeEstimator
from tests.fakes import RecordedProgress
from tests.unit.stages.mining.collection import stand_in, table, write

VECTORS = {"Which?": [1.0, 0.0], "p": [0.8, 0.6], "x": [0.6, 0.8], "y": [0.0, 1.0]}


def fit_estimator(folder: Path, monkeypatch: pytest.MonkeyPatch, mean_log_rank: float) -> FalseNegativeEstimator:
    """Of a query with one positive and two candidates, by a pretrained model where only log_rank can shift.

    log_rank has the mean `mean_log_rank` and a standard deviation of 1 there.
    """
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
    mean = tuple(mean_log_rank if name == "log_rank" else 0.0 for name in TRANSFERABLE_FEATURES)
    scale = tuple(1.0 if name == "log_rank" else 1e9 for name in TRANSFERABLE_FEATURES)
    one = LogisticModel(TRANSFERABLE_FEATURES, mean, scale, (0.0,) * len(TRANSFERABLE_FEATURES), 0.0)
    from stages.embedding.lookup import VectorLookup

    vectors = VectorLookup(inputs, folder)
    positives = pl.DataFrame({"query_id": ["q"], "doc_id": ["p"], "positive_kind": ["own"]})
    vectorise = make_document_vectoriser(inputs["corpus"], vectors)
    return FalseNegativeEstimator(inputs, vectors, vectorise, positives, PretrainedModel(one, one), RecordedProgress())


def test_the_estimate_is_unreliable_if_a_feature_shifts_by_more_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mean = 0.5 * 0.6931  # of log 1 and log 2
    assert MAX_FEATURE_SHIFT == 3.0
    assert fit_estimator(tmp_path, monkeypatch, mean + 2.9).unreliable_reason is None
    for shift in (3.1, -3.1):
        estimator = fit_estimator(tmp_path, monkeypatch, mean + shift)
        assert estimator.unreliable_reason is not None
        assert estimator.summary["unreliable_reason"] == estimator.unreliable_reason
