"""A dense search that goes on from the last one gives the bytes of a search from nothing."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.core.context import NullProgress, StageContext
from stages.core.hashing import hash_texts
from stages.core.schemas import CORPUS, QRELS, QUERIES, write_table
from stages.embedding.vector_store import VectorStore
from stages.retrieval import incremental
from stages.retrieval import stage as retrieval_stage
from stages.retrieval.stage import Params, run
from tests.encodings import write_encodings

# A text says its vector, and a letter, so that different texts can have the same vector: ties abound.
TEXTS = [f"{letter} {x} {y}" for letter in "abc" for x in (-1, 0, 1) for y in (-1, 0, 1)]


class World:
    """A workspace of hand-made vectors, in which documents and queries (id -> text) come and go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = folder / "vectors/key"
        self.documents: dict[str, str] = {}
        self.queries: dict[str, str] = {}
        for name in ("lived", "nothing"):
            (folder / name).mkdir()
        self.encode(TEXTS)

    def encode(self, texts: list[str]) -> None:
        vectors = np.array([text.split()[1:] for text in texts], np.float32)
        VectorStore(self.store).append(hash_texts(texts), vectors)

    def search(self, depth: int, out: str = "lived") -> dict[str, Any]:
        """What the summary says of the lists."""
        queries, documents = (sorted(rows.items()) for rows in (self.queries, self.documents))
        frame = pl.DataFrame(queries, ["query_id", "query"], orient="row").with_columns(
            split=pl.lit("train"), group=pl.lit("g")
        )
        write_table(frame, QUERIES, self.folder / "queries.parquet")
        frame = pl.DataFrame(documents, {"doc_id": pl.String, "text": pl.String}, orient="row")
        write_table(frame, CORPUS, self.folder / "corpus.parquet")
        pairs = [(query, document, 1) for (query, _), (document, _) in zip(queries, documents, strict=False)]
        schema = {"query_id": pl.String, "doc_id": pl.String, "relevance": pl.Int32}
        write_table(pl.DataFrame(pairs, schema, orient="row"), QRELS, self.folder / "qrels.parquet")
        inputs = {name: self.folder / f"{name}.parquet" for name in ("queries", "corpus", "qrels")}
        inputs |= write_encodings(self.folder, {"key": "m"})
        tools = StageContext(NullProgress(), self.folder / "scratch", self.store.parent, self.folder / "logs")
        with mock.patch.object(retrieval_stage, "DOCUMENTS_PER_BLOCK", 7):
            summary = run(Params(top_k=depth), inputs, self.folder / out, tools)
        cache_counts: dict[str, Any] = summary["topk_cache"]["dense"]
        return cache_counts

    def equal(self, depth: int) -> bool:
        """Whether a search from nothing gives what the last search gave; its lists stay as they are."""
        aside = self.store / "aside"
        (self.store / "topk_cache").rename(aside)
        cache_counts = self.search(depth, "nothing")
        assert (cache_counts["n_merged_queries"], cache_counts["n_searched_queries"]) == (0, len(self.queries))
        shutil.rmtree(self.store / "topk_cache")
        aside.rename(self.store / "topk_cache")
        return all(
            (self.folder / "lived" / name).read_bytes() == (self.folder / "nothing" / name).read_bytes()
            for name in ("candidates.parquet", "qrels_scored.parquet")
        )

    def found(self, query: str) -> list[str]:
        rows = pl.read_parquet(self.folder / "lived/candidates.parquet").filter(pl.col("query_id") == query)
        return rows["doc_id"].to_list()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """No reserve, so that every loss is felt; one query along the first axis."""
    monkeypatch.setattr(incremental, "_extra_depth", lambda end: 0)
    world = World(tmp_path)
    world.queries = {"q": "a 1 0"}
    return world


def filler(count: int) -> dict[str, str]:
    """Documents that are worst for the query, so that few changes are a small share."""
    return {f"z{i}": "a -1 0" for i in range(count)}


def cache_counts(new: int, merged: int, full: int) -> dict[str, int]:
    return {"n_new_documents": new, "n_merged_queries": merged, "n_searched_queries": full}


def test_nothing_changed(world: World) -> None:
    world.documents = {"d1": "a 1 0", "d2": "a 0 0", **filler(4)}
    assert world.search(2) == cache_counts(6, 0, 1)
    assert world.search(2) == cache_counts(0, 1, 0)
    assert world.equal(2)


