"""A workload with round numbers, and the default settings."""

from typing import Any

import numpy as np
import pytest

from pipeline.workflow.graph import PIPELINE
from stages.core.model_files import ModelSize
from stages.embedding.encoder import EncoderSpec
from stages.planning.workload import NewTexts, Workload


@pytest.fixture
def workload() -> Workload:
    """100 queries (60 train, 20 dev, 20 test) and 50 documents; 20 queries and 10 documents have no vector yet."""
    return Workload(
        n_queries=100,
        n_documents=50,
        n_queries_by_split={"train": 60, "dev": 20, "test": 20},
        n_positives_per_query=1.5,
        new_texts=[NewTexts(20, 10, has_search=False)],
        spec=EncoderSpec("m", "w", "", "", None, "float32", "cpu", "cosine", False),
        encoder_size=ModelSize(n_weights=1_000, n_layers=2, hidden_size=8, max_length=256),
        base_size=ModelSize(n_weights=2_000, n_layers=2, hidden_size=8, max_length=512),
        has_new_head=True,
        verifier_size=ModelSize(n_weights=4_000, n_layers=2, hidden_size=8, max_length=512),
        query_tokens=np.array([10, 30]),
        document_tokens=np.array([40, 400]),
        pair_tokens=np.array([100, 300]),
    )


@pytest.fixture
def settings() -> dict[str, Any]:
    """The defaults of every step."""
    return {stage.name: stage.load_module().Params() for stage in PIPELINE if stage.name != "pairs"}


def change(settings: dict[str, Any], step: str, **values: Any) -> dict[str, Any]:
    """`settings` with other values for one step."""
    return {**settings, step: settings[step].model_copy(update=values)}
