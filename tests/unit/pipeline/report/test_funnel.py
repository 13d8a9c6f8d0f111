"""The funnel adds up: rows in minus every loss are the rows used, and those minus what merged are the queries."""

from typing import Any

from pipeline.report.funnel import FunnelRow, format_funnel, list_funnel_rows

SUMMARY: dict[str, Any] = {
    "rows_in": 1044,
    "rejected": {"no question": 12, "contradictory": 3},
    "standalone_rows": 296,
    "rows_used": 733,
    "merged_queries": 18,
    "merged_documents": 455,
    "queries": 715,
    "splits": {"train": 582, "dev": 69, "test": 64},
    "paraphrases_across_splits": 0,
    "documents": 296,
    "chunks": 0,
    "documents_across_splits": 0,
    "curated_negatives": 14,
    "label_overrides": 0,
    "positives_per_query": {"mean": 1.0042, "max": 2},
}


def test_the_losses_add_up_to_the_queries() -> None:
    rows = list_funnel_rows(SUMMARY)
    by_label = {row.label: row for row in rows}
    used = rows.index(by_label["rows used as pairs"])
    assert rows[0].count + sum(row.count for row in rows[1:used]) == rows[used].count == 733
    assert rows[used].count + by_label["merged into an equal query"].count == by_label["queries"].count == 715
    assert by_label["a document or a question alone"] == FunnelRow("a document or a question alone", -296, True, 1044)
    assert sum(by_label[split].count for split in ("train", "dev", "test")) == 715


def test_the_funnel_in_lines() -> None:
    summary = SUMMARY | {"standalone_rows": 0, "curated_negatives": 0, "rejected": {"no question": 1}}
    assert format_funnel(summary) == [
        "rows in                               1,044",
        "  no question                            -1",
        "rows used as pairs                      733",
        "  merged into an equal query            -18",
        "queries                                 715",
        "  train                                 582",
        "  dev                                    69",
        "  test                                   64",
        "documents                               296",
        "  rows merged into an equal document    455",
        "positives a query                      1.00  (at most 2)",
    ]


def test_rare_counts_appear_only_if_they_are_not_zero() -> None:
    labels = [row.label for row in list_funnel_rows(SUMMARY)]
    assert "curated negatives" in labels
    assert "positive in two splits" not in labels
    rows = list_funnel_rows(SUMMARY | {"documents_across_splits": 2, "paraphrases_across_splits": 3})
    assert {(row.label, row.count) for row in rows} >= {("positive in two splits", 2), ("restated in another split", 3)}
