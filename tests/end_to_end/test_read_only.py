"""Commands that only look need no lock and no write, and `show` needs no tables."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from tests.conftest import ROOT, Project

POWERLESS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []


@pytest.fixture
def closed(project: Project, finished: Path) -> Iterator[Project]:
    """The project with a finished workspace that can't be written."""
    shutil.copytree(finished, project.work, symlinks=True)
    paths = [path for path in (project.work, *project.work.rglob("*")) if not path.is_symlink()]
    modes = {path: path.stat().st_mode for path in paths}
    for path, mode in modes.items():
        path.chmod(mode & ~0o222)
    yield project
    for path, mode in modes.items():
        path.chmod(mode)


def run_powerless(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `prep` as a process that the permissions of files bind, also if root runs the tests."""
    return subprocess.run(
        [*POWERLESS, sys.executable, "-m", "pipeline.cli.main", *arguments],
        cwd=project.folder, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def list_files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.lstat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root needs setpriv to lose its power")
def test_a_workspace_that_can_not_be_written_can_be_looked_at(closed: Project) -> None:
    before = list_files(closed.work)
    query_id = pl.read_parquet(closed.work / "current" / "queries.parquet")["query_id"][0]
    status = run_powerless(closed, "status", "--json")
    assert status.returncode == 0, status.stderr
    assert {row["state"] for row in json.loads(status.stdout)["stages"]} == {"fresh"}
    shown = run_powerless(closed, "show", query_id, "--json")
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["notice"] is None
    audited = run_powerless(closed, "audit", "--json")
    assert audited.returncode == 0, audited.stderr
    counted = run_powerless(closed, "gc", "--dry-run", "--json")
    assert counted.returncode == 0, counted.stderr
    assert json.loads(counted.stdout)["publications"] == 0
    calibrated = run_powerless(closed, "calibrate", "--json")
    assert calibrated.returncode == 0 or "is not reliable on this table" in calibrated.stderr, calibrated.stderr
    assert list_files(closed.work) == before

    closed.set("search", "top_k", "15")  # search would have to run again
    shown = run_powerless(closed, "show", query_id, "--json")
    assert shown.returncode == 0, shown.stderr
    assert "can't be written" in json.loads(shown.stdout)["notice"]
    built = run_powerless(closed, "mine-negatives")
    assert built.returncode == 2
    assert "can't be written" in built.stderr
    assert list_files(closed.work) == before


def test_a_copied_workspace_is_shown_without_its_tables(project: Project, finished: Path) -> None:
    shutil.copytree(finished, project.work, symlinks=True)
    (project.folder / "faq.csv").unlink()
    query_id = pl.read_parquet(project.work / "current" / "queries.parquet")["query_id"][0]
    done = project.prep("show", query_id, "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert "faq.csv" in shown["notice"]
    assert shown["query_id"] == query_id
    assert any(row["verdict"] == "negative" for row in shown["documents"])
    (project.folder / "prep.toml").unlink()
    assert project.prep("show", query_id, "-q").returncode == 0
    (project.work / "current").unlink()
    shutil.rmtree(project.work / "published")
    assert project.prep("show", query_id, "-q").returncode == 2
