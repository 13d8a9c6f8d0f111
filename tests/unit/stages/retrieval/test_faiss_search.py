"""The search stage with an index: what is found is scored and ordered exactly, and its recall is what it says."""

import json
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from stages.core.arrays import Floats, Ints
from stages.core.context import StageContext
from stages.core.errors import InputError
from stages.core.hashing import hash_texts
from stages.core.schemas import CANDIDATES, CORPUS, QRELS, QRELS_SCORED, QUERIES, read_table, write_table
from stages.embedding.vector_store import VectorStore
from stages.retrieval import faiss_search
from stages.retrieval import stage as retrieval_stage
from stages.retrieval.dense import DenseRetriever
from stages.retrieval.exact.scoring import pair_scores
from stages.retrieval.faiss_index import FaissIndex
from stages.retrieval.stage import Params, key_extras, run
from tests.encodings import write_encodings
from tests.fakes import RecordedProgress

DOCUMENTS, ASKED, DIMENSION = 400, 30, 8


class World:
    """A workspace of random vectors; every tenth document has the vector of the one before it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.progress = folder, RecordedProgress()
        random = np.random.default_rng(1)
        self.queries = random.standard_normal((ASKED, DIMENSION), np.float32)
        self.documents = random.standard_normal((DOCUMENTS, DIMENSION), np.float32)
        self.documents[10::10] = self.documents[9:-1:10]
        names = {"query": [f"q{i:03}" for i in range(ASKED)], "document": [f"d{i:03}" for i in range(DOCUMENTS)]}
        self.write(names["query"], names["document"])
        hashes = hash_texts(names["query"] + names["document"])
        together = np.concatenate([self.queries, self.documents])
        VectorStore(folder / "vectors/key").append(hashes, together)
        VectorStore(folder / "vectors/other").append(hashes, np.concatenate([self.queries, self.documents[::-1]]))

    def write(self, queries: list[str], documents: list[str]) -> None:
        frame = pl.DataFrame({"query_id": queries, "query": queries, "group": queries})
        write_table(frame.with_columns(split=pl.lit("train")), QUERIES, self.folder / "queries.parquet")
        write_table(pl.DataFrame({"doc_id": documents, "text": documents}), CORPUS, self.folder / "corpus.parquet")
        pairs = {"query_id": queries[:1], "doc_id": documents[: len(queries[:1])], "relevance": [1] * len(queries[:1])}
        frame = pl.DataFrame(pairs, schema_overrides={"relevance": pl.Int32})
        write_table(frame, QRELS, self.folder / "qrels.parquet")

    def search(self, out: str = "out", **settings: Any) -> dict[str, Any]:
        """What the summary says."""
        (self.folder / out).mkdir(exist_ok=True)
        inputs = {name: self.folder / f"{name}.parquet" for name in ("queries", "corpus", "qrels")}
        inputs |= write_encodings(self.folder, {"key": "m", "other": "m"})
        self.progress.messages.clear()
        tools = StageContext(self.progress, self.folder / "scratch", self.folder / "vectors", self.folder / "logs")
        search_summary: dict[str, Any] = run(Params(**{"top_k": 20, **settings}), inputs, self.folder / out, tools)
        return search_summary

    def found(self, out: str = "out") -> np.ndarray:
        """The places of the documents found for each query, best first."""
        rows = read_table(self.folder / out / "candidates.parquet", CANDIDATES)
        return rows["doc_id"].str.slice(1).cast(pl.Int64).to_numpy().reshape(ASKED, -1)

    def bytes(self, out: str = "out") -> tuple[bytes, ...]:
        return tuple((self.folder / out / f"{name}.parquet").read_bytes() for name in ("candidates", "qrels_scored"))

    def exact(self, k: int = 20) -> np.ndarray:
        """The places of the k best, by the definition."""
        scores = np.array([pair_scores(np.tile(query, (DOCUMENTS, 1)), self.documents) for query in self.queries])
        return np.lexsort((np.tile(np.arange(DOCUMENTS), (ASKED, 1)), -scores))[:, :k]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def share(exact: np.ndarray, found: np.ndarray) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(exact.tolist(), found.tolist(), strict=True)]))


@pytest.mark.parametrize(
    ("factory", "parameters"), [("Flat", ""), ("IVF4,Flat", "nprobe=4"), ("IVF1,Flat", ""), ("IVF8,SQ8,RFlat", "")]
)
def test_an_index_that_misses_nothing_gives_the_bytes_of_exact_search(
    world: World, factory: str, parameters: str
) -> None:
    world.search("exact")
    search_summary = world.search("index", faiss_index=factory, faiss_params=parameters, min_recall=1)
    assert search_summary["faiss_indexes"]["dense"]["recall"] == 1
    assert "topk_cache" not in search_summary
    assert world.bytes("index") == world.bytes("exact")
    assert world.found("exact").tolist() == world.exact().tolist()


def test_results_are_scored_and_ranked_exactly(world: World) -> None:
    world.search("exact")
    world.search(faiss_index="IVF8,PQ2x4", faiss_params="nprobe=2", min_recall=0)
    found = world.found()
    assert found.tolist() != world.exact().tolist()
    rows = read_table(world.folder / "out/candidates.parquet", CANDIDATES)
    scores = rows["score"].to_numpy().reshape(ASKED, 20)
    for query, places, given in zip(world.queries, found, scores, strict=True):
        assert given.tobytes() == pair_scores(np.tile(query, (20, 1)), world.documents[places]).tobytes()
        assert np.lexsort((places, -given)).tolist() == list(range(20))
        assert len(set(places.tolist())) == 20
    assert rows["rank"].to_list() == [*range(1, 21)] * ASKED
    assert world.bytes()[1] == world.bytes("exact")[1]  # judged pairs are no matter of the index


def test_the_recall_is_measured(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every query is in the sample here, and finds enough, so that all that is found was found by the index."""
    search_summary = world.search(faiss_index="IVF8,Flat", faiss_params="nprobe=3", min_recall=0)["faiss_indexes"][
        "dense"
    ]
    assert search_summary["n_exactly_searched_queries"] == 0
    assert search_summary["recall"] == round(share(world.exact(), world.found()), 4) < 1
    assert (search_summary["index"], search_summary["parameters"], search_summary["recall_at"]) == (
        "IVF8,Flat",
        "nprobe=3",
        20,
    )
    assert (search_summary["n_sampled_queries"], search_summary["n_training_documents"]) == (ASKED, DOCUMENTS)
    assert (
        f"IVF8,Flat (nprobe=3): recall@20 {search_summary['recall']:.3f} on 30 sampled queries"
        in world.progress.messages
    )
    monkeypatch.setattr(faiss_search, "_RECALL_SAMPLE_QUERIES", 7)
    few = world.search(faiss_index="IVF8,Flat", faiss_params="nprobe=3", min_recall=0)["faiss_indexes"]["dense"]
    sampled = faiss_search._sample_positions_by_hash(
        pl.Series([f"q{i:03}" for i in range(ASKED)]), 7, Params().seed, "recall sample"
    )
    assert few["n_sampled_queries"] == 7
    assert few["recall"] == round(share(world.exact()[sampled], world.found()[sampled]), 4) != search_summary["recall"]


