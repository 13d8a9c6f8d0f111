"""Slices: other rows' documents without a model, never a known positive, stable when documents come or go."""

import json
from collections import Counter

import polars as pl
import pytest
from pydantic import ValidationError

from stages.core import schemas
from stages.mining.sampling import random_baseline
from stages.mining.sampling import stage as sampling_stage
from stages.mining.sampling.random_baseline import build_text_hash_ring, sample_random_negatives
from stages.mining.sampling.stage import Params
from tests.unit.stages.mining.collection import table, tools, write


def small(**given) -> Params:
    return Params(sampling="slices", **given)


def keys(n: int) -> pl.DataFrame:
    return pl.DataFrame({"doc_id": [f"d{i}" for i in range(n)], "text_key": range(n)}).cast({"text_key": pl.UInt64})


def known(*pairs: tuple[str, int]) -> pl.DataFrame:
    return pl.DataFrame(pairs, schema={"query_id": pl.String, "text_key": pl.UInt64}, orient="row")


def of(frame: pl.DataFrame, query_id: str) -> list[list[str]]:
    mine = frame.filter(pl.col("query_id") == query_id).group_by("line", maintain_order=True).agg("doc_id")
    assert mine["line"].to_list() == list(range(len(mine)))
    return mine["doc_id"].to_list()


def test_slices_are_full_disjoint_and_without_positives():
    truth = known(*((f"q{q}", q) for q in range(50)), ("q0", 77))
    found = sample_random_negatives(small(slice=4, slices=3), truth, build_text_hash_ring(keys(100), 0))
    for q in range(50):
        lines = of(found, f"q{q}")
        assert [len(line) for line in lines] == [4, 4, 4]
        together = {doc_id for line in lines for doc_id in line}
        assert len(together) == 12
        assert not together & {f"d{q}"}
    assert not {doc_id for line in of(found, "q0") for doc_id in line} & {"d0", "d77"}


def test_every_query_draws_others_and_every_document_comes_up():
    truth = known(*((f"q{q}", q % 100) for q in range(1000)))
    found = sample_random_negatives(small(slice=8, slices=2), truth, build_text_hash_ring(keys(100), 0))
    counts = Counter(found["doc_id"])
    assert len(counts) == 100
    assert sum(counts.values()) == 16_000
    # 160 each; one part in four is what 16 places on the circle vary by: five times that is far
    assert max(counts.values()) < 360
    assert min(counts.values()) > 20
    assert (
        sample_random_negatives(small(slice=8, slices=2), truth, build_text_hash_ring(keys(100), 1)).rows()
        != found.rows()
    )


def test_one_document_more_changes_one_place():
    truth = known(*((f"q{q}", q) for q in range(60)))
    before = sample_random_negatives(small(slice=4, slices=3), truth, build_text_hash_ring(keys(100), 0))
    after = sample_random_negatives(small(slice=4, slices=3), truth, build_text_hash_ring(keys(101), 0))
    changed = 0
    for q in range(60):
        one, two = (set(frame.filter(pl.col("query_id") == f"q{q}")["doc_id"]) for frame in (before, after))
        assert len(two) == 12
        assert two - one <= {"d100"}
        changed += two != one
    assert 0 < changed < 30  # 12 of 101 on average: 7


def test_too_few_documents_make_fewer_lines():
    found = sample_random_negatives(small(slice=4, slices=3), known(("a", 0)), build_text_hash_ring(keys(7), 0))
    assert [len(line) for line in of(found, "a")] == [4, 2]
    assert sample_random_negatives(small(), known(("a", 0)), build_text_hash_ring(keys(1), 0)).is_empty()


@pytest.fixture
def inputs(tmp_path):
    corpus = [(f"n{i:02}", f"text {i}") for i in range(12)]
    return write(
        tmp_path,
        queries=table(
            schemas.QUERIES,
            ("a", "What is α?", "train", "a"),
            ("b", "what is α", "test", "b"),
            ("c", "something else", "train", "c"),
            ("d", "no_positive", "train", "d"),
        ),
        corpus=table(schemas.CORPUS, *corpus, ("p1", "the answer"), ("p2", "the answer"), ("p3", "of b")),
        qrels=table(schemas.QRELS, ("a", "p1", 1), ("a", "n00", 0), ("b", "p3", 1), ("c", "n01", 2), ("c", "n02", 1)),
    )


