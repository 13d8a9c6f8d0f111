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

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.contracts import FEATURES
from stages.negatives.documents import places
from stages.negatives.known import Vectorise
from stages.retrieval.lexical import Bm25
from stages.retrieval.scores import highest_at

Floats = NDArray[np.float32]

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
_AT_ONCE = 8_192
_BITS = 18


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
    queries: Callable[[NDArray[np.int64]], Floats]
    """Query vectors [n, d] by place."""
    documents: Vectorise
    lexical: Bm25
    owners: pl.DataFrame
    """doc_id, owner: the place of each question that the document is a positive of."""
    probes: Floats
    """Vectors of PROBES queries."""
    document_spread: Spread
    query_spread: Spread


def of_rows(rows: pl.DataFrame, anchors: pl.DataFrame, scene: Scene) -> Floats:
    """Features [len(rows), len(FEATURES)] of some queries' candidates.

    `rows` (query_id, doc_id, score, listed) are sorted by query, best score first, without the anchors; `listed` marks
    those that the first encoder ranked, which alone tell what is usual; `anchors` (query_id, doc_id, score) hold at
    least one for each of these queries.
    """
    out = np.zeros((len(rows), len(FEATURES)), np.float32)
    if rows.is_empty():
        return out
    listed = rows["listed"].to_numpy()
    anchors = anchors.join(rows.select("query_id").unique(), on="query_id", how="semi").sort("query_id", "doc_id")
    known = pl.concat([rows["doc_id"], anchors["doc_id"]]).unique().sort().to_frame()
    vectors = scene.documents(known).astype(np.float32, copy=False)
    level, width = usual_scores(vectors, scene.probes)
    unit = scaled(vectors)
    known = known.with_row_index("place").with_columns(document=places(known["doc_id"], scene.doc_ids))
    rows, anchors = (
        side.select("query_id", "doc_id", "score")
        .join(scene.query_ids, on="query_id", how="left", maintain_order="left")
        .join(known, on="doc_id", how="left", maintain_order="left")
        for side in (rows, anchors)
    )
    at, anchor_at = (side["place"].to_numpy() for side in (rows, anchors))
    score, anchor_score = (side["score"].to_numpy().astype(np.float32) for side in (rows, anchors))
    lexical, anchor_lexical = (
        scene.lexical.scores(side["query"].to_numpy(), side["document"].to_numpy()) for side in (rows, anchors)
    )
    hub, anchor_hub = (score - level[at]) / width[at], (anchor_score - level[anchor_at]) / width[anchor_at]
    anchors_of = dict(_parts(anchors["query"].to_numpy()))
    for query, part in _parts(rows["query"].to_numpy()):
        own = anchors_of[query]
        here, theirs = unit[at[part]], unit[anchor_at[own]]
        out[part, : len(GENERAL)] = of_query(
            score[part],
            anchor_score[own],
            scene.document_spread(here @ theirs.T),
            scene.document_spread(here @ here[usual_ones(listed[part])[:TOP]].T),
            lexical[part],
            anchor_lexical[own],
            hub[part],
            anchor_hub[own],
            listed[part],
        )
    out[:, -1] = of_owners(rows, scene)
    return out