def test_a_lost_candidate_whose_place_a_new_one_takes(world: World) -> None:
    world.documents = {"d1": "a 1 0", "d2": "a 1 1", "d3": "a 0 0", **filler(4)}
    world.search(3)
    del world.documents["d1"]
    world.documents["d9"] = "b 1 0"
    assert world.search(3) == cache_counts(1, 1, 0)
    assert world.found("q") == ["d2", "d9", "d3"]
    assert world.equal(3)


def test_a_lost_candidate_whose_place_nothing_takes(world: World) -> None:
    world.documents = {"d1": "a 1 0", "d2": "a 0 0", "d3": "a 0 1", **filler(4)}
    world.search(2)
    del world.documents["d1"]
    world.documents["d9"] = "b -1 0"  # below the cut
    assert world.search(2) == cache_counts(1, 0, 1)
    assert world.found("q") == ["d2", "d3"]
    assert world.equal(2)


@pytest.mark.parametrize(
    ("new", "merged", "found"), [("d2a", 1, ["d2", "d2a"]), ("d4", 0, ["d2", "d3"]), ("d0", 1, ["d0", "d2"])]
)
def test_a_new_candidate_that_ties_at_the_cut(world: World, new: str, merged: int, found: list[str]) -> None:
    """The cut lies at 0 between d2 and d3, which was never seen: a new 0 is sure to come before d3 or it is not."""
    world.documents = {"d1": "a 1 0", "d2": "a 0 0", "d3": "a 0 1", **filler(4)}
    world.search(2)
    del world.documents["d1"]
    world.documents[new] = "b 0 0"
    assert world.search(2) == cache_counts(1, merged, 1 - merged)
    assert world.found("q") == found
    assert world.equal(2)


def test_the_last_entry_itself_is_lost(world: World) -> None:
    """d3 ties with the lost d2 and has its place in the order; d2b comes before it, d4 after."""
    world.documents = {"d1": "a 1 0", "d2": "a 0 0", "d3": "a 0 1", **filler(4)}
    world.search(2)
    del world.documents["d2"]
    world.documents["d2b"] = "b 0 0"
    assert world.search(2) == cache_counts(1, 1, 0)
    assert world.found("q") == ["d1", "d2b"]
    assert world.equal(2)
    del world.documents["d2b"]
    world.documents["d4"] = "b 0 0"
    assert world.search(2) == cache_counts(1, 0, 1)
    assert world.found("q") == ["d1", "d3"]
    assert world.equal(2)


def test_a_changed_text_is_lost_and_new(world: World) -> None:
    world.documents = {"d1": "a 1 0", "d2": "a 0 0", "d3": "a 0 1", **filler(4)}
    world.search(2)
    world.documents["d1"] = "b 1 1"
    assert world.search(2) == cache_counts(1, 1, 0)
    world.documents["d1"] = "c -1 0"
    assert world.search(2) == cache_counts(1, 0, 1)
    assert world.found("q") == ["d2", "d3"]
    assert world.equal(2)


def test_a_list_of_the_whole_corpus_loses_and_gains(world: World) -> None:
    world.documents = filler(5)
    world.search(50)
    del world.documents["z0"]
    assert world.search(50) == cache_counts(0, 1, 0)
    world.documents |= {"a": "a -1 0", "z9": "a 1 0"}
    assert world.search(50) == cache_counts(2, 1, 0)
    assert world.found("q") == ["z9", "a", "z1", "z2", "z3", "z4"]
    assert world.equal(50)


def test_new_and_changed_queries_are_searched_in_full_and_renamed_ones_are_not(world: World) -> None:
    world.documents = {"d1": "a 1 0", **filler(4)}
    world.queries |= {"r": "a 0 1", "s": "a 1 1"}
    world.search(2)
    world.queries = {"q": "a 1 0", "r": "b 0 -1", "t": "c 0 0", "renamed": "a 1 1"}
    assert world.search(2) == cache_counts(0, 2, 2)
    assert world.equal(2)


def test_another_depth(world: World) -> None:
    world.documents = {"d1": "a 1 0", **filler(8)}
    world.search(4)
    assert world.search(2) == cache_counts(0, 1, 0)
    assert world.equal(2)
    assert world.search(3) == cache_counts(0, 0, 1)
    assert world.equal(3)


