"""The findings of the audit, on small tables with results computed by hand."""

import math

import numpy as np
import polars as pl
import pytest

from stages.core import schemas
from stages.mining.audit import checks
from stages.mining.audit.checks import (
    CorpusIdfOverlap,
    compute_positive_ranks,
    find_inconsistent,
    find_low_ranked,
    find_outranked,
    find_outranking_negatives,
    truncated_normal_moments,
)
from stages.mining.audit.export import count_findings, write_findings
from stages.mining.candidates.feature_context import ZScaler
from tests.unit.stages.mining.collection import stand_in, table, write

QUERIES = table(schemas.QUERIES, ("1", "treat ague", "train", "1"), ("2", "treat gout", "dev", "2"))
CORPUS = table(
    schemas.CORPUS, ("d1", "treat ague so"), ("d2", "treat gout so"), ("d3", "ague"), ("x", "topics"), ("y", "more")
)
TERM_OVERLAP = CorpusIdfOverlap(QUERIES, CORPUS.lazy().select("doc_id", "text"))
SIMILARITY_SCALER = ZScaler(0.0, 0.5)


def candidates(*scores: float, query: str = "1", verdict: str = "negative") -> pl.DataFrame:
    """d1, d2, ... by falling score, as verdicts."""
    names = ["d1", "d2", "d3", "x", "y"][: len(scores)]
    return table(
        schemas.VERDICTS,
        *(
            (query, name, "dense", i, score, verdict, "kept")
            for i, (name, score) in enumerate(zip(names, scores, strict=True), 1)
        ),
    ).select("query_id", "doc_id", "source", "rank", "score", "verdict")


def qrels_scored(*rows: tuple[str, str, int, float]) -> pl.DataFrame:
    return table(schemas.QRELS_SCORED, *rows)


def test_the_rank_of_a_positive_in_a_whole_corpus():
    # scores 0.4, 0.2, 0.0: mean 0.2, deviation sqrt(0.08 / 3); 0.0 lies -0.2 / 0.16330 = -1.22474 from it
    found = compute_positive_ranks(qrels_scored(("1", "d3", 1, 0.0), ("1", "d1", 0, 0.4)), candidates(0.4, 0.2, 0.0), 3)
    assert found.drop("random_z").rows() == [("1", "d3", 3, 0.0, pytest.approx(0.4))]
    assert found["random_z"].to_list() == [pytest.approx(-math.sqrt(1.5))]


def test_the_scores_of_all_documents_are_estimated_from_the_best():
    # the upper half of a standard normal: mean sqrt(2 / pi), variance 1 - 2 / pi
    assert truncated_normal_moments(0.5) == (
        pytest.approx(math.sqrt(2 / math.pi)),
        pytest.approx(math.sqrt(1 - 2 / math.pi)),
    )
    assert truncated_normal_moments(1.0) == (0.0, 1.0)
    scores = np.sort(np.random.default_rng(0).normal(0.3, 0.1, 20_000))[::-1][:400]
    rows = pl.DataFrame({"query_id": "1", "doc_id": [f"{i:03}" for i in range(400)], "source": "dense"})
    rows = rows.with_columns(pl.Series("rank", range(1, 401), pl.Int32), pl.Series("score", scores, pl.Float32))
    found = compute_positive_ranks(qrels_scored(("1", "far", 1, 0.35)), rows, 20_000)
    assert found["rank"].to_list() == [None]
    assert found["random_z"][0] == pytest.approx(0.5, abs=0.25)  # 0.35 is half a deviation above 0.3


@pytest.mark.parametrize("rows", [candidates(0.4), candidates(0.4, 0.4, 0.4), candidates()])
def test_equal_scores_give_no_finding(rows):
    found = compute_positive_ranks(qrels_scored(("1", "x", 1, 0.1)), rows, 3)
    assert found["random_z"].to_list() == [None]
    assert find_low_ranked(found, 1, TERM_OVERLAP).is_empty()


def test_low_ranked_has_a_low_rank_a_random_score_and_no_overlap():
    def row(doc_id: str, rank: int | None, random_z: float) -> tuple[str, str, int | None, float, float, float]:
        return ("1", doc_id, rank, 0.1, 0.9, random_z)

    rows = [row("x", 60, 0.1), row("y", None, -1.0), row("d1", 60, 0.1), row("d2", 50, 0.1), row("d3", 60, 2.0)]
    found = find_low_ranked(pl.DataFrame(rows, checks.POSITIVE_RANKS_SCHEMA, orient="row"), 50, TERM_OVERLAP)
    # worst first; d1 contains all terms, d2 has the maximal rank, d3 scores far above a random document
    assert found["doc_id"].to_list() == ["y", "x"]
    assert found["term_overlap"].to_list() == [0.0, 0.0]
    assert found["explanation"][1].startswith("rank 60; its score 0.1 is like a random document's (0.1 deviations")
    assert found["explanation"][0].startswith("not among the candidates;")


