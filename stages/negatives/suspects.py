"""The learned mask over whole tables: gathers what its model needs, learns from the table, and settles the budget."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages import contracts
from stages.contracts import FEATURES, Progress, Summary
from stages.draw import draw
from stages.negatives import budget, features, learned
from stages.negatives.features import GENERAL, Floats, Scene, Spread
from stages.negatives.known import Vectorise
from stages.retrieval.encode import Vectors
from stages.retrieval.lexical import Bm25

FIT_QUERIES = 2_000
"""Questions with several positives that the table's own model learns from, drawn by hash."""
PAIRED = 1_024
"""Documents drawn by hash whose pairs tell how alike any two are."""
STRANGE = 3.0
"""A feature whose mean lies so many of the prior's standard deviations off is out of what the prior has seen."""


class Suspects:
    """p_false_negative for the candidates of a search, and what may be emitted within a budget of false negatives."""

    def __init__(
        self,
        inputs: Mapping[str, Path],
        vectors: Vectors,
        vectorise: Vectorise,
        progress: Progress,
        without: str | None = None,
    ) -> None:
        self._candidates = contracts.scan_table(inputs["candidates"], contracts.CANDIDATES)
        queries = contracts.read_table(inputs["queries"], contracts.QUERIES, ["query_id", "query", "split"])
        judged = contracts.read_table(inputs["judged"], contracts.JUDGED)
        self._anchors = judged.filter(pl.col("relevance") > 0).drop("relevance").sort("query_id", "doc_id")
        self._train = queries.filter(pl.col("split") == "train").select("query_id")
        self._curated = judged.filter(pl.col("relevance") == 0).group_by("query_id").agg(curated=pl.len())
        self._scene = scene(inputs["corpus"], queries, vectors, vectorise, self._anchors)
        self.estimator, hidden, again = self._learn(learned.read_prior(without))
        self._shown = hidden, again
        self.unfit = self._unfit()
        own = self.estimator.share
        self.summary: Summary = {
            "source": "prior and own" if own else "prior",
            "own_share": round(own, 3),
            "own_found": self.estimator.found,
            "own_queries": hidden["query_id"].n_unique(),
            "unfit": self.unfit,
        }
        known = f"{hidden['query_id'].n_unique():,} questions with several positives"
        progress.say(
            f"learned mask: this table's {known} taught it ({self.estimator.found:,} hidden positives found again)"
            if own
            else f"learned mask: too little to learn from in this table ({known}): the shipped prior alone"
        )

    def settled(
        self, blocks: Iterable[pl.DataFrame], room: int, share: float, scratch: Path
    ) -> tuple[Iterator[pl.DataFrame], Summary]:
        """The blocks with p_false_negative, its features, threshold and `rule`; and what the budget comes to.

        `blocks` are of `mask.flagged`; they are held in `scratch` until the price is known, which all have a say in.
        """
        total, paths = budget.NOTHING, []
        for number, rows in enumerate(blocks):
            rows = self._judged(rows)
            lists, _ = self._lists(rows, room)
            train = rows["query_id"].unique(maintain_order=True).is_in(self._train["query_id"].implode()).to_numpy()
            if train.any():
                total += budget.tried(budget.Lists(*(part[train] for part in vars(lists).values())))
            paths.append(scratch / f"suspects-{number}.arrow")
            rows.write_ipc(paths[-1])
        limit = budget.settle(total, share)

        def priced() -> Iterator[pl.DataFrame]:
            for path in paths:
                rows = pl.read_ipc(path)
                lists, at = self._lists(rows, room)
                threshold = pl.Series("threshold", budget.allowed(lists, limit, share)[at])
                yield rows.with_columns(threshold).with_columns(
                    threshold=pl.when(pl.col("p_false_negative").is_not_null()).then(pl.col("threshold")),
                    rule=(pl.col("p_false_negative") > pl.col("threshold")).fill_null(False),
                )

        return priced(), {
            "expected": round(limit.expected, 5),
            "price": limit.price,
            "ceiling": round(limit.ceiling, 5),
            "check": self._check(room, share),
        }

    def candidates_of(self, queries: pl.DataFrame) -> tuple[pl.DataFrame, Floats]:
        """The candidates of some queries (query_id) without their known positives, in order, and their features."""
        anchors = self._anchors.join(queries.select("query_id").unique(), on="query_id", how="semi")
        rows = self._rows(anchors)
        return rows, features.of_rows(rows, anchors, self._scene)

    def _learn(self, prior: learned.Model) -> tuple[learned.Estimator, pl.DataFrame, Floats]:
        """The estimator; the rows it was taught with (query_id, doc_id, score, hidden), and their features."""
        several = self._anchors.filter(pl.len().over("query_id") > 1)
        drawn = sorted(several["query_id"].unique().to_list(), key=lambda query: (draw(0, "fit", query), query))
        some = several.filter(pl.col("query_id").is_in(drawn[:FIT_QUERIES]))
        positives = learned.hide(some, 0, "fit")
        kept, hidden = (positives.filter(side) for side in (~pl.col("hidden"), pl.col("hidden")))
        rows = self._rows(kept)
        rows = rows.join(
            hidden.select("query_id", "doc_id", "hidden"), on=["query_id", "doc_id"], how="left", maintain_order="left"
        ).with_columns(pl.col("hidden").fill_null(False))
        found = features.of_rows(rows, kept, self._scene)
        return learned.fit_own(found, rows["hidden"].to_numpy(), rows["query_id"].to_list(), prior), rows, found

    def _rows(self, anchors: pl.DataFrame) -> pl.DataFrame:
        """The candidates of the anchors' queries without the anchors, as `features.of_rows` takes them."""
        wanted = anchors.select("query_id").unique().lazy()
        found = self._candidates.filter(pl.col("source") == "dense").join(wanted, on="query_id", how="semi").collect()
        return ordered(found.join(anchors, on=["query_id", "doc_id"], how="anti"))

    def _judged(self, rows: pl.DataFrame) -> pl.DataFrame:
        """A block in the order of its lists, with p_false_negative and features where a candidate has them."""
        asked = ordered(
            rows.filter(pl.col("own").is_null() & (pl.col("source") == "dense")).join(
                self._anchors.select("query_id").unique(), on="query_id", how="semi"
            )
        ).select("query_id", "doc_id", "score")
        found = features.of_rows(asked, self._anchors, self._scene)
        p = self.estimator.probability(found, asked["query_id"].to_list())
        figures = pl.DataFrame(found, schema=dict.fromkeys(FEATURES, pl.Float32), orient="row")
        told = asked.drop("score").hstack(figures).with_columns(p_false_negative=pl.Series(p, dtype=pl.Float32))
        return ordered(rows.join(told, on=["query_id", "doc_id"], how="left"))

    def _lists(self, rows: pl.DataFrame, room: int) -> tuple[budget.Lists, tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """The rows of `_judged` as lists of what is open to the model's verdict."""
        queries = rows.select(pl.col("query_id").unique(maintain_order=True)).join(
            self._curated, on="query_id", how="left", maintain_order="left"
        )
        wanted = (room - queries["curated"].fill_null(0).cast(pl.Int64)).clip(lower_bound=0).to_numpy()
        shut = pl.any_horizontal(
            pl.col("own").is_not_null(), *(pl.col(flag).fill_null(False) for flag in ("same_text", "curated")),
            *(pl.col(flag).fill_null(False) for flag in ("contains_answer", "near_duplicate")),
        )  # fmt: skip
        open_ = rows.select(pl.col("p_false_negative").is_not_null() & ~shut).to_series().to_numpy()
        return budget.padded(
            rows["query_id"].rle_id().cast(pl.Int64).to_numpy(),
            rows["score"].to_numpy(),
            rows["p_false_negative"].fill_null(1.0).to_numpy(),
            open_,
            wanted,
        )

    def _check(self, room: int, share: float) -> Summary | None:
        """What the same budget gives on the questions whose positives were hidden, judged by folds that did not see
        them: the expected share, and the observed one with a hidden positive counted `learned.WEIGHT` times."""
        rows, found = self._shown
        if not self.estimator.own:
            return None
        p = self.estimator.probability(found, rows["query_id"].to_list())
        query = rows["query_id"].rle_id().cast(pl.Int64).to_numpy()
        wanted = np.full(rows["query_id"].n_unique(), room)
        lists, at = budget.padded(query, rows["score"].to_numpy(), p, np.ones(len(p), np.bool_), wanted)
        limit = budget.settle(budget.tried(lists), share)
        chosen = budget.choose(lists, limit.price)[at] & (p <= limit.ceiling)
        false = int((chosen & rows["hidden"].to_numpy()).sum())
        n = int(chosen.sum())
        observed = learned.WEIGHT * false / max(n + (learned.WEIGHT - 1) * false, 1)
        return {"negatives": n, "hidden": false, "expected": round(limit.expected, 5), "observed": round(observed, 5)}

    def _unfit(self) -> str | None:
        """Why no model can be trusted here, in words; None where one can."""
        if self._anchors.is_empty():
            return "no question has a positive"
        if self.estimator.own:
            return None
        some = sorted(self._anchors["query_id"].unique().to_list(), key=lambda query: (draw(0, "look", query), query))
        _, table = self.candidates_of(pl.DataFrame({"query_id": some[:200]}))
        found = table[:, : len(GENERAL)]
        if not len(found):
            return "there is no candidate beside the positives"
        prior = self.estimator.prior
        off = np.abs(found.mean(axis=0) - np.array(prior.mean)) / np.array(prior.scale)
        if off.max() > STRANGE:
            name = GENERAL[int(off.argmax())]
            return f"{name} lies {off.max():.1f} standard deviations off what the prior was fitted on"
        return None


def scene(corpus: Path, queries: pl.DataFrame, vectors: Vectors, vectorise: Vectorise, anchors: pl.DataFrame) -> Scene:
    """What the features need of a whole collection: `queries` (query_id, query), `anchors` (query_id, doc_id)."""
    places = queries.select("query_id").with_row_index("query").select("query_id", pl.col("query").cast(pl.Int64))
    documents = contracts.scan_documents(corpus).collect()
    doc_ids = documents.select("doc_id").with_row_index("document").select("doc_id", pl.col("document").cast(pl.Int64))
    hashes = vectors.query_hashes(queries)
    owners = (
        anchors.join(places, on="query_id")
        .select("doc_id", "query_id", owner="query")
        .sort("doc_id", "query_id")
        .group_by("doc_id", maintain_order=True)
        .head(features.OWNERS)
        .drop("query_id")
    )
    asked = [places["query"].to_list()[i] for i in _drawn(places["query_id"].to_list(), features.PROBES, "probe")]
    pairs = doc_ids[_drawn(doc_ids["doc_id"].to_list(), PAIRED, "pair")].select("doc_id")
    probes = vectors.read(hashes[asked])
    return Scene(
        places,
        doc_ids,
        lambda rows: vectors.read(hashes[rows]),
        vectorise,
        Bm25(queries["query"].to_list(), documents["text"]),
        owners,
        probes,
        Spread.of(vectorise(pairs)),
        Spread.of(probes),
    )


def ordered(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows as lists: by query, best score first, equal ones by doc_id."""
    return rows.sort("query_id", "score", "doc_id", descending=[False, True, False])


def _drawn(ids: list[str], size: int, purpose: str) -> list[int]:
    """The places of `size` ids, drawn by hash, in the order of the draw."""
    return sorted(range(len(ids)), key=lambda i: (draw(0, purpose, ids[i]), ids[i]))[:size]
