"""Which positives are held out."""

import polars as pl

from stages.mining.estimator.holdout import hold_out_one, hold_out_positives

PAIRS = [(f"q{q}", f"d{d}") for q in range(50) for d in range(q % 5 + 1)]


def to_frame(pairs: list[tuple[str, str]]) -> pl.DataFrame:
    return pl.DataFrame(pairs, schema=["query_id", "doc_id"], orient="row")


def test_half_of_each_query_s_positives_are_held_out_independently_of_other_queries() -> None:
    found = hold_out_positives(to_frame(PAIRS), 0, "x")
    for rows in found.partition_by("query_id"):
        assert rows["held_out"].sum() == len(rows) // 2
    fewer_queries = hold_out_positives(to_frame(PAIRS).filter(pl.col("query_id") > "q3").reverse(), 0, "x")
    expected = found.filter(pl.col("query_id") > "q3").sort("query_id", "doc_id")
    assert fewer_queries.sort("query_id", "doc_id").equals(expected)
    assert not hold_out_positives(to_frame(PAIRS), 1, "x").equals(found)


def test_or_all_positives_but_one() -> None:
    kept = hold_out_positives(to_frame(PAIRS), 0, "x", "one").filter(~pl.col("held_out"))
    assert sorted(kept["query_id"]) == sorted(f"q{q}" for q in range(50))
    assert kept["doc_id"].n_unique() > 1


def test_each_round_holds_out_another_positive_of_a_query_with_several() -> None:
    pairs = [("one", "a"), ("two", "b"), ("two", "c"), ("three", "d"), ("three", "e"), ("three", "f")]
    rounds = [hold_out_one(to_frame(pairs), i) for i in range(3)]
    assert [sorted(set(rows["query_id"])) for rows in rounds] == [["three", "two"], ["three", "two"], ["three"]]
    held_out = [pair for rows in rounds for pair in rows.filter("held_out").select("query_id", "doc_id").iter_rows()]
    assert sorted(held_out) == sorted(pairs[1:])
    assert dict(rounds[0].select("query_id", "weight").iter_rows()) == {"two": 2.0, "three": 3.0}
    three = to_frame(pairs).filter(pl.col("query_id") == "three").reverse()
    assert hold_out_one(three, 1).filter("held_out").rows() == rounds[1].filter("held_out", query_id="three").rows()
