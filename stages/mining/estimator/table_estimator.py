"""Suspects: the estimate of false negatives over whole tables: gathers what its model needs, learns from the table."""

import heapq
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from stages.core import schemas
from stages.core.hashing import draw
from stages.core.query_batches import ordered
from stages.core.schemas import DENSE, FEATURES, Progress, Summary
from stages.core.text import loose, normalise
from stages.embedding.lookup import Vectors
from stages.mining.candidates import features
from stages.mining.candidates.document_score_stats import Usual
from stages.mining.candidates.documents import Held, Vectorise, document_texts, places
from stages.mining.candidates.features import GENERAL, MEANS, Floats, Owners, Scene, Spread
from stages.mining.estimator import model as learned
from stages.mining.estimator.holdout import hide_one
from stages.retrieval.bm25 import Bm25

PAIR = ["query_id", "doc_id"]
FIT_QUERIES = 1_000
"""Questions with several positives that the table's own model learns from, drawn by hash."""
PAIRED = 1_024
"""Documents drawn by hash whose pairs tell how alike any two are."""
OWN = 0.9
"""A table whose own model has so much of the say is not asked whether it is like those of the prior."""
STRANGE = 3.0
"""A feature whose mean lies so many of the prior's standard deviations off is out of what the prior has seen."""