def test_outranked_by_all_hardest_negatives_in_score_and_overlap():
    rows = candidates(0.9, 0.8, 0.7, 0.1)
    positives = compute_positive_ranks(qrels_scored(("1", "x", 1, 0.1)), rows, 4)
    rows = rows.filter(pl.col("doc_id") != "x")
    assert find_outranking_negatives(positives, rows, 3)["compared_doc_id"].to_list() == ["d1", "d2", "d3"]
    assert find_outranking_negatives(positives, rows, 2)["compared_doc_id"].to_list() == ["d1", "d2"]
    assert find_outranking_negatives(positives, rows, 4).is_empty()  # fewer than 4
    found = find_outranked(positives, find_outranking_negatives(positives, rows, 3), TERM_OVERLAP)
    assert found.select("doc_id", "compared_doc_id", "term_overlap").rows() == [("x", "d1", 0.0)]
    assert "all of the 3 hardest negatives score above it (0.1)" in found["explanation"][0]
    wordless = pl.concat(
        [
            find_outranking_negatives(positives, rows, 3),
            pl.DataFrame([("1", "x", "y")], checks.OUTRANKING_SCHEMA, orient="row"),
        ]
    )
    assert find_outranked(positives, wordless, TERM_OVERLAP).is_empty()  # y contains no more terms than x


def test_a_positive_above_one_of_the_negatives_is_not_outranked():
    rows = candidates(0.9, 0.1, 0.05)
    assert (
        find_outranking_negatives(compute_positive_ranks(qrels_scored(("1", "x", 1, 0.07)), rows, 4), rows, 2).height
        == 2
    )
    assert find_outranking_negatives(
        compute_positive_ranks(qrels_scored(("1", "x", 1, 0.1)), rows, 4), rows, 2
    ).is_empty()  # equal scores
    ignored = candidates(0.9, 0.8, verdict="ignored")
    assert find_outranking_negatives(
        compute_positive_ranks(qrels_scored(("1", "x", 1, 0.07)), ignored, 4), ignored, 1
    ).is_empty()


def find(queries: pl.DataFrame, *pairs: tuple[str, str]) -> pl.DataFrame:
    vectors = {"d1": [1.0, 0.0], "d2": [0.8, 0.6], "x": [0.0, 1.0], "d3": [0.0, 0.0]}

    def vectorise(frame: pl.DataFrame) -> np.ndarray:
        return np.array([vectors[doc_id] for doc_id in frame["doc_id"]], dtype=np.float32)

    rows = [(query_id, doc_id, 1, 0.5, 0.9, 2.0) for query_id, doc_id in pairs]
    return find_inconsistent(
        pl.DataFrame(rows, checks.POSITIVE_RANKS_SCHEMA, orient="row"), queries, vectorise, SIMILARITY_SCALER
    )


AGAIN = table(
    schemas.QUERIES, ("1", "Treat ague?", "train", "1"), ("2", "treat AGUE", "dev", "2"), ("3", "other", "dev", "3")
)


def test_inconsistent_positives_of_paraphrases():
    found = find(AGAIN, ("1", "d1"), ("2", "x"), ("3", "d2"))
    assert found.select("query_id", "doc_id", "compared_doc_id", "similarity_z").rows() == [
        ("1", "d1", "x", 0.0),
        ("2", "x", "d1", 0.0),
    ]
    assert "occurs 2 times" in found["explanation"][0]
    # d1 and d2 are similar: 0.8 / 0.5 = 1.6 deviations; the nearest document of x is d2 with 0.6 / 0.5 = 1.2
    assert find(AGAIN, ("1", "d1"), ("2", "d2"), ("2", "x")).is_empty()


def test_a_document_that_two_paraphrases_share_is_confirmed():
    found = find(AGAIN, ("1", "d1"), ("2", "d1"), ("2", "x"))
    assert found["doc_id"].to_list() == ["x"]
    assert find(AGAIN, ("1", "d1"), ("2", "d1")).is_empty()


