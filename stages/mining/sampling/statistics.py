"""What compose counts while blocks go by, and its summary."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl

from stages.core.schemas import Summary
from stages.mining.sampling.sampler import Block


@dataclass
class Tally:
    """What the blocks add up to."""

    asked: int
    """Negatives wanted of each query."""
    n: Counter[str] = field(default_factory=Counter)
    bands: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    hardness: float | None = None
    false: float | None = None
    """Expected false negatives."""
    doubted: Counter[str] = field(default_factory=Counter)

    def add(self, block: Block) -> None:
        """Count a block."""
        asked, positives, chosen, thinned, doubted = block
        sizes = chosen.group_by("query_id").len()["len"]
        self.n.update(
            train=len(asked),
            with_positive=positives["query_id"].n_unique(),
            written=len(sizes),
            lines=chosen.select("query_id", "line").n_unique() if len(chosen) else 0,
            negatives=len(chosen),
            positives=positives.join(chosen, on="query_id", how="semi").height,
            short=int((sizes < self.asked).sum()),
            thinned=thinned,
            emptied=doubted.join(positives, on="query_id", how="anti")["query_id"].n_unique(),
        )
        self.doubted.update(dict(doubted.group_by("finding").len().iter_rows()))
        self.bands.update(dict(chosen.group_by("band").len().iter_rows()))
        if "source" in chosen.columns:
            self.sources.update(dict(chosen.group_by("source").len().iter_rows()))
            self.hardness = (self.hardness or 0.0) + float(chosen["score"].cast(pl.Float64).sum())
            p = chosen.filter(~pl.col("curated"))["p_false_negative"].cast(pl.Float64)
            if p.is_not_null().any():
                self.false = (self.false or 0.0) + float(p.sum())
        if "categorised" in chosen.columns:
            self.n["without_category"] += positives.filter(~pl.col("categorised"))["query_id"].n_unique()
            self.n["own_category"] += chosen.filter("categorised", ~pl.col("foreign")).height
            self.n["other_category"] += chosen.filter("categorised", "foreign").height
        if "weight" in chosen.columns:
            self.n["weighted"] += chosen.filter(pl.col("weight") < 1).height


def summarise(
    tally: Tally, by_category: bool, drop_positives: Sequence[str] = (), positive_weight: float = 0.0
) -> Summary:
    """The block counts as the stage's summary.

    `fill` is the share of the asked-for negatives that was found, over all train queries with a positive; `hardness`
    the mean retriever score of the negatives written, `false_negatives` the expected share of false ones among them (a
    curated one is none); None where there is nothing to take a mean of. `thinned` counts near-duplicates that were
    passed over, `weighted` negatives with a weight below 1, `dropped` or, with a `positive_weight`,
    `weighted_positives` positives by the findings of `drop_positives`.
    """
    doubted = {name: tally.doubted[name] for name in drop_positives} or None
    n, written, negatives = tally.n, tally.n["written"], tally.n["negatives"]
    wanted = tally.asked * n["with_positive"]
    category = {name: n[f"{name}_category"] for name in ("own", "other")}
    return {
        "queries": written,
        "lines": n["lines"],
        "positives": n["positives"],
        "negatives": negatives,
        "asked": tally.asked,
        "negatives_per_query": round(negatives / written, 4) if written else None,
        "fill": round(negatives / wanted, 4) if wanted else None,
        "short": n["short"],
        "bands": dict(sorted(tally.bands.items())),
        "sources": dict(sorted(tally.sources.items())),
        "hardness": round(tally.hardness / negatives, 4) if negatives and tally.hardness is not None else None,
        "false_negatives": round(tally.false / negatives, 5) if negatives and tally.false is not None else None,
        "thinned": n["thinned"],
        "category": category | {"queries_without": n["without_category"]} if by_category else None,
        "weighted": n["weighted"],
        "dropped": None if positive_weight else doubted,
        "weighted_positives": doubted if positive_weight else None,
        "left_out": {
            "no positive": n["train"] - n["with_positive"] - n["emptied"],
            "no negatives": n["with_positive"] - written,
        }
        | ({"all positives dropped": n["emptied"]} if drop_positives and not positive_weight else {}),
    }
