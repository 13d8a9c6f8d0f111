"""What the tests of evaluation share: the step on small inputs, and functions in the place of cross-encoders."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.core.context import StageContext
from stages.evaluation import stage as evaluation_stage
from stages.evaluation.params import Params

Pairs = list[tuple[str, str]]
Scorer = Callable[[str, str], float]
UseScorers = Callable[..., list[Pairs]]
QUERIES_PER_SPLIT = 8


def run(
    inputs: dict[str, Path], context: StageContext, name: str = "out", **params: Any
) -> tuple[Path, dict[str, Any]]:
    """The folder that the step wrote, and metrics.json."""
    out = context.scratch_dir / name
    out.mkdir()
    evaluation_stage.run(Params(**{"top_k": 3, "bootstrap_samples": 999} | params), inputs, out, context)
    return out, json.loads((out / "metrics.json").read_text())


def score_perfectly(query: str, document: str) -> float:
    return 1.0 if query.split()[1] == document.split()[1] else 0.0


def score_equally(query: str, document: str) -> float:
    return 0.0
