"""SimANS sampling, and the preference for a positive's category."""

import math
from collections import Counter

import numpy as np
import polars as pl
import pytest
import xxhash

from stages.mining.sampling import strategies
from stages.mining.sampling.sampler import select_negatives
from stages.mining.sampling.stage import Params
from stages.mining.sampling.strategies import build_eligible_pool, compute_simans_keys, find_positive_categories

NAMES = ["query_id", "doc_id", "score", "reason", "source"]


def pool(
    survivors: dict[str, float], query_id: str = "q", positive: float = 1.0, categories: dict[str, str] | None = None
) -> pl.DataFrame:
    """A pool of one query with the positives p (`positive`) and p2 (ten times that)."""
    rows = [(query_id, doc_id, score, "kept", "dense") for doc_id, score in survivors.items()]
    frame = pl.DataFrame(rows, schema=NAMES, orient="row").cast({"score": pl.Float32})
    keys = pl.DataFrame({"doc_id": [*survivors, "p", "p2"]}).with_row_index("cluster")
    known = pl.DataFrame({"query_id": [query_id] * 2, "doc_id": ["p2", "p"], "score": [10 * positive, positive]})
    known = known.cast({"score": pl.Float32}).join(keys, on="doc_id", maintain_order="left")
    found = categories and pl.DataFrame(list(categories.items()), schema=["doc_id", "category"], orient="row")
    return build_eligible_pool(frame, known, keys, found)


def select(params: Params, candidates: pl.DataFrame) -> list[str]:
    return select_negatives(params, candidates)[0]["doc_id"].to_list()


def test_the_key_is_the_logarithm_of_an_exponential_time():
    rows = pl.DataFrame({"score": [0.5, 2.0], "positive_score_min": [1.0, 1.0]}).cast(pl.Float32)
    halves = pl.Series([1 << 63, 1 << 63], dtype=pl.UInt64)  # u = (2^51 + 0.5) / 2^52
    time = math.log(math.log(2))
    # a = 2, b = 0.25: 2 (-0.5 - 0.25)^2 = 1.125, 2 (1 - 0.25)^2 = 1.125
    assert compute_simans_keys(halves, rows, 2, 0.25).to_list() == pytest.approx([time + 1.125] * 2)
    assert compute_simans_keys(halves, rows, 2, 1.0).to_list() == pytest.approx([time + 4.5, time])
    ends = pl.Series([0, (1 << 64) - 1], dtype=pl.UInt64)
    assert np.isfinite(compute_simans_keys(ends, rows, 2, 0.25).to_numpy()).all()


def test_simans_uses_the_hash_and_the_lowest_positive(monkeypatch):
    monkeypatch.setattr(strategies, "SIMANS_A", 20)
    monkeypatch.setattr(strategies, "SIMANS_B", 0.1)
    survivors = {f"d{i}": i / 20 for i in range(20)}

    def time(doc_id: str) -> float:
        u = ((xxhash.xxh3_64_intdigest(f"3:compose:q:{doc_id}".encode()) >> 12) + 0.5) / 2**52
        return -math.log(u) / math.exp(-20 * (np.float32(survivors[doc_id]) - 0.5 - 0.1) ** 2)

    params = Params(sampling="simans", num_negatives=6, seed=3)
    assert set(select(params, pool(survivors, positive=0.5))) == set(sorted(survivors, key=time)[:6])


def test_the_first_pick_is_distributed_by_the_weights(monkeypatch):
    monkeypatch.setattr(strategies, "SIMANS_A", 1)
    survivors = {"near": 1.0, "far": 0.0, "farther": -0.5}
    params = Params(sampling="simans", num_negatives=1)
    counts = Counter(select(params, pool(survivors, query_id=f"q{i}"))[0] for i in range(1500))
    weights = {"near": 1.0, "far": math.exp(-1), "farther": math.exp(-2.25)}
    for name, weight in weights.items():
        # 1500 draws: four standard deviations are below 0.052
        assert counts[name] / 1500 == pytest.approx(weight / sum(weights.values()), abs=0.052)


def test_simans_accepts_scores_of_any_scale():
    # every weight is exp(-some thousands): 0 as a number, but not in the order of the keys
    survivors = {f"d{i}": float(i) for i in range(0, 100, 10)}
    params = Params(sampling="simans", num_negatives=3)
    assert select(params, pool(survivors, positive=300.0)) == ["d90", "d80", "d70"]
    assert select(params, pool(survivors, positive=42.0))[1] == "d40"


def test_an_added_document_changes_at_most_one_negative():
    survivors = {f"d{i}": i / 30 for i in range(30)}
    params = Params(sampling="simans", num_negatives=8)
    before = set(select(params, pool(survivors)))
    for name in ("x", "y", "z", "v", "w"):
        after = set(select(params, pool(survivors | {name: 0.97})))
        assert len(before - after) == len(after - before) <= 1


CATEGORIES = {"p": "books", "a": "films", "b": "books", "d": "books", "e": "films"}
FIVE = {"a": 0.9, "b": 0.5, "c": 0.4, "d": 0.3, "e": 0.2}


@pytest.mark.parametrize("sampling", ["top", "random", "simans"])
def test_documents_of_the_positive_s_category_come_first(sampling):
    params = Params(num_negatives=3, sampling=sampling)
    found = select(params, pool(FIVE, categories=CATEGORIES))
    assert {"b", "d"} <= set(found)
    assert len(found) == 3
    assert sampling != "top" or found == ["a", "b", "d"]  # written by falling score


def test_the_categories_of_all_positives_count():
    both = CATEGORIES | {"p2": "films"}
    assert select(Params(num_negatives=4), pool(FIVE, categories=both)) == ["a", "b", "d", "e"]


def test_without_a_category_there_is_no_preference():
    without = {name: category for name, category in CATEGORIES.items() if name != "p"}
    assert select(Params(num_negatives=3), pool(FIVE, categories=without)) == ["a", "b", "c"]
    assert not pool(FIVE, categories=without)["other_category"].any()


def test_categories_of_positives():
    positives = pl.DataFrame({"query_id": ["q", "q", "r"], "doc_id": ["p", "p2", "x"]})
    categories = pl.DataFrame({"doc_id": ["p", "p2"], "category": ["books", "books"]})
    assert find_positive_categories(positives, categories).rows() == [("q", "books")]
