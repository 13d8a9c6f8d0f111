"""Audit: positives that deserve a look, because the retriever, their negatives or a repeated question object to them.

| finding | a positive is listed where |
|---|---|
| buried | the retriever ranks it nowhere near the top and scores it like a random document, and it lacks the words |
| outscored | the query's hardest negatives are all ahead of it, by the retriever's score and by the question's words |
| contradicting | the same question has other positives, and none of them is like it |

No figure here proves a label wrong. Read by eye on medquad, covid_faq and bioasq, what is listed is of three kinds:
answers to something else (Lyme disease under Machado-Joseph disease), texts that tell nothing ("Topics", "see the
WHO"), and right answers that don't say what they are about (abbreviations, cut-out sections), which a title mends. The
words are looked at because a score alone lists what the encoder can't read: rare names, other languages.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from stages.core import schemas
from stages.core.hashing import draw
from stages.core.params import option
from stages.core.query_batches import of_block, query_blocks
from stages.core.schemas import DENSE
from stages.core.text import loose, normalise
from stages.mining.audit.term_overlap import Telling
from stages.mining.candidates.documents import Vectorise, document_vectors
from stages.mining.candidates.features import Spread
from stages.mining.sampling.quotas import found_by

BURIED, OUTSCORED, CONTRADICTING = FINDINGS = ("buried", "outscored", "contradicting")

CHANCE = 0.5
"""buried: a score less than so many standard deviations above a random document's; three in ten random ones reach it.
With LACKS it lists 0.15% of medquad, 2.9% of covid_faq (German, for an English encoder), none of stackfaq, and 32% of
policyqa, whose questions ask one thing of many companies' policies."""
LACKS = 0.3
"""buried, outscored: less than this share of the question's weight of words is held."""
UNLIKE = 1.0
"""contradicting: less than so many standard deviations more alike than two random documents."""
DOUBTFUL = 0.1
"""Where a greater share of the positives is listed, the retriever is to be doubted before the labels."""

ROWS_A_BLOCK = 1_000_000
"""Verdicts looked at together; bounds memory and changes no result."""
_PAIRS = 20_000
"""Pairs whose texts are held together."""
_POSITIVES = 20_000
"""Documents whose vectors are held together."""
_PAIRED = 1_024
"""Documents drawn by hash whose pairs tell how alike any two are."""

_PAIR = ["query_id", "doc_id"]
STANDING = {
    "query_id": pl.String, "doc_id": pl.String, "rank": pl.Int32, "score": pl.Float32, "best": pl.Float32,
    "above_chance": pl.Float64,
}  # fmt: skip
AHEAD = {"query_id": pl.String, "doc_id": pl.String, "against": pl.String}
_ALIKE = {"form": pl.String, "doc_id": pl.String, "against": pl.String, "similarity": pl.Float64}
FOUND = {
    "query_id": pl.String, "doc_id": pl.String, "finding": pl.String, "split": pl.String, "rank": pl.Int32,
    "score": pl.Float32, "best": pl.Float32, "above_chance": pl.Float64, "words": pl.Float64, "against": pl.String,
    "similarity": pl.Float64, "explanation": pl.String,
}  # fmt: skip
"""A finding. rank: null where the positive is not among the candidates. best: the query's best candidate's score.
above_chance: the score, in standard deviations above a random document's. words: the share of the question's words, by
weight, that it holds. against: the negative, or the other positive, that speaks against it; similarity: how like it
that one is, in standard deviations above two random documents."""


def rank_option() -> Any:
    """The parameter `audit_rank`: compose goes by it where it drops, and `prep audit` where it lists."""
    return option(
        100,
        "audit: a positive ranked beyond this (or beyond a quarter of a small corpus) is nowhere near the top.",
        unkeyed=True,
        ge=1,
    )


