"""A kill while the verifier scores candidates: the next run uses the scores that were written."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.integration.test_cross_encoder_verifier import PAIRS, cross, make_verifier  # noqa: F401

ROOT = Path(__file__).parents[2]


def test_scores_survive_a_kill(cross: Path, tmp_path: Path) -> None:  # noqa: F811
    command = [sys.executable, "-m", "tests.integration.test_cross_encoder_verifier", str(cross), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = make_verifier(cross, tmp_path)
    found = resumed.score_pairs(PAIRS)
    assert 0 < resumed.counts["cached"] < len(PAIRS)
    assert resumed.counts["scored"] == len(PAIRS) - resumed.counts["cached"]
    assert np.array_equal(found, make_verifier(cross, tmp_path / "undisturbed").score_pairs(PAIRS))