def test_the_least_setting_that_reaches_the_recall_is_taken(world: World) -> None:
    recalls = {
        n: world.search(faiss_index="IVF8,Flat", faiss_params=f"nprobe={n}", min_recall=0)["faiss_indexes"]["dense"][
            "recall"
        ]
        for n in (1, 2, 4, 8)
    }
    assert recalls[2] < recalls[4] < recalls[8] == 1
    search_summary = world.search(faiss_index="IVF8,Flat", min_recall=recalls[4] - 0.001)["faiss_indexes"]["dense"]
    assert (search_summary["parameters"], search_summary["recall"]) == ("nprobe=4", recalls[4])
    search_summary = world.search(faiss_index="IVF8,SQ8,RFlat", faiss_params="k_factor_rf=2", min_recall=1)[
        "faiss_indexes"
    ]["dense"]
    assert search_summary["parameters"] == "k_factor_rf=2,nprobe=8"


def test_too_low_a_recall_is_an_error_that_names_the_fix(world: World) -> None:
    given = {"faiss_index": "IVF8,Flat", "faiss_params": "nprobe=2"}
    recall = world.search(**given, min_recall=0)["faiss_indexes"]["dense"]["recall"]
    with pytest.raises(InputError) as refused:
        world.search(**given, min_recall=0.999)
    assert str(refused.value) == (
        f"[search] faiss_index = 'IVF8,Flat' (nprobe=2): recall@20 is {recall:.3f} on 30 sampled queries, "
        "and min_recall is 0.999. With faiss_params = nprobe=8 it is 1.000."
    )
    with pytest.raises(InputError, match=r"With faiss_params = k_factor_rf=2,nprobe=8 it is 1\.000\.$"):
        world.search(faiss_index="IVF8,SQ8,RFlat", faiss_params="nprobe=1,k_factor_rf=2", min_recall=0.999)
    with pytest.raises(InputError) as refused:
        world.search(faiss_index="IVF4,PQ1x2", top_k=2, min_recall=0.999)
    message = str(refused.value)
    assert re.search(
        r"\(nprobe=4\): recall@2 is 0\.\d+ on 30 .* is 0.999\. To find more, take a bigger code", message
    ), message
    with pytest.raises(InputError, match=r"'PQ1x2' \(no parameters\): recall@2 is 0\.\d+ .* is 0.999\. To find more, "):
        world.search(faiss_index="PQ1x2", top_k=2, min_recall=0.999)