def find(
    inputs: Mapping[str, Path], vectors: Path, rank: int, negatives: int, findings: Collection[str] = FINDINGS
) -> tuple[pl.DataFrame, int]:
    """All `findings` as `FOUND`, by finding and worst first; and how many positives were looked at.

    What a person decided is no finding. `inputs` holds the files queries, corpus, decided, judged, verdicts and
    encoding; `vectors` is the root of the vector store; `rank` and `negatives` are audit_rank and negatives.
    """
    from stages.embedding.lookup import Vectors

    queries = schemas.read_table(inputs["queries"], schemas.QUERIES, ["query_id", "query", "split"])
    judged = schemas.scan_table(inputs["judged"], schemas.JUDGED)
    verdicts = schemas.scan_table(inputs["verdicts"], schemas.VERDICTS)
    verdicts = verdicts.select(*_PAIR, "source", "rank", "score", "verdict")
    documents = pq.read_metadata(inputs["corpus"]).num_rows
    total = pq.read_metadata(inputs["verdicts"]).num_rows
    told = Told(queries, schemas.scan_documents(inputs["corpus"]))
    stood, beaten = [pl.DataFrame(schema=STANDING)], [pl.DataFrame(schema=AHEAD)]
    for block in query_blocks(queries["query_id"].sort(), total, ROWS_A_BLOCK):
        rows = of_block(verdicts, block)
        stood.append(standing(of_block(judged, block), rows, documents))
        if OUTSCORED in findings:
            beaten.append(ahead(stood[-1], rows, negatives))
    positives, found = pl.concat(stood), []
    if BURIED in findings:
        found.append(buried(positives, min(rank, max(documents // 4, 1)), told))
    if OUTSCORED in findings:
        found.append(outscored(positives, pl.concat(beaten), told))
    if CONTRADICTING in findings:
        vectorise = document_vectors(inputs["corpus"], Vectors(inputs["encoding"], vectors))
        ids = schemas.read_table(inputs["corpus"], schemas.CORPUS, ["doc_id"])["doc_id"].to_list()
        drawn = sorted(ids, key=lambda doc_id: (draw(0, "pair", doc_id), doc_id))[:_PAIRED]
        random = Spread.of(vectorise(pl.DataFrame({"doc_id": drawn})))
        found.append(contradicting(positives, queries, vectorise, random))
    table = pl.concat([pl.DataFrame(schema=FOUND), *found], how="diagonal")
    decided = schemas.read_table(inputs["decided"], schemas.QRELS)
    table = table.join(decided, on=_PAIR, how="anti", maintain_order="left")
    of_split = queries.select("query_id", "split")
    table = table.select(list(FOUND)).drop("split").join(of_split, on="query_id", how="left", maintain_order="left")
    return table.select(list(FOUND)), len(positives)


def standing(judged: pl.DataFrame, candidates: pl.DataFrame, documents: int) -> pl.DataFrame:
    """Where each positive of some queries stands among their candidates: `STANDING`.

    `judged` and `candidates` (query_id, doc_id, source, rank, score) hold all rows of these queries; `documents` is the
    size of the corpus. The candidates are its best: the mean and the deviation of all documents' scores are estimated
    from theirs as those of a normal distribution cut off below (its upper tail of share n / documents), which is
    exact where the list holds the whole corpus. On 300 positives of medquad (200 of 15,809 documents) the estimate
    differed from 1,000 random documents' by 0.3 in the median of the lowest 15. Null where all scores are equal.
    """
    dense = candidates.filter(found_by(DENSE)).sort("query_id", "rank", "doc_id")
    lists = dense.group_by("query_id", maintain_order=True).agg(
        n=pl.len().cast(pl.Int64),
        best=pl.col("score").max(),
        mean=pl.col("score").cast(pl.Float64).mean(),
        deviation=pl.col("score").cast(pl.Float64).std(ddof=0),
    )
    tails = pl.DataFrame(
        [(n, *tail(n / documents)) for n in lists["n"].unique().sort()],
        schema={"n": pl.Int64, "shift": pl.Float64, "shrink": pl.Float64},
        orient="row",
    )
    positives = judged.filter(pl.col("relevance") > 0).select(*_PAIR, "score")
    found = positives.join(dense.select(*_PAIR, "rank"), on=_PAIR, how="left").join(lists, on="query_id", how="left")
    z = (pl.col("score").cast(pl.Float64) - pl.col("mean")) / pl.col("deviation")
    found = found.join(tails, on="n", how="left").with_columns(
        above_chance=pl.when(pl.col("deviation") > 0).then(z * pl.col("shrink") + pl.col("shift"))
    )
    return found.select(list(STANDING)).sort(_PAIR)


def tail(share: float) -> tuple[float, float]:
    """Mean and standard deviation of the upper `share` of a standard normal distribution; 0 and 1 for all of it."""
    if share >= 1:
        return 0.0, 1.0
    normal = NormalDist()
    at = normal.inv_cdf(1 - share)
    mean = normal.pdf(at) / share
    return mean, max(1 + at * mean - mean * mean, 0.0) ** 0.5


def buried(positives: pl.DataFrame, rank: int, told: "Told") -> pl.DataFrame:
    """Positives beyond `rank` that score like a random document and lack the question's words.

    A positive that only stands behind many documents like it scores far above a random one, so it is not listed.
    """
    beyond = pl.col("rank").is_null() | (pl.col("rank") > rank)
    found = told.words(positives.filter(beyond & (pl.col("above_chance") < CHANCE))).filter(pl.col("words") < LACKS)
    at = pl.when(pl.col("rank").is_null()).then(pl.lit("not among the candidates"))
    words = pl.concat_str(
        at.otherwise(pl.format("rank {}", "rank")),
        pl.format(
            "; its score {} is like a random document's ({} deviations above; the best has {}), and it holds {}% of "
            "the question's particular words: a wrong answer, or a text that does not say what it is about",
            pl.col("score").round(3),
            pl.col("above_chance").round(1),
            pl.col("best").round(3),
            (pl.col("words") * 100).round().cast(pl.Int64),
        ),
    )
    return found.with_columns(finding=pl.lit(BURIED), explanation=words).sort("above_chance", *_PAIR)


def ahead(positives: pl.DataFrame, candidates: pl.DataFrame, negatives: int) -> pl.DataFrame:
    """query_id, doc_id, against: the query's `negatives` hardest negatives, where all of them score above the positive.

    `positives` as `standing` gives them; `candidates` (query_id, doc_id, source, score, verdict) of the same queries.
    """
    ours = (found_by(DENSE) | (pl.col("source") == "curated")) & (pl.col("verdict") == "negative")
    hardest = candidates.filter(ours).sort("query_id", "score", "doc_id", descending=[False, True, False])
    hardest = hardest.group_by("query_id", maintain_order=True).head(negatives)
    last = hardest.group_by("query_id").agg(n=pl.len(), last=pl.col("score").min()).filter(pl.col("n") == negatives)
    beaten = positives.join(last, on="query_id").filter(pl.col("last") > pl.col("score"))
    pairs = beaten.select(_PAIR).join(hardest.select("query_id", against="doc_id"), on="query_id")
    return pairs.sort(*_PAIR, "against")


def outscored(positives: pl.DataFrame, ahead: pl.DataFrame, told: "Told") -> pl.DataFrame:
    """Positives that lack the question's words, and less of them than each of the negatives `ahead` holds.

    The score alone would list 9% of bioasq and 45% of covid_faq (German, for an English encoder), nearly all of them
    right; with the words it is 0.6% and 1.4%, and 3.7% of medquad (mask learned, 7 negatives). A rule that takes
    negatives from below the positive only, as perc does, leaves nothing to list.
    """
    own = told.words(positives.join(ahead, on=_PAIR, how="semi")).filter(pl.col("words") < LACKS)
    rivals = ahead.join(own.select(_PAIR), on=_PAIR, how="semi")
    theirs = told.words(rivals.select("query_id", doc_id="against").unique().sort(_PAIR))
    rivals = rivals.join(theirs.select("query_id", against="doc_id", held="words"), on=["query_id", "against"])
    most = (
        rivals.sort(*_PAIR, "held", "against", descending=[False, False, True, False])
        .group_by(_PAIR, maintain_order=True)
        .agg(pl.col("against").first(), negatives=pl.len(), least=pl.col("held").min(), most=pl.col("held").first())
    )
    found = own.join(most, on=_PAIR).filter(pl.col("least") > pl.col("words"))
    words = pl.format(
        "all of the {} hardest negatives score above it ({}) and hold more of the question's particular words: {}% "
        "here, up to {}% there: is one of them the right answer?",
        "negatives",
        pl.col("score").round(3),
        (pl.col("words") * 100).round().cast(pl.Int64),
        (pl.col("most") * 100).round().cast(pl.Int64),
    )
    return found.with_columns(finding=pl.lit(OUTSCORED), explanation=words).sort("words", "above_chance", *_PAIR)


def contradicting(positives: pl.DataFrame, queries: pl.DataFrame, vectorise: Vectorise, random: Spread) -> pl.DataFrame:
    """Positives of questions that are asked again (by their loose form), or have several, which no other one is like.

    A document that two of these questions share is confirmed and not listed. `vectorise` gives document vectors,
    `random` tells how alike two random documents are. Build-pairs makes one question of equal texts, so a question's
    own other positives count as well. FAQs do have several right answers to one question: what is listed is unlike.
    """
    forms = [loose(text) or normalise(text) for text in queries["query"]]
    formed = queries.select("query_id", pl.Series("form", forms, dtype=pl.String))
    pool = positives.join(formed, on="query_id")
    pool = pool.filter(pl.col("doc_id").n_unique().over("form") > 1)
    documents = pool.select("form", "doc_id").unique().sort("form", "doc_id")
    alike = pl.concat([pl.DataFrame(schema=_ALIKE), *(_alike(part, vectorise, random) for part in _whole(documents))])
    shared = pl.len().over("form", "doc_id") > 1
    asked = pl.col("query_id").n_unique().over("form")
    found = pool.with_columns(asked=asked, shared=shared).filter(~pl.col("shared"))
    found = found.join(alike, on=["form", "doc_id"]).filter(pl.col("similarity") < UNLIKE)
    words = pl.format(
        "{}, and none is like this one: the nearest, {}, is as like it as two random documents ({} deviations above)",
        pl.when(pl.col("asked") > 1)
        .then(pl.format("the question stands there {} times, with several positives", "asked"))
        .otherwise(pl.lit("the question has several positives")),
        "against",
        pl.col("similarity").round(1),
    )
    return (
        found.with_columns(finding=pl.lit(CONTRADICTING), explanation=words)
        .sort("similarity", *_PAIR)
        .drop("form", "asked", "shared")
    )


def _whole(documents: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """`documents` (form, doc_id), sorted, cut into parts of about `_POSITIVES` rows that keep forms together."""
    part = documents.with_columns(part=pl.int_range(pl.len()).first().over("form") // _POSITIVES)
    yield from (rows.drop("part") for rows in part.partition_by("part", maintain_order=True))


def _alike(documents: pl.DataFrame, vectorise: Vectorise, random: Spread) -> pl.DataFrame:
    """form, doc_id, against, similarity: each document's nearest among the other ones of its form."""
    ids = documents.select(pl.col("doc_id").unique().sort())
    vectors = vectorise(ids).astype(np.float32, copy=False)
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))
    places = documents.join(ids.with_row_index("place"), on="doc_id", how="left", maintain_order="left")
    against, similarity = [], []
    for form in places.partition_by("form", maintain_order=True):
        mine, names = vectors[form["place"].to_numpy()], form["doc_id"].to_list()
        for i in range(len(mine)):
            cosine = mine @ mine[i]
            cosine[i] = -np.inf
            nearest = int(cosine.argmax())
            against.append(names[nearest])
            similarity.append(float(random(cosine[nearest : nearest + 1])[0]))
    return documents.with_columns(pl.Series("against", against), pl.Series("similarity", similarity, dtype=pl.Float64))


class Told:
    """How much of their questions' telling words documents hold; reads the texts that are asked for."""

    def __init__(self, queries: pl.DataFrame, corpus: pl.LazyFrame) -> None:
        self._queries, self._corpus = queries.select("query_id", "query"), corpus
        self._telling = Telling(queries["query"])

    def words(self, pairs: pl.DataFrame) -> pl.DataFrame:
        """`pairs` (query_id, doc_id, ...) with words (f64)."""
        parts = [pairs.clear().with_columns(words=pl.lit(None, pl.Float64))]
        for part in pairs.iter_slices(_PAIRS):
            texts = self._corpus.filter(pl.col("doc_id").is_in(part["doc_id"].unique().implode())).collect()
            asked = self._queries.join(part, on="query_id", how="semi")
            shares = self._telling.shares(part, dict(asked.iter_rows()), dict(texts.iter_rows()))
            parts.append(part.with_columns(shares.alias("words")))
        return pl.concat(parts)
