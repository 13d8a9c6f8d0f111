"""A kill while candidates are scored by a cross-encoder: the scores so far stay, and the next run goes on from them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.integration.test_cross_encoder_verifier import PAIRS, cross, teacher  # noqa: F401

ROOT = Path(__file__).parents[2]


def test_what_was_scored_before_a_kill_stays(cross: Path, tmp_path: Path) -> None:  # noqa: F811
    command = [sys.executable, "-m", "tests.integration.test_cross_encoder_verifier", str(cross), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    on = teacher(cross, tmp_path)
    found = on.score_pairs(PAIRS)
    assert 0 < on.counts["cached"] < len(PAIRS)
    assert on.counts["scored"] == len(PAIRS) - on.counts["cached"]
    assert np.array_equal(found, teacher(cross, tmp_path / "undisturbed").score_pairs(PAIRS))
