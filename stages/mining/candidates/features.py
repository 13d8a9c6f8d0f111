"""Features: what tells a false negative from a hard negative, beyond its score. One row of figures a candidate.

All are free of the retriever's scale: scores are measured in the spread of the query's own candidates, similarities of
documents in the spread over random pairs. A candidate is compared with the query's anchors, which are those of its
positives that are taken as known.

| feature | what it says of a candidate |
|---|---|
| z | its score, in standard deviations from the mean of the query's candidates |
| below_best, below_worst | its score minus the best and the worst anchor's, in the same unit |
| log_rank | log of its place among the candidates |
| like_best, like_mean | its highest and mean cosine with the anchors: the strongest sign of all |
| like_top | its mean cosine with the query's ten best candidates |
| lexical | its BM25 score, as a share of the highest in the list |
| lexical_below | its BM25 score minus the best anchor's, in the same unit |
| hub, hub_below | its score in the spread of its scores for random queries; that minus the best anchor's |
| stands_out | how far the best anchor stands above the candidates: a query that the retriever understands |
| log_anchors | log of the number of anchors |
| owner_like | the nearest other question whose positive it is: their cosine, in the spread over random pairs |
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.core.arrays import Runs
from stages.core.schemas import FEATURES
from stages.mining.candidates.document_score_stats import Usual
from stages.mining.candidates.documents import Held, places
from stages.retrieval.bm25 import Bm25
from stages.retrieval.exact.scoring import highest_at, lengths

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

GENERAL = FEATURES[:-1]
"""Those that mean the same on any data set. `owner_like` hangs on how a table was made: only that can teach it."""

MEANS = {
    "z": "how far a candidate's score lies from the usual one of its question",
    "below_best": "how far candidates score below the best positive",
    "below_worst": "how far candidates score below the lowest positive",
    "log_rank": "how many candidates a question has",
    "like_best": "how alike candidates and the nearest positive are",
    "like_mean": "how alike candidates and positives are",
    "like_top": "how alike the candidates of a question are",
    "lexical": "how many words candidates share with the question",
    "lexical_below": "how many fewer words than the positive candidates share with the question",
    "hub": "how high candidates score for any question",
    "hub_below": "how much higher than the positive candidates score for any question",
    "stands_out": "how far the best positive scores above the candidates",
    "log_anchors": "how many positives a question has",
}
"""What the features GENERAL say, for a person: "this table is unusual in ..."."""

TOP = 10
PROBES = 256
"""Queries, drawn by hash, that tell how high any query scores a document."""
OWNERS = 32
"""Questions looked at of those that a candidate is a positive of."""
FAR = 30.0
"""No feature goes farther: where a query's candidates all score the same, any distance is endless in their unit."""
_TINY = 1e-6
_PAIRS = 32_768
"""Pairs of questions compared at once; twice so many vectors are held where all are distinct."""
_MORE = 32 * _PAIRS
"""Pairs compared at once where so few questions are distinct that no more vectors are held."""


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of cosines over random pairs."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, vectors: Floats) -> "Spread":
        """Over all pairs of some random vectors [n, d]; 0 and 1 where there are fewer than three."""
        if len(vectors) < 3:
            return cls(0.0, 1.0)
        unit = scaled(vectors).astype(np.float64)
        cosines = (unit @ unit.T)[np.triu_indices(len(unit), 1)]
        return cls(float(cosines.mean()), max(float(cosines.std()), _TINY))

    def __call__(self, cosines: Floats) -> Floats:
        """Cosines in this unit."""
        return ((cosines - self.mean) / self.deviation).astype(np.float32)


@dataclass(frozen=True)
class Scene:
    """What the features need of the whole collection."""

    query_ids: pl.DataFrame
    """query_id and query (its place in what `queries` and `lexical` take)."""
    doc_ids: pl.Series
    """The ids of all documents, sorted; where one stands is its place in `lexical`."""
    queries: Callable[[Ints], Floats]
    """Query vectors [n, d] by place."""
    lexical: Bm25
    owners: "Owners"
    usual: Usual
    """Of PROBES queries."""
    document_spread: Spread
    query_spread: Spread


