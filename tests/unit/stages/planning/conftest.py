"""A table and a machine whose figures are easy to reckon with."""

from typing import Any

import numpy as np
import pytest

from pipeline.workflow.graph import PIPELINE
from stages.core.params import BaseParams
from stages.embedding.encoder import EncoderSpec
from stages.planning.machine import Machine, Model, Training
from stages.planning.throughput import Rate, Shape, Sweep
from stages.planning.workload import Encoding, Table

MB = 1_000_000


@pytest.fixture
def table() -> Table:
    """100 questions (60 train, 20 dev, 20 test), 50 documents; 20 questions and 10 documents have no vector yet."""
    recipe = EncoderSpec("m", "w", "", "", None, "float32", "cpu", "cosine", False)
    encoding = Encoding(
        recipe=recipe,
        name="m",
        new={"query": 20, "document": 10},
        texts=[("query", "a"), ("query", "b"), ("document", "c")],
        tokens=np.array([10, 30, 400]),
        weight=np.array([10.0, 10.0, 10.0]),
        limit=256,
        begun=False,
        went_on=False,
    )
    return Table(
        queries=100,
        documents=50,
        splits={"dev": 20, "test": 20, "train": 60},
        positives=1.0,
        several=0,
        answered=0,
        characters=10_000,
        encodings=[encoding],
        pairs=[("a", "c"), ("b", "c")],
        pair_tokens=np.array([100, 300]),
    )


@pytest.fixture
def machine() -> Machine:
    """A millisecond a token to encode, two to score, ten to train; the yardstick takes no time."""
    shape = Shape(1_000, 2_000, 2, 8)
    return Machine(
        encoders=[Model({"float32": Rate((1.0,), (0.001,))}, 5.0, 700 * MB, shape)],
        sweep=Sweep(1e-6, 1e-5),
        score=Model({"": Rate((1.0,), (0.002,))}, 3.0, 800 * MB, shape),
        step=Training(Rate((1.0,), (0.01,)), 0.5, 4.0, 900 * MB, 1_000.0),
        teacher=None,
        fresh_head=True,
        yard=0.0,
        tables=100 * MB,
        importing=0.0,
    )


@pytest.fixture
def settings() -> dict[str, Any]:
    """The defaults of every stage."""
    made: dict[str, BaseParams] = {
        stage.name: stage.load_module().Params() for stage in PIPELINE if stage.name != "pairs"
    }
    return made
