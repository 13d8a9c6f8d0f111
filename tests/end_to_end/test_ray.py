"""The stages on a cluster of two real Ray nodes on this machine, one of which is killed while it works."""

import importlib.metadata
import importlib.util
import json
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import pytest

from pipeline.executors.actor_pool import SYNCHRONISED_LIBRARIES, WorkerActor, divide_node_resources
from pipeline.executors.ray import RayExecutor
from stages.core.context import StageContext
from stages.core.errors import InputError
from stages.core.executor import Executor, InProcessExecutor, Worker
from stages.core.libraries import get_library_versions
from stages.core.schemas import CORPUS, QRELS, QUERIES, write_table
from stages.embedding import stage as embedding_stage
from stages.mining.verify.cross_encoder import CrossEncoderVerifier
from stages.reranking.cross_encoder import load_reranker, save_reranker
from stages.retrieval import incremental
from stages.retrieval import stage as retrieval_stage
from tests.conftest import ROOT, Project
from tests.fakes import RecordedProgress

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed: prep-reranker[ray]"
)

QUERY_IDS = [f"q{i:03}" for i in range(300)]
DOC_IDS = [f"d{i:03}" for i in range(300)]
STORE = 80 << 20
"""Bytes of a node's object store."""


class Nodes:
    """A cluster: a first node with one CPU, and others that come and go."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._settings = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}
        self._cluster: Any = Cluster(initialize_head=True, head_node_args=self._settings)
        self.address: str = self._cluster.address
        self._seen: set[psutil.Process] = set()

    def add(self) -> psutil.Process:
        """Another node; gives the process that is its life."""
        node = self._cluster.add_node(**self._settings)  # waits for it
        return psutil.Process(node.all_processes["raylet"][0].process.pid)

    def processes(self) -> set[psutil.Process]:
        """All that ever ran for the cluster, as far as this was asked."""
        started = [
            info.process.pid
            for node in self._cluster.list_all_nodes()
            for some in node.all_processes.values()
            for info in some
        ]
        for process in map(psutil.Process, filter(psutil.pid_exists, started)):
            self._seen |= {process, *process.children(recursive=True)}
        return self._seen

    def end(self) -> None:
        """Stop the cluster; nothing of it may be left."""
        seen = self.processes()
        self._cluster.shutdown()
        _, alive = psutil.wait_procs(seen, timeout=30)
        for process in alive:
            process.kill()
        assert not alive


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}.items():
            patch.setenv(name, value)  # workers get it from their node
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "token")  # or whoever can reach this machine could run code on it meanwhile
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        made = Nodes()
        try:
            yield made
        finally:
            made.end()


class Killer(RecordedProgress):
    """Progress that kills a node once it is at work and 100 are done; until it could work this holds up the driver."""

    def __init__(self, nodes: Nodes, node: psutil.Process) -> None:
        super().__init__()
        self.nodes, self.node, self.worked, self.killed_at = nodes, node, False, 0

    def advance(self, done: int, total: int | None, unit: str, tokens: int = 0) -> None:
        until = time.monotonic() + 60
        while not self.worked and time.monotonic() < until:
            titles = [" ".join(child.cmdline()).strip() for child in self.node.children()]
            self.worked = any("WorkerActor.run_item" in title for title in titles)
            time.sleep(0.005)
            if "ray::WorkerActor" in titles:  # it waits for work: the driver has to go on, or it is given none
                break
        if self.worked and done >= 100 and not self.killed_at:
            self.nodes.processes()
            os.kill(self.node.pid, signal.SIGKILL)
            self.killed_at = done


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tables")
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(["red", "blue", "sky", "fee", "42"], n)) for n in random.integers(1, 9, 600)]
    queries = {"query_id": QUERY_IDS, "query": texts[:300], "split": ["train"] * 300, "group": QUERY_IDS}
    write_table(pl.DataFrame(queries), QUERIES, folder / "queries.parquet")
    write_table(pl.DataFrame({"doc_id": DOC_IDS, "text": texts[300:]}), CORPUS, folder / "corpus.parquet")
    qrels = pl.DataFrame({"query_id": QUERY_IDS, "doc_id": DOC_IDS}).with_columns(relevance=pl.lit(1, pl.Int32))
    write_table(qrels, QRELS, folder / "qrels.parquet")
    return {name: folder / f"{name}.parquet" for name in ("queries", "corpus", "qrels")}


def run(
    stage: Any, params: Any, inputs: dict[str, Path], folder: Path, engine: Executor, progress: RecordedProgress
) -> dict[str, bytes]:
    """Run a stage in a workspace; the files that it wrote."""
    out = folder / stage.__name__
    out.mkdir(parents=True)
    tools = StageContext(progress, folder / "scratch", folder / "vectors", folder / "logs", engine)
    encodings = {"encoder": "encoder.json", "text_hashes": "text_hashes.npy"}
    inputs = inputs | {name: folder / "stages.embedding.stage" / file for name, file in encodings.items()}
    stage.run(params, inputs, out, tools)
    return {path.name: path.read_bytes() for path in out.iterdir()}


def vectors(folder: Path) -> dict[bytes, bytes]:
    """The vectors by hash, without the segments, which depend on the time that encoding took."""
    records = [record for path in folder.glob("vectors/*/*.npy") for record in np.load(path)]
    assert records
    return {record["hash"].tobytes(): record["vector"].tobytes() for record in records}


def test_a_node_that_is_killed_changes_no_byte(
    nodes: Nodes, tables: dict[str, Path], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incremental, "_FULL_SEARCH_QUERIES", 10)
    monkeypatch.setattr(retrieval_stage, "DOCUMENTS_PER_BLOCK", 40)
    work = [
        (embedding_stage, embedding_stage.Params(model=str(tiny_model), batch_tokens=8)),
        (retrieval_stage, retrieval_stage.Params(top_k=7)),
    ]
    for stage, params in work:
        expected = run(stage, params, tables, tmp_path / "local", InProcessExecutor(), RecordedProgress())
        killer = Killer(nodes, nodes.add())
        engine = RayExecutor(nodes.address, killer)
        try:
            found = run(stage, params, tables, tmp_path / "ray", engine, killer)
        finally:
            engine.close()
        assert found == expected
        assert 0 < killer.killed_at < 280
        assert any("a Ray worker was lost" in line for line in killer.messages)
    assert vectors(tmp_path / "ray") == vectors(tmp_path / "local")


@pytest.fixture
def engine(nodes: Nodes) -> Iterator[RayExecutor]:
    made = RayExecutor(nodes.address, RecordedProgress())
    try:
        yield made
    finally:
        made.close()


def squares(trouble: str) -> Callable[[int], Iterator[int]]:
    """A worker that gives n and its square, and gets into trouble at 3."""

    def work(n: int) -> Iterator[int]:
        if n == 3 and trouble == "input":
            raise InputError("3 can't be read. Give another number.")
        if n == 3 and trouble == "defect":
            raise ValueError("3 should not come here")
        if n == 3 and trouble == "death":
            os._exit(9)
        yield n
        yield n * n

    return work


def test_results_come_in_order_and_trouble_comes_as_itself(engine: RayExecutor) -> None:
    results = engine.map(Worker(partial(squares, "")), iter(range(40)))
    assert list(results) == [value for n in range(40) for value in (n, n * n)]
    with pytest.raises(InputError, match=r"^3 can't be read\. Give another number\. \(On the node .*\)$"):
        list(engine.map(Worker(partial(squares, "input")), range(9)))
    with pytest.raises(ValueError, match="3 should not come here"):
        list(engine.map(Worker(partial(squares, "defect")), range(9)))
    with pytest.raises(InputError, match=r"lost again and again .*Check that all nodes are up"):
        list(engine.map(Worker(partial(squares, "death")), range(9)))
    with pytest.raises(InputError, match=r"none of the \d nodes of the Ray cluster offers a GPU"):
        list(engine.map(Worker(partial(squares, ""), "cuda"), range(9)))


def test_the_verifier_s_scores_are_the_same(engine: RayExecutor, tiny_model: Path, tmp_path: Path) -> None:
    save_reranker(load_reranker(tiny_model, "cpu", seed=3), tmp_path / "cross")
    pairs = [(f"q{i % 7}", " ".join("abcdefgh"[(i * j) % 8] for j in range(i % 40 + 1))) for i in range(200)]
    given = "cpu", 64, "float32", RecordedProgress()
    here = CrossEncoderVerifier(str(tmp_path / "cross"), tmp_path / "here", *given)  # type: ignore[arg-type]
    there = CrossEncoderVerifier(str(tmp_path / "cross"), tmp_path / "there", *given, engine)  # type: ignore[arg-type]
    assert np.array_equal(there.score_pairs(pairs), here.score_pairs(pairs))
    assert there.counts == here.counts


def test_the_command_line_runs_on_the_cluster(nodes: Nodes, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", nodes.address)
    done = project.prep("encode", "--executor", "ray", "--json", "-q")
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert result["summary"]["encode"]["n_encoded"] > 50
    again = project.prep("encode", "--json")
    assert json.loads(again.stdout)["ran"] == [], "the engine is no part of the key"


def test_a_missing_cluster_is_an_error(project: Project) -> None:
    done = project.prep("encode", "--executor", "ray://127.0.0.1:1")
    assert done.returncode == 2
    assert "the Ray cluster at 127.0.0.1:1 can't be reached" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_node_with_other_libraries_is_not_fit() -> None:
    actor = WorkerActor(Worker(partial(squares, "")))
    here = get_library_versions(SYNCHRONISED_LIBRARIES)
    assert actor.check_versions(here) is None
    message = str(actor.check_versions({**here, "torch": "0.1"}))
    assert f"has torch {here['torch']}, not 0.1" in message
    assert "numpy" not in message
    for name in ("prep-reranker", "tokenizers", "faiss-cpu"):
        assert f"has {name} {here[name]}, not 0.1: install" in str(actor.check_versions({**here, name: "0.1"}))
    fewer = {name: version for name, version in here.items() if name != "prep-reranker"}
    assert f"has prep-reranker {here['prep-reranker']}, not absent: install" in str(actor.check_versions(fewer))


@pytest.mark.parametrize(
    ("cpus", "taken"), [(0, []), (1, [1]), (4, [4]), (5, [2, 2]), (6, [3, 3]), (7, [3, 3]), (8, [4, 4]), (9, [3, 3, 3])]
)
def test_a_nodes_cpus_are_shared_out(cpus: int, taken: list[int]) -> None:
    assert divide_node_resources({"CPU": float(cpus)}, needs_gpu=False) == [
        {"num_cpus": n, "num_gpus": 0} for n in taken
    ]


def test_each_gpu_has_an_actor() -> None:
    assert divide_node_resources({"CPU": 16.0, "GPU": 2.0}, needs_gpu=True) == [{"num_cpus": 4, "num_gpus": 1}] * 2
    assert divide_node_resources({"CPU": 2.0, "GPU": 4.0}, needs_gpu=True) == [{"num_cpus": 0, "num_gpus": 1}] * 4
    assert divide_node_resources({"CPU": 2.0}, needs_gpu=True) == []


def test_faiss_gpu_may_stand_in_the_place_of_faiss_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = importlib.metadata.version

    def version(name: str) -> str:
        if name == "faiss-cpu":
            raise importlib.metadata.PackageNotFoundError(name)
        return plain(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    here = get_library_versions(SYNCHRONISED_LIBRARIES)
    assert here["faiss-cpu"] == "absent"
    assert WorkerActor(Worker(partial(squares, ""))).check_versions(here) is None