def test_the_reserve_bears_a_loss(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incremental, "_extra_depth", lambda end: 1)
    world.documents = {"d1": "a 1 0", "d2": "a 0 0", "d3": "a 0 1", **filler(4)}
    world.search(2)
    for gone, merged in (("d1", 1), ("d2", 0), ("d3", 1)):  # the second search in full fills the reserve again
        del world.documents[gone]
        assert world.search(2) == cache_counts(0, merged, 1 - merged)
        assert world.equal(2)


def test_more_new_documents_than_old_ones_are_searched_together(world: World) -> None:
    world.documents = filler(3)
    world.search(2)
    world.documents |= {f"d{i}": "b 0 1" for i in range(4)}
    assert world.search(2) == cache_counts(4, 0, 1)
    assert world.equal(2)


def test_an_empty_corpus_in_between(world: World) -> None:
    for documents in (filler(3), {}, filler(2)):
        world.documents = documents
        world.search(2)
        assert len(world.found("q")) == min(2, len(documents))
        assert world.equal(2)


def test_damaged_lists_are_not_used(world: World) -> None:
    world.documents = filler(6)
    world.search(2)
    path = max((world.store / "topk_cache").glob("*.npy"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert world.search(2) == cache_counts(6, 0, 1)
    assert world.search(2) == cache_counts(0, 1, 0)
    assert world.equal(2)


def test_lists_of_vectors_that_were_encoded_again_are_not_used(world: World) -> None:
    world.documents = filler(6)
    world.search(2)
    (segment,) = world.store.glob("*.npy")
    segment.unlink()
    world.encode(TEXTS[::-1])
    assert world.search(2) == cache_counts(6, 0, 1)


def test_documents_in_another_order_are_searched_anew(world: World) -> None:
    """Ties follow the order of the table: lists of another order don't hold."""
    old = np.array([b"1", b"2", b"3"], "S16")
    assert incremental._find_key_positions(old, old[[0, 2]]).tolist() == [0, -1, 1]
    assert incremental._find_key_positions(old, old[:0]).tolist() == [-1, -1, -1]
    world.documents = filler(3)
    world.search(2)
    path = world.store / "topk_cache"
    read = json.loads((path / "topk_cache.json").read_text())
    documents = np.load(path / f"{read['document_keys']}.npy")
    draft = incremental.TopKWriter(path, hash_texts(["a 1 0"]), 2)
    draft.write_rows(np.array([0]), np.array([[0, 1]], np.uint64))
    draft.commit(documents[::-1], read["code_versions"], read["segments"])
    assert world.search(2) == cache_counts(0, 0, 1)


ids = st.sampled_from([f"d{i:02}" for i in range(24)])
edits = st.dictionaries(ids, st.none() | st.sampled_from(TEXTS), min_size=1, max_size=5)
asked = st.dictionaries(st.sampled_from("pqrstu"), st.sampled_from(TEXTS), max_size=2)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    first=st.dictionaries(ids, st.sampled_from(TEXTS), min_size=12),
    history=st.lists(st.tuples(edits, asked), min_size=2, max_size=5),
    questions=st.dictionaries(st.sampled_from("pqrstu"), st.sampled_from(TEXTS), min_size=4),
    depths=st.lists(st.integers(1, 12), min_size=1, max_size=2),
    reserve=st.integers(0, 3),
)
def test_any_history_gives_the_bytes_of_a_search_from_nothing(  # type: ignore[no-untyped-def]
    tmp_path_factory, monkeypatch, first, history, questions, depths, reserve
) -> None:
    monkeypatch.setattr(incremental, "_extra_depth", lambda end: reserve)
    monkeypatch.setattr(incremental, "_MERGE_BATCH_QUERIES", 2)
    monkeypatch.setattr(incremental, "_FULL_SEARCH_QUERIES", 3)
    world = World(tmp_path_factory.mktemp("world"))
    world.documents, world.queries = dict(first), dict(questions)
    world.search(depths[0])
    for (changes, more), depth in zip(history, itertools.cycle(depths), strict=False):
        for doc_id, text in changes.items():
            if text is None:
                world.documents.pop(doc_id, None)
            else:
                world.documents[doc_id] = text
        world.queries |= more
        if len(more) == 2:
            world.queries.pop(min(world.queries))
        world.search(depth)
        assert world.equal(depth)