def of_query(
    score: Floats,
    anchor_score: Floats,
    like: Floats,
    like_top: Floats,
    lexical: Floats,
    anchor_lexical: Floats,
    hub: Floats,
    anchor_hub: Floats,
    listed: NDArray[np.bool_],
) -> Floats:
    """The features GENERAL [n, 13] of one query's n candidates, best score first, with m anchors.

    `like` [n, m] and `like_top` [n, TOP or fewer] are cosines in the spread over random pairs, the latter with the best
    of `usual_ones`; the others are [n] or [m]. A candidate's likeness to itself does not count.
    """
    n = len(score)
    usual = usual_ones(listed)
    mean, deviation = score[usual].mean(), max(float(score[usual].std()), _TINY * max(float(np.abs(score).max()), 1.0))
    best = anchor_score.max()
    top = np.array(like_top, np.float32)
    others = np.full(n, top.shape[1], np.float32)
    itself = usual[: top.shape[1]], np.arange(top.shape[1])
    others[itself[0]] -= 1
    top[itself] = 0
    ceiling = max(float(lexical[usual].max()), float(anchor_lexical.max()), _TINY)
    columns = (
        (score - mean) / deviation,
        (score - best) / deviation,
        (score - anchor_score.min()) / deviation,
        np.log(np.arange(1, n + 1)),
        like.max(axis=1),
        like.mean(axis=1),
        top.sum(axis=1) / np.maximum(others, 1),
        lexical / ceiling,
        (lexical - anchor_lexical.max()) / ceiling,
        hub,
        hub - anchor_hub.max(),
        np.full(n, (best - mean) / deviation),
        np.full(n, np.log(len(anchor_score))),
    )
    out: Floats = np.clip(np.stack(columns, axis=1), -FAR, FAR).astype(np.float32)
    return out


def usual_scores(vectors: Floats, probes: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each document's scores for the probes: [n] each.

    A product of matrices depends in its last bits on where a row stands; so these are taken in float64 and kept to
    _BITS, and a document's figures depend on nothing else that is asked.
    """
    level, width = np.empty(len(vectors), np.float32), np.empty(len(vectors), np.float32)
    asked = probes.T.astype(np.float64)
    for start in range(0, len(vectors), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        scores = vectors[part].astype(np.float64) @ asked
        level[part] = _kept(scores.mean(axis=1))
        width[part] = np.maximum(_kept(scores.std(axis=1)), _TINY)
    return level, width


def _kept(values: NDArray[np.float64]) -> NDArray[np.float64]:
    mantissa, exponent = np.frexp(values)
    kept: NDArray[np.float64] = np.ldexp(np.round(np.ldexp(mantissa, _BITS)), exponent - _BITS)
    return kept


def usual_ones(listed: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The places of a query's listed candidates, which tell what is usual for it; of all where none is listed."""
    found = np.flatnonzero(listed)
    return found if len(found) else np.arange(len(listed))


def of_owners(rows: pl.DataFrame, scene: Scene) -> Floats:
    """owner_like [n] of rows (query, doc_id): 0 where no other question owns the document, or one from far away."""
    pairs = (
        rows.with_row_index("row")
        .select("row", "query", "doc_id")
        .join(scene.owners, on="doc_id", maintain_order="left")
        .filter(pl.col("owner") != pl.col("query"))
    )
    out = np.zeros(len(rows), np.float32)
    if pairs.is_empty():
        return out
    sides = pairs["query"].unique(), pairs["owner"].unique()
    found = []
    for some in pairs.iter_slices(_MORE if sum(map(len, sides)) <= 2 * _PAIRS else _PAIRS):
        asked, query = np.unique(some["query"], return_inverse=True)
        owners, owner = np.unique(some["owner"], return_inverse=True)
        vectors = scaled(scene.queries(asked)), scaled(scene.queries(owners))
        cosines = highest_at(*vectors, query, owner, some["row"].cast(pl.Int64).to_numpy())
        found.append(pl.DataFrame({"row": some["row"].unique(maintain_order=True), "cosine": cosines}))
    nearest = pl.concat(found).group_by("row").agg(pl.col("cosine").max())
    out[nearest["row"].to_numpy()] = np.maximum(scene.query_spread(nearest["cosine"].to_numpy()), 0)
    return out


def scaled(vectors: Floats) -> Floats:
    """Rows scaled to length 1; a zero row stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Floats = (vectors / np.maximum(lengths, np.float32(1e-12))).astype(np.float32)
    return unit


def _parts(values: NDArray[np.int64]) -> list[tuple[int, slice]]:
    """The runs of equal values, as (value, where)."""
    starts = np.flatnonzero(np.diff(values, prepend=-1))
    return [
        (int(values[start]), slice(int(start), int(end)))
        for start, end in zip(starts, [*starts[1:], len(values)], strict=True)
    ]
