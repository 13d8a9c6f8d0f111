"""Several retrievers from the command line: candidates of each, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from stages.core.schemas import CANDIDATES, read_table
from tests.conftest import Project, new_project


@pytest.fixture(scope="module")
def mined(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, small_table: Path) -> Project:
    """A project whose candidates come from the encoder alone."""
    project = new_project(tmp_path_factory.mktemp("sources"), tiny_model, small_table)
    done = project.prep("mine-negatives", "-q")
    assert done.returncode == 0, done.stderr
    return project


def search_of(project: Project, *arguments: str) -> tuple[pl.DataFrame, dict[str, Any], list[str]]:
    """The candidates of `prep mine-negatives` with these arguments, the stage's summary and what ran."""
    done = project.prep("mine-negatives", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    folder = Path(told["artifacts"]["search"])
    folder = folder if folder.is_absolute() else project.folder / folder
    return read_table(folder / "candidates.parquet", CANDIDATES), told["summary"]["search"], told["ran"]


def second_model(first: Path, folder: Path) -> Path:
    """The tiny model with its dimensions' signs turned in part of its words: another encoder."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(first, folder)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("word_embeddings.weight"))
    weights[name][::2] *= -1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_candidates_of_dense_bm25_and_random(mined: Project) -> None:
    alone, before, _ = search_of(mined)
    sources = ["--sources", "dense", "--sources", "bm25:50", "--sources", "random:5-20"]
    rows, summary, ran = search_of(mined, *sources)
    assert ran[0] == "search"
    assert rows.filter(pl.col("source") == "dense").equals(alone)
    counts = dict(rows.group_by("source").len().iter_rows())
    assert summary["candidates_by_source"] == counts
    assert summary["candidates"] == len(rows)
    queries = before["queries"]
    assert counts["dense"] == 20 * queries
    assert counts["random"] == 15 * queries
    assert 0 < counts["bm25"] <= 50 * queries
    drawn = rows.filter(pl.col("source") == "random")
    assert (drawn["rank"].min(), drawn["rank"].max()) == (6, 20)
    order = rows.with_columns(turn=pl.col("source").replace_strict({"dense": 0, "bm25": 1, "random": 2}))
    assert order.equals(order.sort("query_id", "turn", "rank"))
    # the seed is a setting of search where something is drawn, and only there
    assert not search_of(mined, *sources, "--seed", "1")[0].equals(rows)
    assert search_of(mined, "--seed", "1")[2][:1] != ["search"]
    shown = mined.prep("mine-negatives", *sources, "-q")
    assert f"({counts['dense']:,} by dense, {counts['bm25']:,} by bm25, {counts['random']:,} by random)" in shown.stdout


def test_a_second_encoder_from_the_command_line(mined: Project, tiny_model: Path, tmp_path: Path) -> None:
    alone, _, _ = search_of(mined)
    second = second_model(tiny_model, mined.folder / "second")
    mined.set("encode", "extra_models", '["second"]')
    try:
        rows, summary, ran = search_of(mined, "--sources", "dense", "--sources", "dense2:5")
        assert ran[:2] == ["encode", "search"]
        assert rows.filter(pl.col("source") == "dense").equals(alone)
        assert summary["candidates_by_source"]["dense2"] == 5 * summary["queries"]
        best = rows.filter(pl.col("rank") <= 5).sort("query_id", "rank")
        one, two = (best.filter(pl.col("source") == name)["doc_id"] for name in ("dense", "dense2"))
        assert (one != two).any()
        told = mined.prep("encode")
        assert "texts encoded with dense2 second; " in told.stdout
        refused = mined.prep("mine-negatives", "--sources", "dense", "--sources", "dense3")
        assert refused.returncode == 2
        assert "the source dense3 has no encoder" in refused.stderr
        assert f"dense2 is {second.name}" in refused.stderr
    finally:
        mined.set("encode", "extra_models", "[]")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["bm25"], "dense must be among the sources"),
        (["dense", "bm52"], "'bm52' is no source: it is NAME, NAME:END or NAME:START-END"),
        (["dense:10-50"], "from its first rank on"),
    ],
)
def test_an_invalid_source_is_an_error(mined: Project, given: list[str], says: str) -> None:
    done = mined.prep("mine-negatives", *(word for name in given for word in ("--sources", name)))
    assert done.returncode == 2
    assert "--sources = " in done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