def of_rows(rows: pl.DataFrame, anchors: pl.DataFrame, documents: Held, scene: Scene) -> Floats:
    """Features [len(rows), len(FEATURES)] of some queries' candidates.

    `rows` (query_id, doc_id, score, listed) are sorted by query, best score first, without the anchors; `listed` marks
    those that the first encoder ranked, which alone tell what is usual; `anchors` (query_id, doc_id, score) hold at
    least one for each of these queries, and `documents` at least their documents.
    """
    if rows.is_empty():
        return np.zeros((0, len(FEATURES)), np.float32)
    anchors = anchors.join(rows.select("query_id").unique(), on="query_id", how="semi").sort("query_id", "doc_id")
    number = places(documents.ids, scene.doc_ids)
    level, width = scene.usual(number, documents.vectors)
    rows, anchors = (
        side.join(scene.query_ids, on="query_id", how="left", maintain_order="left").with_columns(
            place=(place := documents.places(side["doc_id"])), document=number[place]
        )
        for side in (rows, anchors)
    )
    candidate, anchor = (_side(side, level, width, scene) for side in (rows, anchors))
    first, of = (side["query"].to_numpy()[one.runs.starts] for side, one in ((rows, candidate), (anchors, anchor)))
    if first.tolist() != of.tolist():
        raise ValueError("rows do not come by query_id, or a query has no anchor")
    usual = usual_ones(rows["listed"].to_numpy(), candidate.runs)
    like = likenesses(scaled(documents.vectors), candidate, anchor, usual, scene.document_spread)
    owner_like = of_owners(rows["query"].to_numpy(), rows["document"].to_numpy(), scene)
    return np.concatenate([of_lists(candidate, anchor, like, usual), owner_like[:, None]], axis=1)


class Owners(NamedTuple):
    """Of every document the questions that it is a positive of, one document's after another's."""

    starts: Ints
    """[documents + 1]: where each document's begin; where all end."""
    owner: Ints
    """Places of questions."""

    @classmethod
    def of(cls, document: Ints, owner: Ints, documents: int) -> Self:
        """From pairs [n] that come by document, of so many documents."""
        return cls(np.searchsorted(document, np.arange(documents + 1)), owner)


class Side(NamedTuple):
    """The candidates or the anchors of some queries, n rows that come by query; the others of a query in like order."""

    runs: Runs
    place: Ints
    """Where a row's document stands among the vectors at hand: [n], as all others."""
    score: Floats
    lexical: Floats
    hub: Floats


class Like(NamedTuple):
    """How alike candidates and others are, [n] each, in the spread over random pairs."""

    best: Floats
    """To the nearest anchor."""
    mean: Floats
    """To the anchors in the mean."""
    top: Floats
    """To the TOP best of `usual_ones` in the mean, without the candidate itself; 0 where there is no other."""


def _side(rows: pl.DataFrame, level: Floats, width: Floats, scene: Scene) -> Side:
    """Of rows (query, document, place, score); `level` and `width` [documents] are of `Usual`."""
    query, document, place = (rows[name].cast(pl.Int64).to_numpy() for name in ("query", "document", "place"))
    score = rows["score"].cast(pl.Float32).to_numpy()
    lexical = scene.lexical.scores(query, document)
    return Side(Runs.by(query), place, score, lexical, (score - level[place]) / width[place])


def likenesses(unit: Floats, candidate: Side, anchor: Side, usual: Bools, spread: Spread) -> Like:
    """From `unit` [documents, d], vectors of length 1; both sides have the same queries, in the same order.

    A mean of cosines is the cosine with a mean: for each candidate there is one product for each anchor and one more.
    """
    runs = candidate.runs
    rank = np.cumsum(usual)
    top = usual & (rank - (rank - usual)[runs.starts][runs.of] <= TOP)
    others = runs.total(top)[runs.of] - top
    best, mean, summed = (np.empty(len(usual), np.float32) for _ in Like._fields)
    ends = zip(
        runs.starts, [*runs.starts[1:], len(usual)], anchor.runs.starts, [*anchor.runs.starts[1:], None], strict=True
    )
    room = np.empty((int(runs.sizes.max()), unit.shape[1]), np.float32)
    for start, end, first, last in ends:
        here = np.take(unit, candidate.place[start:end], axis=0, out=room[: end - start], mode="clip")
        ahead = here[np.flatnonzero(top[start:end])].sum(axis=0, keepdims=True)
        cosines = here @ np.concatenate([unit[anchor.place[first:last]], ahead]).T
        best[start:end], mean[start:end] = cosines[:, :-1].max(axis=1), cosines[:, :-1].mean(axis=1)
        summed[start:end] = cosines[:, -1]
    itself = np.square(lengths(unit)).astype(np.float32)[candidate.place]
    near = ((summed - top * itself) / np.maximum(others, 1)).astype(np.float32)
    return Like(spread(best), spread(mean), np.where(others > 0, spread(near), np.float32(0)))