class Suspects:
    """p_false_negative for the candidates of a search: what the table taught, beside what the prior knows.

    `positives` is what `known.united_positives` gives: those of restated questions are nobody's negatives, so there is
    nothing to learn from them.
    """

    def __init__(
        self,
        inputs: Mapping[str, Path],
        vectors: Vectors,
        vectorise: Vectorise,
        positives: pl.DataFrame,
        progress: Progress,
        without: str | None = None,
    ) -> None:
        self._candidates = schemas.scan_table(inputs["candidates"], schemas.CANDIDATES)
        queries = schemas.read_table(inputs["queries"], schemas.QUERIES, ["query_id", "query", "split"])
        judged = schemas.read_table(inputs["judged"], schemas.JUDGED)
        self._positives = positives
        self._vectorise = vectorise
        self._anchors = judged.filter(pl.col("relevance") > 0).drop("relevance").sort("query_id", "doc_id")
        forms = [loose(text) or normalise(text) for text in queries["query"]]
        self._forms = dict(zip(queries["query_id"], forms, strict=True))
        # dev and test teach nothing; nor does a question that is there twice: what is hidden of it, its other row owns
        alone = queries.with_columns(pl.Series("form", forms, dtype=pl.String)).filter(pl.len().over("form") == 1)
        train = queries.filter(pl.col("split") == "train").select("query_id")
        owners = self._anchors.join(train, on="query_id", how="semi", maintain_order="left")
        self._lessons = owners.join(alone, on="query_id", how="semi", maintain_order="left")
        self._scene = scene(inputs["corpus"], queries, vectors, vectorise, owners)
        self.estimator, self._shown, self._features = self._learn(learned.read_prior(without))
        self.unfit = self._unfit()
        own, several = self.estimator.share, self._shown["query_id"].n_unique()
        self.summary: Summary = {
            "source": "prior and own" if own else "prior",
            "own_share": round(own, 3),
            "own_found": self.estimator.found,
            "own_queries": several,
            "levels": self.estimator.levels,
            "unfit": self.unfit,
        }
        known = f"{several:,} questions with several positives"
        progress.say(
            f"estimate of false negatives: this table's {known} taught it ({self.estimator.found:,} hidden positives "
            "found again)"
            if own
            else f"estimate of false negatives: the shipped prior alone, {known} are too few to learn from"
        )

    def judged(self, rows: pl.DataFrame, documents: Held) -> pl.DataFrame:
        """`rows` (of `evidence.flagged`) with p_false_negative and its features where a candidate has them.

        `documents` are at least theirs and these queries' positives. A row has none where its query has no positive,
        where it is one itself, and where people judged it.
        """
        asked = ordered(
            rows.filter(pl.col("own").is_null() & pl.col("curated").is_null()).join(
                self._anchors.select("query_id").unique(), on="query_id", how="semi"
            )
        ).select("query_id", "doc_id", "score", listed=pl.col("source").str.split("+").list.contains(DENSE))
        found = features.of_rows(asked, self._anchors, documents, self._scene)
        p = self.probability(asked, found)
        figures = pl.DataFrame(found, schema=dict.fromkeys(FEATURES, pl.Float32), orient="row")
        told = (
            asked.drop("score", "listed").hstack(figures).with_columns(p_false_negative=pl.Series(p, dtype=pl.Float32))
        )
        return rows.join(told, on=["query_id", "doc_id"], how="left")

    def probability(self, rows: pl.DataFrame, found: Floats) -> Floats:
        """p_false_negative [n] of rows (query_id) with features [n, len(FEATURES)]."""
        queries = rows["query_id"].rle().struct.unnest()
        fold = learned.folds([self._forms[query_id] for query_id in queries["value"]])
        return self.estimator.probability(found, np.repeat(fold, queries["len"].to_numpy()))

    def candidates_of(self, queries: pl.DataFrame) -> tuple[pl.DataFrame, Floats]:
        """The candidates of some queries (query_id) without their known positives, in order, and their features."""
        anchors = self._anchors.join(queries.select("query_id").unique(), on="query_id", how="semi")
        rows = self._rows(anchors)
        return rows, self._of_rows(rows, anchors)

    def taught(self) -> pl.DataFrame:
        """The rows that the table's own model learned from, as TAUGHT; none where it did not."""
        if not self.estimator.own:
            return pl.DataFrame(pl.from_arrow(schemas.TAUGHT.empty_table()))
        p = self.probability(self._shown, self._features)
        return self._shown.with_columns(p_false_negative=pl.Series(p, dtype=pl.Float32)).drop("source", "listed")

    def about(self) -> Summary:
        """What the estimate hangs on, with the models as numbers that a person can read."""
        prior = self.estimator.prior
        models = {"prior, one positive": prior.one, "prior, several": prior.several}
        models |= {f"own, fold {fold}": model for fold, model in enumerate(self.estimator.own)}
        return self.summary | {"models": {name: learned.written(model) for name, model in models.items()}}

    def _learn(self, prior: learned.Prior) -> tuple[learned.Estimator, pl.DataFrame, Floats]:
        """The estimator; the rows it was taught with (TAUGHT without p), and their features."""
        several = self._lessons.filter(pl.len().over("query_id") > 1)
        drawn = sorted(several["query_id"].unique().to_list(), key=lambda query: (draw(0, "fit", query), query))
        some = several.filter(pl.col("query_id").is_in(drawn[:FIT_QUERIES]))
        turns = [self._turn(hide_one(some, turn), turn) for turn in range(learned.ROUNDS)]
        rows, found = pl.concat([rows for rows, _ in turns]), np.concatenate([found for _, found in turns])
        forms = [self._forms[query_id] for query_id in rows["query_id"]]
        weights = rows["weight"].to_numpy().astype(np.float64)
        return learned.fit_own(found, rows["hidden"].to_numpy(), weights, forms, prior), rows, found

    def _turn(self, positives: pl.DataFrame, turn: int) -> tuple[pl.DataFrame, Floats]:
        """Of `positives` (with hidden and weight) those that are hidden, among the other candidates of their questions:
        TAUGHT without p, and their features."""
        kept, hidden = (positives.filter(side) for side in (~pl.col("hidden"), pl.col("hidden")))
        ends = kept.group_by("query_id").agg(
            pl.col("weight").first(), lowest=pl.col("score").min(), best=pl.col("score").max()
        )
        rows = (
            self._rows(kept, hidden)
            .join(hidden.select("query_id", "doc_id", "hidden"), on=PAIR, how="left", maintain_order="left")
            .join(ends, on="query_id", how="left", maintain_order="left")
            .with_columns(pl.col("hidden").fill_null(False), turn=pl.lit(turn, pl.Int32))
        )
        return rows, self._of_rows(rows, kept)

    def _rows(self, anchors: pl.DataFrame, hidden: pl.DataFrame | None = None) -> pl.DataFrame:
        """The candidates of the anchors' queries as `features.of_rows` takes them, without positives but the hidden."""
        asked = anchors.select("query_id").unique().lazy()
        found = self._candidates.filter(pl.col("source") == DENSE).join(asked, on="query_id", how="semi").collect()
        left_out = self._positives if hidden is None else self._positives.join(hidden, on=PAIR, how="anti")
        return ordered(found.join(left_out, on=PAIR, how="anti")).with_columns(listed=pl.lit(True))

    def _of_rows(self, rows: pl.DataFrame, anchors: pl.DataFrame) -> Floats:
        documents = Held.of(pl.concat([rows["doc_id"], anchors["doc_id"]]), self._vectorise)
        return features.of_rows(rows, anchors, documents, self._scene)

    def _unfit(self) -> str | None:
        """Why no model can be trusted here, in words; None where one can."""
        if self._anchors.is_empty():
            return "no question has a positive"
        if self.estimator.share > OWN:
            return None
        some = sorted(self._anchors["query_id"].unique().to_list(), key=lambda query: (draw(0, "look", query), query))
        _, table = self.candidates_of(pl.DataFrame({"query_id": some[:200]}))
        if not len(table):
            return "there is no candidate beside the positives"
        off = self.estimator.prior.strange(table)
        if off.max() > STRANGE:
            what = MEANS[GENERAL[int(off.argmax())]]
            return (
                f"this table is unlike those that the shipped estimate learned from in {what} "
                f"({off.max():.1f} standard deviations off, {STRANGE:g} are trusted)"
            )
        return None


