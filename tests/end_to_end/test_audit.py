"""`prep audit` as people run it: listed, written, refused, handed back as decisions, and left out of the training."""

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.conftest import Project


def result(project: Project, *arguments: str) -> Any:
    done = project.prep(*arguments, "--json", "-q")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def lived_in(project: Project, finished: Path) -> Project:
    """The finished project. Its encoder has random weights, so that there is much to find."""
    shutil.copytree(finished, project.work, symlinks=True)
    return project


def test_audit_lists_writes_refuses_and_its_file_comes_back_as_decisions(lived_in: Project) -> None:
    project = lived_in
    found = result(project, "audit")
    wrong = found["findings"][0]
    assert wrong["label"] is None
    assert wrong["explanation"]
    assert found["share"] == pytest.approx(found["n_flagged"] / found["n_positives"], abs=1e-5)
    assert sum(found["counts"].values()) == len(found["findings"]) >= found["n_flagged"]

    for ending, read in (("csv", pl.read_csv), ("jsonl", pl.read_ndjson), ("parquet", pl.read_parquet)):
        done = project.prep("audit", "--out", f"found.{ending}", "--top", "1", "-q")
        assert done.returncode == 0, done.stderr
        assert "deserve a look" in done.stdout
        table = read(project.folder / f"found.{ending}")
        assert table.columns[:3] == ["query_id", "doc_id", "label"]
        assert len(table) == len(found["findings"])
    refused = project.prep("audit", "--max-share", "0", "-q")
    assert refused.returncode == 3
    assert "deserve a look" in refused.stderr
    assert project.prep("audit", "--max-share", "1", "-q").returncode == 0
    again = project.prep("audit", "--out", "found.csv", "-q")
    assert (again.returncode, "--force overwrites it" in again.stderr) == (2, True)
    unknown = project.prep("audit", "--out", "found.docx", "-q")
    assert unknown.returncode == 2
    assert ".jsonl" in unknown.stderr

    # marked, and honoured: the wrong one is a negative now, one of the others is confirmed and no longer listed
    rows = [json.loads(line) for line in (project.folder / "found.jsonl").read_text().splitlines()]
    other = next(row for row in rows if row["query_id"] != wrong["query_id"])
    for row in rows:
        same = (row["query_id"], row["doc_id"]) == (wrong["query_id"], wrong["doc_id"])
        row["label"] = "negative" if same else "positive" if row is other else None
    (project.folder / "decisions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    project.set("pairs", "label_overrides", '"decisions.jsonl"')
    again = result(project, "audit")
    pairs = {(row["query_id"], row["doc_id"]) for row in again["findings"]}
    assert (wrong["query_id"], wrong["doc_id"]) not in pairs
    assert (other["query_id"], other["doc_id"]) not in pairs
    made = result(project, "build-pairs")
    assert made["summary"]["pairs"]["label_overrides"] == 2
    qrels = pl.read_parquet(project.folder / made["artifacts"]["pairs"] / "qrels.parquet").rows()
    assert (wrong["query_id"], wrong["doc_id"], 0) in qrels
    assert (other["query_id"], other["doc_id"], 1) in qrels


def test_drop_positives_and_positive_weight(lived_in: Project) -> None:
    project = lived_in
    found = result(project, "audit")
    kept = result(project, "mine-negatives")
    assert kept["summary"]["sample"]["dropped_positives"] is None
    done = result(project, "mine-negatives", "--drop-positives", "inconsistent", "--drop-positives", "low_ranked")
    assert done["ran"] == ["sample"]
    train = [
        (row["finding"], row["query_id"], row["doc_id"])
        for row in found["findings"]
        if row["split"] == "train" and row["finding"] != "outranked"
    ]
    assert train
    dropped = done["summary"]["sample"]["dropped_positives"]
    assert dropped == {name: sum(row[0] == name for row in train) for name in ("low_ranked", "inconsistent")}
    path = project.folder / done["artifacts"]["sample"] / "mined.jsonl"
    lines = {row["query_id"]: row for row in map(json.loads, path.read_text().splitlines())}
    for _, query_id, doc_id in train:
        line = lines.get(query_id, {"pos_ids": [], "neg_ids": []})
        assert doc_id not in line["pos_ids"] + line["neg_ids"]
    before = project.folder / kept["artifacts"]["sample"] / "mined.jsonl"
    had = {row["query_id"]: set(row["pos_ids"]) for row in map(json.loads, before.read_text().splitlines())}
    gone = {query_id for query_id, ids in had.items() if ids <= {d for _, q, d in train if q == query_id}}
    assert set(had) - set(lines) == gone
    assert done["summary"]["sample"]["skipped_queries"]["all_positives_dropped"] == len(gone)
    names = ("--drop-positives", "inconsistent", "--drop-positives", "low_ranked")
    less = result(project, "mine-negatives", *names, "--set", "mine.positive_weight=0.25")
    assert less["ran"] == ["sample"]
    assert less["summary"]["sample"]["weighted_positives"] == dropped
    path = project.folder / less["artifacts"]["sample"] / "mined.jsonl"
    lines = {row["query_id"]: row for row in map(json.loads, path.read_text().splitlines())}
    assert {query_id: set(line["pos_ids"]) for query_id, line in lines.items()} == had
    for query_id, line in lines.items():
        doubted = {doc_id for _, asked, doc_id in train if asked == query_id}
        assert line["pos_weights"] == [0.25 if doc_id in doubted else 1.0 for doc_id in line["pos_ids"]]
    vain = project.prep("mine-negatives", "--set", "mine.positive_weight=0.25", "-q")
    assert (vain.returncode, "positive_weight needs drop_positives" in vain.stderr) == (2, True)
    wrong = project.prep("mine-negatives", "--drop-positives", "everything", "-q")
    assert wrong.returncode == 2
    assert "low_ranked, outranked, inconsistent" in wrong.stderr