def run(params: Params, inputs, tmp_path) -> tuple[list[dict], dict, bytes]:
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    summary = sampling_stage.run(params, inputs, out, tools(tmp_path))
    content = (out / "mined.jsonl").read_bytes()
    return [json.loads(line) for line in content.decode().splitlines()], summary, content


def test_the_lines(inputs, tmp_path):
    """Only queries, corpus and qrels are given: neither candidates nor verdicts nor vectors are read."""
    mined, summary, _ = run(small(slice=5, slices=2), inputs, tmp_path)
    assert [line["query_id"] for line in mined] == ["a", "a", "c", "c"]
    names = ["query_id", "query", "pos", "neg", "pos_ids", "neg_ids"]
    assert all(list(line) == names for line in mined)
    first, second, third, _ = mined
    assert (first["pos"], first["pos_ids"]) == (["the answer"], ["p1"]) == (second["pos"], second["pos_ids"])
    assert third["pos_ids"] == ["n01", "n02"]  # by falling relevance
    for line in mined:
        assert len(line["neg"]) == len(line["neg_ids"]) == 5
        # p2 repeats p1's text; p3 answers b, which restates a
        assert not set(line["neg_ids"]) & ({"p1", "p2", "p3"} if line["query_id"] == "a" else {"n01", "n02", "p2"})
    assert summary["queries"] == 2
    assert summary["lines"] == 4
    assert (summary["n_requested"], summary["negatives"], summary["fill_rate"]) == (10, 20, 1.0)
    assert summary["by_stratum"] == {"slices": 20}
    assert summary["hardness"] is None
    assert summary["skipped_queries"] == {"no_positive": 1, "no_negatives": 0}


def test_the_block_changes_no_byte(inputs, tmp_path, monkeypatch):
    params = small(slice=3, slices=2)
    _, summary, content = run(params, inputs, tmp_path)
    monkeypatch.setattr(random_baseline, "NEGATIVES_PER_BLOCK", 1)
    assert run(params, inputs, tmp_path)[1:] == (summary, content)


def test_other_loaders_read_the_lines(inputs, tmp_path):
    import pandas as pd
    from datasets import load_dataset

    mined, _, _ = run(small(slice=3, slices=2), inputs, tmp_path)
    path = tmp_path / "out" / "mined.jsonl"
    rows = load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "datasets"))
    assert rows.to_list() == mined
    assert pd.read_json(path, lines=True).to_dict("records") == mined


@pytest.mark.filterwarnings("ignore")
def test_flagembedding_trains_on_the_lines(inputs, tmp_path, tiny_model):
    from FlagEmbedding.abc.finetune.reranker import AbsRerankerDataArguments, AbsRerankerTrainDataset
    from transformers import AutoTokenizer

    mined, _, _ = run(small(slice=3, slices=2), inputs, tmp_path)
    arguments = AbsRerankerDataArguments(
        train_data=[str(tmp_path / "out" / "mined.jsonl")], cache_path=str(tmp_path), train_group_size=3
    )
    examples = AbsRerankerTrainDataset(arguments, AutoTokenizer.from_pretrained(tiny_model))
    assert [len(examples[i][0]) for i in range(len(examples))] == [3] * len(mined)


CAN_NOT = [
    {"prefer_category": True},
    {"hub_cap": 5},
    {"source_quotas": ("dense=1",)},
    {"drop_positives": ("low_ranked",)},
]


@pytest.mark.parametrize("given", CAN_NOT)
def test_what_slices_can_not_honour_is_refused(given):
    with pytest.raises(ValidationError, match=f"knows no scores and no candidates: remove {next(iter(given))}"):
        small(**given)
