"""A kill while cross-fitted rerankers are trained: the next run ends with the same scores."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.fakes import RecordedProgress
from tests.integration.test_cross_fitting import PAIRS, QUERY_IDS, make_reranker, undisturbed  # noqa: F401

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[2]


def test_a_kill_changes_nothing(
    tiny_model: Path,
    tmp_path: Path,
    undisturbed: tuple[Path, np.ndarray, RecordedProgress],  # noqa: F811
) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.integration.test_cross_fitting",
        str(tiny_model),
        str(tmp_path),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    progress = RecordedProgress()
    resumed = make_reranker(tiny_model, tmp_path, progress)
    assert np.array_equal(resumed.score_pairs(QUERY_IDS, PAIRS), undisturbed[1])
    assert resumed.counts["cached"] > 0, "the first fold's scores are cached"
    assert not any("verifier 1 of 2" in line for line in progress.messages)
    assert any("it resumes after step" in line for line in progress.messages)
