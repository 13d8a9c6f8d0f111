"""The counts of the sample step, and its summary."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl

from stages.core.context import Summary
from stages.mining.sampling.params import SampledBlock


@dataclass
class SamplingStats:
    """Sums over all blocks."""

    n_requested: int
    """Negatives that each query needs."""
    counts: Counter[str] = field(default_factory=Counter)
    n_by_stratum: Counter[str] = field(default_factory=Counter)
    n_by_source: Counter[str] = field(default_factory=Counter)
    score_sum: float | None = None
    expected_false_negatives: float | None = None
    n_flagged_by_finding: Counter[str] = field(default_factory=Counter)

    def add(self, block: SampledBlock) -> None:
        """Add the counts of a block."""
        queries, positives, negatives, n_duplicates_skipped, flagged_positives = block
        sizes = negatives.group_by("query_id").len()["len"]
        self.counts.update(
            train=len(queries),
            with_positive=positives["query_id"].n_unique(),
            written=len(sizes),
            negatives=len(negatives),
            positives=positives.join(negatives, on="query_id", how="semi").height,
            n_underfilled=int((sizes < self.n_requested).sum()),
            n_duplicates_skipped=n_duplicates_skipped,
            emptied=flagged_positives.join(positives, on="query_id", how="anti")["query_id"].n_unique(),
        )
        self.n_flagged_by_finding.update(dict(flagged_positives.group_by("finding").len().iter_rows()))
        self.n_by_stratum.update(dict(negatives.group_by("stratum").len().iter_rows()))
        if "source" in negatives.columns:
            self.n_by_source.update(dict(negatives.group_by("source").len().iter_rows()))
            self.score_sum = (self.score_sum or 0.0) + float(negatives["score"].cast(pl.Float64).sum())
            p = negatives.filter(~pl.col("curated_negative"))["p_false_negative"].cast(pl.Float64)
            if p.is_not_null().any():
                self.expected_false_negatives = (self.expected_false_negatives or 0.0) + float(p.sum())
        if "has_category" in negatives.columns:
            self.counts["without_category"] += positives.filter(~pl.col("has_category"))["query_id"].n_unique()
            self.counts["same_category"] += negatives.filter("has_category", ~pl.col("other_category")).height
            self.counts["other_category"] += negatives.filter("has_category", "other_category").height
        if "weight" in negatives.columns:
            self.counts["weighted"] += negatives.filter(pl.col("weight") < 1).height


def summarise_sampling(
    stats: SamplingStats, by_category: bool, drop_positives: Sequence[str] = (), positive_weight: float = 0.0
) -> Summary:
    """The summary of the sample step.

    - fill_rate: the share of the requested negatives that was found, over all train queries with a positive.
    - hardness: the mean retriever score of the negatives.
    - expected_false_negative_rate: the expected share of false negatives. A curated negative is not one.
    - n_weighted_negatives: negatives with a weight below 1.
    - dropped_positives, or weighted_positives with a `positive_weight`: positives by the findings of `drop_positives`.

    A mean over nothing is None.
    """
    n_flagged = {name: stats.n_flagged_by_finding[name] for name in drop_positives} or None
    counts, written, negatives = stats.counts, stats.counts["written"], stats.counts["negatives"]
    n_needed = stats.n_requested * counts["with_positive"]
    category = {name: counts[f"{name}_category"] for name in ("same", "other")}
    return {
        "queries": written,
        "positives": counts["positives"],
        "negatives": negatives,
        "n_requested": stats.n_requested,
        "negatives_per_query": round(negatives / written, 4) if written else None,
        "fill_rate": round(negatives / n_needed, 4) if n_needed else None,
        "n_underfilled": counts["n_underfilled"],
        "by_stratum": dict(sorted(stats.n_by_stratum.items())),
        "by_source": dict(sorted(stats.n_by_source.items())),
        "hardness": round(stats.score_sum / negatives, 4) if negatives and stats.score_sum is not None else None,
        "expected_false_negative_rate": round(stats.expected_false_negatives / negatives, 5)
        if negatives and stats.expected_false_negatives is not None
        else None,
        "n_duplicates_skipped": counts["n_duplicates_skipped"],
        "category": category | {"queries_without_category": counts["without_category"]} if by_category else None,
        "n_weighted_negatives": counts["weighted"],
        "dropped_positives": None if positive_weight else n_flagged,
        "weighted_positives": n_flagged if positive_weight else None,
        "skipped_queries": {
            "no_positive": counts["train"] - counts["with_positive"] - counts["emptied"],
            "no_negatives": counts["with_positive"] - written,
        }
        | ({"all_positives_dropped": counts["emptied"]} if drop_positives and not positive_weight else {}),
    }
