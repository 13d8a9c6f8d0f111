"""Sides as processes of their own, in turn: A B C A B C ...; what each took, and its own peak memory."""

import importlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.work import Goal, Result, Sizes, Work

ROOT = Path(__file__).parent.parent.parent
WORKS = ("encode", "search", "mine", "large", "threshold", "refresh", "encode-gpu", "search-gpu")
_PARALLEL = ("OMP", "MKL", "OPENBLAS", "RAYON")


def work_of(name: str) -> Work:
    """The work of that name."""
    found: Work = importlib.import_module(f"tests.benchmarks.{name.replace('-', '_')}").WORK
    return found


def step(name: str, what: str, folder: Path, sizes: Sizes, threads: int) -> Result:
    """Run one step of a work ("prepare", "check" or a side) to its end in a new process; `peak_gb` is that process's.

    The peak is the greatest resident memory of the process or of one that it started and waited for. Raises
    `RuntimeError` with the end of its log if it failed.
    """
    log_path = folder / "output.log"
    result = folder / "result.json"
    result.unlink(missing_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "POLARS_MAX_THREADS": str(threads)}
    environment |= {f"{library}_NUM_THREADS": str(threads) for library in _PARALLEL}
    command = [sys.executable, "-m", "tests.benchmarks.turns", name, what, str(folder), json.dumps(dict(sizes))]
    with log_path.open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=ROOT)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{name}: {what} failed ({process.returncode}):\n{log_path.read_text()[-3000:]}")
    return {**json.loads(result.read_text()), "peak_gb": used.ru_maxrss * 1024 / 1e9}


def compare(name: str, folder: Path, sizes: Sizes, turns: int, threads: int) -> dict[str, Any]:
    """Prepare a work in `folder`, give each side its turns, check that they agree; all that was measured.

    "goals": work/goal -> ours, theirs (medians of the figure), ratio of the medians, least and greatest ratio of one
    turn, that of processor time, goal, met and peak memory; "sides": every turn's figures.
    """
    work = work_of(name)
    prepared = step(name, "prepare", folder, sizes, threads)
    runs: dict[str, list[Result]] = {side: [] for side in work.sides}
    for _ in range(turns):
        for side, found in runs.items():
            found.append(step(name, side, folder, sizes, threads))
    checked = step(name, "check", folder, sizes, threads) if work.check else {}
    checked.pop("peak_gb", None)
    prepared.pop("peak_gb", None)
    return {
        "about": work.about,
        "sizes": dict(sizes),
        "threads": threads,
        "prepared": prepared,
        "agreement": checked,
        "goals": {f"{name}/{goal.name}": judged(goal, runs) for goal in work.goals},
        "sides": runs,
    }


def judged(goal: Goal, runs: Mapping[str, Sequence[Result]]) -> dict[str, Any]:
    """One goal's row, from the turns of all sides."""
    over = [run[goal.figure] for run in runs[goal.over]]
    under = [run[goal.figure] for run in runs[goal.under]] if goal.under else [1.0] * len(over)
    ratio = statistics.median(over) / statistics.median(under)
    each = [a / b for a, b in zip(over, under, strict=True)]
    other = next((side for side in (goal.over, goal.under) if side not in ("ours", None)), None)
    peaks = {side: max(run["peak_gb"] for run in found) for side, found in runs.items()}
    return {
        "against": other,
        "figure": goal.figure,
        "ours": _median(runs["ours"], goal.figure),
        "theirs": _median(runs[other], goal.figure) if other else None,
        "ratio": ratio,
        "cpu_ratio": _median(runs[goal.over], f"cpu_{goal.figure}") / _median(runs[goal.under], f"cpu_{goal.figure}")
        if goal.under and goal.figure in ("seconds", "gflops")
        else None,
        "ratio_min": min(each),
        "ratio_max": max(each),
        "goal": goal.words,
        "met": goal.met(ratio),
        "peak_gb": {"ours": peaks["ours"], "theirs": peaks[other] if other else None},
    }


def _median(runs: Sequence[Result], figure: str) -> float:
    return float(statistics.median(run[figure] for run in runs))


def main() -> None:
    """The process of one step: its result goes to a file, since libraries print as they like."""
    name, what, folder, sizes = sys.argv[1], sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4])
    work = work_of(name)
    steps = {"prepare": work.prepare, "check": work.check, **work.sides}
    chosen = steps[what]
    assert chosen is not None
    (folder / "result.json").write_text(json.dumps(chosen(folder, sizes)))


if __name__ == "__main__":
    main()
