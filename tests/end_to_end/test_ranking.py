"""Which ranking a refresh publishes: a reranker that ranks worse than the embedder is left out, unless it is forced."""

import csv
import json
import random
from pathlib import Path

import pytest

from stages.core.hashing import stable_hash
from tests.conftest import Project, new_project


@pytest.fixture
def easy(tmp_path: Path, tiny_model: Path, small_table: Path) -> Project:
    """A table whose documents repeat their questions: an encoder finds them, and a reranker that learned little does
    not."""
    project = new_project(tmp_path, tiny_model, small_table)
    rows = [("question", "document")]
    for number in range(80):
        draw = random.Random(stable_hash(0, "question", str(number)))
        words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(6)]
        rows.append((f"{' '.join(words)}?", f"{' '.join(words)}."))
    with (project.folder / "faq.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    project.set("train", "epochs", "1")
    return project


def result(project: Project, *arguments: str) -> dict:  # type: ignore[type-arg]
    done = project.prep(*arguments, "--json", "-q")
    assert done.returncode == 0, done.stderr
    found: dict = json.loads(done.stdout)  # type: ignore[type-arg]
    return found


def test_a_reranker_that_ranks_worse_than_the_embedder_is_left_out_from_the_first_refresh_on(easy: Project) -> None:
    target = easy.folder / "shared"
    easy.set("refresh", "publish_to", f'"{target.as_uri()}"')
    done = easy.prep("refresh", "-q")
    assert done.returncode == 0, done.stderr
    current = easy.work / "current"
    verdict = json.loads((current / "metrics.json").read_text())["verdict"]["test"]
    assert verdict["published"] == "embedder"
    assert verdict["queries"] == verdict["groups"] > 10
    last = "The embedder's ranking is published, without a reranker: the trained one ranks worse."
    assert done.stdout.splitlines()[-2].startswith(last)
    assert str(current / "reranker") not in done.stdout
    assert last in (current / "report.html").read_text().replace("&#39;", "'")
    assert not (current / "reranker").exists()
    for name in ("mined.jsonl", "candidates.parquet", "verdicts.parquet", "retrievers.json", "per_query.parquet"):
        assert (current / name).is_file()
    copied = target / json.loads((target / "current.json").read_text())["publication"]
    assert sorted(path.name for path in copied.iterdir()) == sorted(path.name for path in current.iterdir())

    status = easy.prep("status", "-q")
    for words in (last, verdict["reasons"][0], verdict["advice"][-1]):
        assert words in status.stdout
    published = result(easy, "status")["published"]
    assert (published["ranking"], published["broken"]) == ("embedder", [])
    assert published["verdict"] == verdict
    assert "left out: reranker" in easy.prep("train", "-q").stdout

    # nothing to do, also after a collection of garbage: the reranker that was left out is kept
    assert result(easy, "gc", "--keep", "1")["artifacts"] == 0
    again = result(easy, "refresh")
    assert (again["status"], again["ranking"], again["ran"]) == ("unchanged", "embedder", [])

    forced = easy.prep("refresh", "-q", "--force")
    assert forced.returncode == 0, forced.stderr
    assert "published as the ranking by --force" in forced.stdout
    assert (current / "reranker" / "config.json").is_file()
    assert result(easy, "status")["published"]["ranking"] == "reranker"
    again = result(easy, "refresh")
    assert (again["status"], again["ranking"]) == ("unchanged", "reranker"), "what was forced stays"


def test_without_a_published_reranker_the_next_one_is_compared_with_the_embedder(easy: Project) -> None:
    assert result(easy, "refresh")["ranking"] == "embedder"
    easy.set("mine", "num_negatives", "2")
    worse = result(easy, "refresh")
    assert (worse["status"], worse["ranking"], worse["gate"]) == ("published", "embedder", None)
    assert result(easy, "refresh", "--force")["ranking"] == "reranker"
    # a published reranker is what the next one is compared with, and the embedder still
    easy.set("mine", "num_negatives", "3")
    easy.set("mine", "rank_window", "[1, 18]")
    done = easy.prep("refresh", "--json", "-q")
    assert done.returncode in (0, 3), done.stderr
    if done.returncode == 0:
        found = json.loads(done.stdout)
        assert found["gate"]["verdict"] in ("same", "better")
        assert found["ranking"] == found["summary"]["evaluate"]["verdict"]["test"]["published"]