def test_inconsistent_positives_of_one_query():
    found = find(AGAIN, ("3", "d1"), ("3", "x"))
    assert found.select("query_id", "doc_id").rows() == [("3", "d1"), ("3", "x")]
    assert "has several positives" in found["explanation"][0]
    assert find(AGAIN, ("3", "d1")).is_empty()


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_the_block_size_changes_nothing(tmp_path, monkeypatch, size):
    stand_in(monkeypatch, {"d1": [1.0, 0.0], "d2": [0.8, 0.6], "d3": [0.0, 1.0], "x": [0.0, -1.0], "y": [-1.0, 0.0]})
    for name in ("AUDIT_ROWS_PER_BLOCK", "_OVERLAP_PAIRS_PER_BATCH", "_POSITIVES_PER_BATCH"):
        monkeypatch.setattr(checks, name, size)
    verdicts = pl.concat([candidates(0.9, 0.8, 0.7, 0.2, 0.1), candidates(0.9, 0.8, 0.7, 0.2, 0.1, query="2")])
    right = pl.col("doc_id").is_in(["x", "y"])
    verdicts = verdicts.with_columns(verdict=pl.when(right).then(pl.lit("positive")).otherwise("verdict"))
    inputs = write(
        tmp_path,
        queries=QUERIES,
        corpus=CORPUS,
        qrels_scored=qrels_scored(("1", "x", 1, 0.2), ("1", "y", 1, 0.1), ("2", "y", 1, 0.1), ("2", "d1", 0, 0.9)),
        verdicts=verdicts.with_columns(reason=pl.lit("kept")),
        qrels=table(schemas.QRELS, ("2", "y", 1)),
    )
    inputs |= {"label_overrides": inputs["qrels"], "encoder": tmp_path}
    found, positives = checks.find_label_issues(inputs, tmp_path, 2)
    assert positives == 3
    # ("2", "y") is confirmed by a label override
    assert found.select("finding", "query_id", "doc_id", "split", "rank").rows() == [
        ("low_ranked", "1", "y", "train", 5),
        ("low_ranked", "1", "x", "train", 4),
        ("outranked", "1", "y", "train", 5),
        ("outranked", "1", "x", "train", 4),
        ("inconsistent", "1", "x", "train", 4),
        ("inconsistent", "1", "y", "train", 5),
    ]
    only, _ = checks.find_label_issues(inputs, tmp_path, 3, ["outranked"])
    assert only["finding"].to_list() == ["outranked", "outranked"]
    assert checks.find_label_issues(inputs, tmp_path, 4, ["outranked"])[0].is_empty()
    assert count_findings(found, positives) == {
        "n_positives": 3,
        "n_flagged": 2,
        "share": round(2 / 3, 6),
        "counts": {"low_ranked": 2, "outranked": 2, "inconsistent": 2},
    }


def test_no_positives_no_findings(tmp_path, monkeypatch):
    stand_in(monkeypatch, {name: [1.0, 0.0] for name in ("d1", "d2", "d3", "x", "y")})
    inputs = write(
        tmp_path, queries=QUERIES, corpus=CORPUS, qrels_scored=qrels_scored().clear(), verdicts=table(schemas.VERDICTS),
        qrels=table(schemas.QRELS),
    )  # fmt: skip
    found, positives = checks.find_label_issues(
        inputs | {"label_overrides": inputs["qrels"], "encoder": tmp_path}, tmp_path, 7
    )
    assert (len(found), positives) == (0, 0)
    assert found.columns == list(checks.FINDINGS_SCHEMA)
    assert count_findings(found, 0)["share"] == 0.0


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_written_findings_are_read_again(tmp_path, ending):
    found = pl.DataFrame(
        {"query_id": ["1"], "label": [None], "text": ['a "b",\nc']}, schema_overrides={"label": pl.String}
    )
    path = tmp_path / f"found.{ending}"
    write_findings(found, path)
    read = {"csv": pl.read_csv, "jsonl": pl.read_ndjson, "parquet": pl.read_parquet}[ending](path)
    assert read.cast({"label": pl.String, "query_id": pl.String}).rows() == found.rows()


def test_ranks_are_those_of_the_dense_source():
    alone = candidates(0.9, 0.8, 0.2, 0.1)
    united = alone.with_columns(source=pl.when(pl.col("rank") < 3).then(pl.lit("bm25+dense")).otherwise("source"))
    extra = alone.head(1).with_columns(doc_id=pl.lit("other"), source=pl.lit("bm25"), rank=pl.lit(9, pl.Int32))
    labels = qrels_scored(("1", "d1", 1, 0.9), ("1", "d3", 1, 0.2))
    expected = compute_positive_ranks(labels, alone, 100)
    assert compute_positive_ranks(labels, pl.concat([united, extra.select(united.columns)]), 100).equals(expected)