def test_a_query_that_finds_too_little_is_searched_exactly(world: World) -> None:
    search_summary = world.search(faiss_index="IVF40,Flat", faiss_params="nprobe=1", min_recall=0)["faiss_indexes"][
        "dense"
    ]
    assert 0 < search_summary["n_exactly_searched_queries"] <= ASKED
    same = (world.found() == world.exact()).all(axis=1)
    assert same.sum() >= search_summary["n_exactly_searched_queries"]
    assert search_summary["recall"] < share(world.exact(), world.found())  # what exact search adds does not count


def test_the_same_bytes_again_and_for_every_block(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss_search, "_ADD_BATCH_DOCUMENTS", 150)
    for factory in ("IVF8,PQ4x4", "HNSW4"):
        contents = set()
        for block in (7, 150, 1000):
            monkeypatch.setattr(retrieval_stage, "DOCUMENTS_PER_BLOCK", block)
            search_summary = world.search(faiss_index=factory, min_recall=0)
            contents.add((*world.bytes(), json.dumps(search_summary)))
        assert len(contents) == 1


def test_the_seed_draws_the_training_sample(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.retrieval.faiss_index._MIN_TRAINING_POINTS", 60)
    monkeypatch.setattr("stages.retrieval.faiss_index._POINTS_PER_LIST", 1)
    found = []
    for seed in (0, 0, 1):
        search_summary = world.search(faiss_index="IVF4,Flat", faiss_params="nprobe=1", min_recall=0, seed=seed)
        assert search_summary["faiss_indexes"]["dense"]["n_training_documents"] == 60
        found.append(world.found().tolist())
    assert found[0] == found[1] != found[2]


def test_the_sample_depends_only_on_ids() -> None:
    ids = [f"d{i}" for i in range(50)]
    drawn = {ids[i] for i in faiss_search._sample_positions_by_hash(pl.Series(ids), 10, 0, "x")}
    assert {ids[::-1][i] for i in faiss_search._sample_positions_by_hash(pl.Series(ids[::-1]), 10, 0, "x")} == drawn
    more = [*ids, "another"]
    assert len(drawn & {more[i] for i in faiss_search._sample_positions_by_hash(pl.Series(more), 10, 0, "x")}) >= 9
    places = faiss_search._sample_positions_by_hash(pl.Series(ids), 99, 0, "x")
    assert places.tolist() == list(range(50))
    assert {ids[i] for i in faiss_search._sample_positions_by_hash(pl.Series(ids), 10, 1, "x")} != drawn


def test_few_documents_per_list_are_logged(world: World) -> None:
    world.search(faiss_index="IVF8,Flat", min_recall=0)
    assert not [line for line in world.progress.messages if "per list" in line]
    world.search(faiss_index="IVF20,Flat", min_recall=0)
    assert [line for line in world.progress.messages if "per list" in line] == [
        "IVF20,Flat: 20.0 training documents per list, FAISS recommends 39. Use at most 10 lists"
    ]


def test_an_index_that_is_not_faster_than_exact_search_is_logged(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    line = "30 queries x 400 documents: exact search takes about as long as making Flat and searching it, and misses "
    for pays, count in ((30 * 400, 0), (30 * 400 + 1, 1)):
        monkeypatch.setattr(faiss_search, "_MIN_PAIRS_FOR_INDEX", pays)
        world.search(faiss_index="Flat")
        assert len([message for message in world.progress.messages if message.startswith(line)]) == count


def test_an_index_that_does_not_fit_is_an_error_before_training(world: World) -> None:
    for factory, why in (("PQ3", "multiple of the number of subquantizers"), ("IVF401,Flat", "only 400 documents")):
        with pytest.raises(InputError, match=f"faiss_index = '{factory}'.*{why}"):
            world.search(faiss_index=factory)
    with pytest.raises(InputError, match="faiss_params = 'k_factor_rf=2'"):
        world.search(faiss_index="IVF4,Flat", faiss_params="k_factor_rf=2")
    assert not [line for line in world.progress.messages if "training" in line]


def test_invalid_search_parameters_are_named(world: World) -> None:
    for factory, parameters in (("IVF4,Flat", "nprobe=0"), ("Flat,RFlat", "k_factor_rf=0.1")):
        with pytest.raises(InputError, match=f"can't be searched with faiss_params = '{parameters}'.* at least 1"):
            world.search(faiss_index=factory, faiss_params=parameters)


def test_the_training_sample_is_held_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "DIMENSION", 2_000)
    world, read, train, held = World(tmp_path), DenseRetriever.read_document_blocks, FaissIndex.train, []

    def reading(dense: DenseRetriever, documents: Ints) -> Iterator[Floats]:
        tracemalloc.reset_peak()
        return read(dense, documents)

    def training(index: FaissIndex, vectors: Floats) -> None:
        held.append(tracemalloc.get_traced_memory()[1] / vectors.nbytes)
        train(index, vectors)

    monkeypatch.setattr(DenseRetriever, "read_document_blocks", reading)
    monkeypatch.setattr(FaissIndex, "train", training)
    tracemalloc.start()
    try:
        monkeypatch.setattr(retrieval_stage, "DOCUMENTS_PER_BLOCK", 20)
        world.search(faiss_index="IVF4,Flat", min_recall=0)
    finally:
        tracemalloc.stop()
    assert 1 < held[0] < 1.5


def test_every_encoder_has_an_index_of_its_own(world: World) -> None:
    search_summary = world.search(sources=("dense", "dense2:5"), faiss_index="IVF8,Flat", min_recall=1)["faiss_indexes"]
    assert {name: one["recall_at"] for name, one in search_summary.items()} == {"dense": 20, "dense2": 5}
    rows = read_table(world.folder / "out/candidates.parquet", CANDIDATES)
    found = {name: rows.filter(source=name)["doc_id"].str.slice(1).cast(pl.Int64).to_numpy() for name in search_summary}
    assert found["dense"].reshape(ASKED, 20).tolist() == world.exact().tolist()
    world.documents = world.documents[::-1]  # so they are to the other encoder
    assert found["dense2"].reshape(ASKED, 5).tolist() == world.exact(5).tolist()


def test_an_exact_search_after_it_goes_on_from_the_exact_one_before(world: World) -> None:
    first = world.search("first")
    world.search(faiss_index="IVF8,Flat", min_recall=0)
    search_summary = world.search("again", faiss_index="exact")
    assert search_summary["topk_cache"]["dense"] == {
        "n_new_documents": 0,
        "n_merged_queries": first["queries"],
        "n_searched_queries": 0,
    }
    assert world.bytes("again") == world.bytes("first")


def test_no_queries(world: World) -> None:
    world.write([], [f"d{i:03}" for i in range(DOCUMENTS)])
    search_summary = world.search(faiss_index="IVF4,Flat")
    assert (search_summary["candidates"], search_summary["faiss_indexes"]["dense"]["n_sampled_queries"]) == (0, 0)
    assert read_table(world.folder / "out/qrels_scored.parquet", QRELS_SCORED).height == 0


def test_exact_search_keeps_its_key() -> None:
    assert (
        key_extras(Params())
        == key_extras(Params(faiss_index="exact", faiss_params="nprobe=2", min_recall=0.5, seed=3))
        == {}
    )
    assert key_extras(Params(faiss_index="IVF4,Flat", seed=3)) == {
        "seed": "3",
        "faiss_index": "IVF4,Flat",
        "faiss_params": "",
        "min_recall": "0.95",
    }