def scene(corpus: Path, queries: pl.DataFrame, vectors: Vectors, vectorise: Vectorise, anchors: pl.DataFrame) -> Scene:
    """What the features need of a whole collection: `queries` (query_id, query), `anchors` (query_id, doc_id) of those
    that count as owners."""
    numbers = queries.select("query_id").with_row_index("query").select("query_id", pl.col("query").cast(pl.Int64))
    doc_ids = schemas.read_table(corpus, schemas.CORPUS, ["doc_id"])["doc_id"]
    hashes = vectors.query_hashes(queries)
    owners = (
        anchors.join(numbers, on="query_id")
        .select("doc_id", "query_id", owner="query")
        .sort("doc_id", "query_id")
        .group_by("doc_id", maintain_order=True)
        .head(features.OWNERS)
    )
    asked = [numbers["query"].to_list()[i] for i in _drawn(numbers["query_id"].to_list(), features.PROBES, "probe")]
    pairs = doc_ids.gather(_drawn(doc_ids.to_list(), PAIRED, "pair")).to_frame()
    probes = vectors.read(hashes[asked])
    return Scene(
        numbers,
        doc_ids,
        lambda rows: vectors.read(hashes[rows]),
        Bm25(queries["query"].to_list(), (text for _, texts in document_texts(corpus) for text in texts)),
        Owners.of(places(owners["doc_id"], doc_ids), owners["owner"].to_numpy(), len(doc_ids)),
        Usual(len(doc_ids), probes),
        Spread.of(vectorise(pairs)),
        Spread.of(probes),
    )


def _drawn(ids: list[str], size: int, purpose: str) -> list[int]:
    """The places of `size` ids, drawn by hash, in the order of the draw."""
    return heapq.nsmallest(size, range(len(ids)), key=lambda i: (draw(0, purpose, ids[i]), ids[i]))
