"""The side-by-side bench at a small scale, as a process: the shape of what it writes, and that the sides agree."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.benchmarks import encode, search
from tests.benchmarks.turns import WORKS, judged, work_of
from tests.benchmarks.work import Goal
from tests.conftest import ROOT


def bench(*arguments: str, folder: Path) -> tuple[str, dict[str, Any]]:
    """Run the bench; its table and its JSON."""
    command = [sys.executable, "-m", "tests.benchmarks", "--threads", "1", "--json", str(folder / "found.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((folder / "found.json").read_text())


def test_search_at_a_small_scale(tmp_path: Path) -> None:
    table, found = bench("--only", "search", "--scale", "0.01", "--turns", "2", folder=tmp_path)
    peers = {"mine_hard_negatives", "hn_mine", "faiss.knn"}
    assert set(found["goals"]) == {f"search/{peer}" for peer in (*peers, "matrix rate")}
    assert found["goals"].pop("search/matrix rate")["figure"] == "gflops"
    for name, row in found["goals"].items():
        assert row["ratio"] == pytest.approx(row["theirs"] / row["ours"])
        assert row["ratio_min"] <= row["ratio_max"]
        assert row["goal"] in (">= 1.8", ">= 12", ">= 1.5")
        assert min(row["peak_gb"]["ours"], row["peak_gb"]["theirs"]) > 0.01
        assert f"| {name} |" in table
    work = found["works"]["search"]
    assert {len(turns) for turns in work["sides"].values()} == {2}
    assert work["sizes"] == {"queries": 80, "documents": 1000, "dimension": 384, "k": 100}
    moved = work["agreement"]["in_another_place_by_rounding"]
    assert set(moved) == {"ours", *peers}
    assert max(moved.values()) < 0.01 * work["agreement"]["pairs"]


def test_implementations_that_find_other_documents_are_an_error(tmp_path: Path) -> None:
    sizes = {"queries": 3, "documents": 50, "dimension": 8, "k": 5}
    search.prepare(tmp_path, sizes)
    search.ours(tmp_path, sizes)
    ids = np.load(tmp_path / "ours.ids.npy")
    np.save(tmp_path / "theirs.ids.npy", ids[:, ::-1])
    with pytest.raises(AssertionError, match=r"theirs\.ids found other documents"):
        search.check(tmp_path, sizes)


@pytest.mark.parametrize("name", ["mine", "threshold"])
def test_both_sides_choose_the_same_negatives(name: str, tmp_path: Path) -> None:
    sizes = ("--size", "queries=60", "documents=3000")
    _, found = bench("--only", name, *sizes, "--turns", "1", folder=tmp_path)
    agreement = found["works"][name]["agreement"]
    if name == "mine":
        assert agreement["same"] == agreement["queries"] == agreement["theirs"] == 60
        assert found["goals"]["mine/3 GB"]["theirs"] is None
    else:
        assert agreement["same_bytes"] > 60 * 8 * 300


def test_flops_are_those_counted_by_hand() -> None:
    config = {"num_hidden_layers": 2, "hidden_size": 3, "intermediate_size": 5}
    # weights of a layer: 4 * 9 + 2 * 3 * 5 = 66; two layers x (4 tokens x 132 + 4 * 16 * 3), and of one token
    assert encode.flops([4, 1], config) == 2 * (4 * 132 + 192) + 2 * (132 + 12)


def test_a_goal_is_judged_by_medians() -> None:
    runs = {
        "ours": [{"seconds": s, "cpu_seconds": 2 * s, "peak_gb": 1.0} for s in (1.0, 3.0, 2.0)],
        "peer": [{"seconds": s, "cpu_seconds": s, "peak_gb": 5.0} for s in (4.0, 5.0, 9.0)],
    }
    row = judged(Goal("peer", over="peer", under="ours", at_least=2.5), runs)
    assert (row["ours"], row["theirs"], row["ratio"]) == (2.0, 5.0, 2.5)
    assert (row["ratio_min"], row["ratio_max"]) == (5 / 3, 4.5)
    assert row["cpu_ratio"] == 1.25
    assert row["met"]
    assert not judged(Goal("peer", over="peer", under="ours", at_least=2.6), runs)["met"]
    assert judged(Goal("memory", over="ours", under="peer", figure="peak_gb", at_most=0.2), runs)["met"]
    assert not judged(Goal("least", over="ours", under=None, figure="peak_gb", at_most=0.9), runs)["met"]


def test_a_benchmark_that_needs_a_gpu_reports_it(tmp_path: Path) -> None:
    from stages.core.device import detect_device_type

    if detect_device_type() == "cuda":
        pytest.skip("there is a GPU here")
    table, found = bench("--only", "encode-gpu", "search-gpu", folder=tmp_path)
    assert table.count("no GPU here: not run") == 2
    assert {work["not_run"] for work in found["works"].values()} == {"no GPU here: not run"}


def test_goals_name_sides_that_are_there() -> None:
    for name in WORKS:
        work = work_of(name)
        assert {goal.over for goal in work.goals} | {goal.under for goal in work.goals} - {None} <= set(work.sides)
        assert work.scaled <= set(work.sizes)


def test_the_pairs_stage_takes_the_large_csv_that_the_benchmark_writes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.benchmarks.big_csv", "--gigabytes", "0.0005", "--folder", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "1,000 rows, 500 documents" in done.stdout
    assert list(tmp_path.iterdir()) == []