def of_lists(candidate: Side, anchor: Side, like: Like, usual: Bools) -> Floats:
    """The features GENERAL [n, 13] of some queries' candidates, best score first.

    Both sides have the same queries, in the same order; `usual` [n] is of `usual_ones`.
    """
    runs, of, score = candidate.runs, candidate.runs.of, candidate.score.astype(np.float64)
    count = runs.total(usual)
    mean = runs.total(np.where(usual, score, 0)) / count
    deviation = np.sqrt(runs.total(np.where(usual, np.square(score - mean[of]), 0)) / count)
    deviation = np.maximum(deviation, _TINY * np.maximum(runs.highest(np.abs(candidate.score)), 1.0))
    best, worst = anchor.runs.highest(anchor.score), -anchor.runs.highest(-anchor.score)
    words, hub = anchor.runs.highest(anchor.lexical), anchor.runs.highest(anchor.hub)
    ceiling = np.maximum(np.maximum(runs.highest(np.where(usual, candidate.lexical, 0)), words), _TINY)
    columns = (
        (score - mean[of]) / deviation[of],
        (score - best[of]) / deviation[of],
        (score - worst[of]) / deviation[of],
        np.log(np.arange(1, len(of) + 1) - runs.starts[of]),
        like.best,
        like.mean,
        like.top,
        candidate.lexical / ceiling[of],
        (candidate.lexical - words[of]) / ceiling[of],
        candidate.hub,
        candidate.hub - hub[of],
        ((best - mean) / deviation)[of],
        np.log(anchor.runs.sizes)[of],
    )
    out = np.empty((len(of), len(columns)), np.float32)
    for place, column in enumerate(columns):
        out[:, place] = np.clip(column, -FAR, FAR)
    return out


def usual_ones(listed: Bools, runs: Runs) -> Bools:
    """Which candidates [n] tell what is usual for their query: the listed ones; all where none is."""
    usual: Bools = listed | (runs.total(listed) == 0)[runs.of]
    return usual


def of_owners(query: Ints, document: Ints, scene: Scene) -> Floats:
    """owner_like [n] of rows with these queries and documents [n], by their places in the scene: 0 where no other
    question owns the document, or one from far away."""
    owned = scene.owners.starts[document + 1] - scene.owners.starts[document]
    row = np.repeat(np.arange(len(query)), owned)
    owner = scene.owners.owner[
        np.arange(len(row)) + np.repeat(scene.owners.starts[document + 1] - np.cumsum(owned), owned)
    ]
    others = owner != query[row]
    row, owner = row[others], owner[others]
    out = np.zeros(len(query), np.float32)
    many = len(np.unique(query[row])) + len(np.unique(owner)) > 2 * _PAIRS
    size = _PAIRS if many else _MORE
    for start in range(0, len(row), size):
        part = slice(start, start + size)
        asked, left = np.unique(query[row[part]], return_inverse=True)
        owners, right = np.unique(owner[part], return_inverse=True)
        vectors = scaled(scene.queries(asked)), scaled(scene.queries(owners))
        cosines = highest_at(*vectors, left, right, row[part])
        rows = row[part][Runs.by(row[part]).starts]
        out[rows] = np.maximum(out[rows], scene.query_spread(cosines))
    return out


def scaled(vectors: Floats) -> Floats:
    """Rows scaled to length 1; a zero row stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Floats = (vectors / np.maximum(lengths, np.float32(1e-12))).astype(np.float32)
    return unit
