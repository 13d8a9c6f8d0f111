"""`prep evaluate` as a process: the retrievers without a training."""

import json

from tests.conftest import Project


def test_the_retrievers_are_measured_before_anything_is_trained(project: Project) -> None:
    done = project.prep("evaluate", "--retrievers", "--json", "-q")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ran"] == ["pairs", "encode", "search", "retrievers"]
    summary = found["summary"]["retrievers"]
    for view in ("corpus", "lists"):
        for split in ("train", "dev", "test"):
            assert set(summary[view][split]) == {"bm25", "embedder", "hybrid"}
            assert set(summary[view]["differences"][split]) == {"bm25", "hybrid"}
    again = project.prep("evaluate", "--retrievers", "-q")
    assert again.returncode == 0, again.stderr
    for words in ("the whole corpus", "fixed lists", "BM25 + embedder, weight", "nothing to do", "retrievers.json"):
        assert words in again.stdout
    for split, n_queries in summary["n_queries"].items():
        assert f"{split}, {n_queries:,} queries" in again.stdout
    # another depth of the lists changes no step before
    deeper = json.loads(project.prep("evaluate", "--retrievers", "--top-k", "15", "--json", "-q").stdout)
    assert deeper["ran"] == ["retrievers"]
    assert deeper["summary"]["retrievers"]["corpus"]["test"] == summary["corpus"]["test"]
