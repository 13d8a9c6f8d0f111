"""The composer: chooses each query's negatives among the survivors of the mask, block by block."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.core import schemas
from stages.core.query_batches import in_order, of_block, query_blocks
from stages.core.schemas import Summary, Tools
from stages.mining.audit import checks
from stages.mining.candidates.documents import Vectorise, document_vectors, text_keys
from stages.mining.sampling import hubness, near_duplicates, strategies

if TYPE_CHECKING:
    from stages.mining.sampling.stage import Params

ROWS_A_BLOCK = 500_000
"""Verdicts looked at together; bounds memory and changes no result."""
ROWS_A_NEGATIVE = 10
"""A negative that is wanted weighs so many verdicts: its text and its vector are held."""
AHEAD = 4
"""Where the hardest are taken, so many survivors a negative are looked at first; changes no result."""


class Block(NamedTuple):
    """What is chosen for a block of queries."""

    asked: pl.DataFrame
    """query_id, query of the block's train queries."""
    positives: pl.DataFrame
    """Of `pick_positives`."""
    chosen: pl.DataFrame
    """Of `choose`, and `line` (0, 1, ... within a query)."""
    thinned: int
    """How many near-duplicates were passed over."""
    doubted: pl.DataFrame
    """query_id, finding of the positives that the audit took away or made count less."""


class Composer:
    """Chooses among the survivors of the mask, block by block."""

    def __init__(self, params: "Params", queries: pl.DataFrame, inputs: Mapping[str, Path], tools: Tools) -> None:
        self._params = params
        self._queries = queries
        self._numbers = queries.select("query_id").with_row_index("asking")
        self._judged = schemas.scan_table(inputs["judged"], schemas.JUDGED)
        self._survivors = survivors_of(inputs["verdicts"], queries)
        self._relabelled = relabelled(inputs["verdicts"])
        self._doubted = pl.DataFrame(schema=checks.FOUND)
        if params.drop_positives:
            found = checks.find(inputs, tools.vectors, params.audit_rank, params.negatives, params.drop_positives)
            self._doubted = found[0]
        self._rows = pq.read_metadata(inputs["verdicts"]).num_rows
        self._keys = text_keys(inputs["corpus"]).with_row_index("document")
        self._categories = None
        if params.same == "category":
            corpus = schemas.read_table(inputs["corpus"], schemas.CORPUS, ["doc_id", "category"])
            self._categories = corpus.filter(pl.col("category").is_not_null() & (pl.col("category") != ""))
        self._vectorise: Vectorise | None = None
        if params.thin_similarity <= 1:
            from stages.embedding.lookup import Vectors

            self._vectorise = document_vectors(inputs["corpus"], Vectors(inputs["encoding"], tools.vectors))
        self._caps: hubness.Caps | None = None
        self._used = np.zeros(len(self._keys), np.int32)
        if params.hub_cap:
            caps = hubness.Caps(queries["query_id"], self._keys["doc_id"], params.seed)
            self._caps = hubness.settle(caps, params.hub_cap, len(self._keys), self._wants)

    @property
    def told(self) -> Summary:
        """What is known of the whole once all blocks have come: how often the most used document was taken."""
        caps = self._caps
        hub = {"most_used": int(self._used.max(initial=0))}
        return {"hubs": hub | ({"capped": caps.capped, "turned_away": caps.turned_away} if caps else {})}

    def blocks(self) -> Iterator[Block]:
        """All train queries, in query_id order."""
        for found in in_order(lambda block: self._block(block, self._caps), self._cut()):
            self._used += np.bincount(found.chosen["document"].to_numpy(), minlength=len(self._used)).astype(np.int32)
            yield found

    def _cut(self) -> Iterator[pl.Series]:
        ids = self._queries["query_id"]
        rows = self._rows + len(ids) * self._params.negatives * ROWS_A_NEGATIVE
        return query_blocks(ids, rows, ROWS_A_BLOCK)

    def _block(self, block: pl.Series, caps: hubness.Caps | None) -> Block:
        """`block`: sorted ids of train queries; other queries between them are left alone."""
        ours = pl.col("query_id").is_in(block.implode())
        asked = self._queries.filter(ours)
        judged, survivors, relabelled = (
            of_block(table.filter(ours), block) for table in (self._judged, self._survivors, self._relabelled)
        )
        right = judged.filter(pl.col("relevance") > 0).select("query_id", "doc_id", "score")
        doubted = right.join(self._doubted, on=["query_id", "doc_id"])
        right = pl.concat([right.join(self._doubted, on=["query_id", "doc_id"], how="anti"), relabelled])
        if weight := self._params.positive_weight:
            kept = doubted.select(*right.columns, weight=pl.lit(weight)).unique(["query_id", "doc_id"])
            right = pl.concat([right.with_columns(weight=pl.lit(1.0)), kept])
        positives = pick_positives(right, self._keys)
        chosen, thinned = self._chosen(survivors, positives, caps)
        if self._categories is not None:
            own = strategies.categories_of(positives, self._categories)["query_id"].unique()
            chosen = chosen.with_columns(categorised=pl.col("query_id").is_in(own.implode()))
            positives = positives.with_columns(categorised=pl.col("query_id").is_in(own.implode()))
        return Block(
            asked, positives, chosen.with_columns(line=pl.lit(0)), len(thinned), doubted.select("query_id", "finding")
        )

    def _chosen(
        self, survivors: pl.DataFrame, positives: pl.DataFrame, caps: hubness.Caps | None
    ) -> tuple[pl.DataFrame, pl.Series]:
        """As `_taken`. Where nothing but the score orders a query's survivors, the first that fill it are enough; a
        query that they do not fill, since texts repeat or are thinned, is looked at again with all."""
        asked = self._params.negatives
        by_score = self._params.sampling == "top" and not self._params.quotas and self._categories is None
        if not by_score or caps is not None:
            return self._taken(survivors, positives, caps)
        place = pl.col("score").rank("min", descending=True).over("query_id")  # of equal ones all or none
        marked = survivors.with_columns(behind=(pl.col("reason") != "curated") & (place > AHEAD * asked))
        chosen, thinned = self._taken(marked.filter(~pl.col("behind")).drop("behind"), positives, None)
        full = chosen.group_by("query_id").len().filter(pl.col("len") >= asked)["query_id"]
        again = marked.filter("behind")["query_id"].unique()
        again = again.filter(~again.is_in(full.implode()))
        if again.is_empty():
            return chosen, thinned
        others = ~pl.col("query_id").is_in(again.implode())
        more, more_thinned = self._taken(survivors.filter(~others), positives, None)
        both = pl.concat([chosen.filter(others), more]).sort("query_id", maintain_order=True)
        return both, pl.concat([thinned.filter(~thinned.is_in(again.implode())), more_thinned])

    def _taken(
        self, survivors: pl.DataFrame, positives: pl.DataFrame, caps: hubness.Caps | None
    ) -> tuple[pl.DataFrame, pl.Series]:
        """Of `choose`, from `survivors` that no cap keeps out."""
        pool = strategies.pool_of(survivors, positives, self._keys, self._categories)
        pool = pool.join(self._numbers, on="query_id", how="left", maintain_order="left")
        barred = None
        if caps is not None:
            barred = caps.barred(pool.select("document", "score", query="asking")) & ~pool["curated"].to_numpy()
        return choose(self._params, pool, barred, self._vectorise)

    def _wants(self, caps: hubness.Caps, some: pl.Series | None) -> pl.DataFrame:
        """What `hubs.settle` asks for; `some`: rising numbers of queries."""
        parts = [pl.DataFrame(schema={"query": pl.UInt32, "document": pl.UInt32, "score": pl.Float32})]
        ids = self._queries["query_id"] if some is None else self._queries["query_id"].gather(some)
        for block in self._cut():
            part = ids.filter(ids.is_between(block[0], block[-1]))
            if len(part):
                chosen = self._block(part, caps).chosen.filter(pl.col("band") != "curated")
                parts.append(chosen.select(pl.col("asking").alias("query"), "document", "score"))
        return pl.concat(parts)


def survivors_of(path: Path, queries: pl.DataFrame) -> pl.LazyFrame:
    """query_id, doc_id, score, reason, source of the negative verdicts; and weight where one of a query is below 1.

    It is in every row or in none, so that every line of mined.jsonl has the same columns. A null weight is 1.
    """
    verdicts = schemas.scan_table(path, schemas.VERDICTS).filter(pl.col("verdict") == "negative")
    columns = ["query_id", "doc_id", "score", "reason", "source", "p_false_negative"]
    weighted = verdicts.filter(pl.col("weight") < 1).join(queries.lazy(), on="query_id", how="semi")
    if weighted.head(1).collect().is_empty():
        return verdicts.select(columns)
    return verdicts.select(*columns, pl.col("weight").fill_null(1.0))


def relabelled(path: Path) -> pl.LazyFrame:
    """query_id, doc_id, score of the candidates that the mask made positives."""
    verdicts = schemas.scan_table(path, schemas.VERDICTS).filter(pl.col("reason") == "relabelled")
    return verdicts.select("query_id", "doc_id", "score")


def pick_positives(found: pl.DataFrame, keys: pl.DataFrame) -> pl.DataFrame:
    """`found` (query_id, doc_id, score, perhaps weight) with text_key, best first (ties by doc_id), each text once."""
    found = found.join(keys.select("doc_id", "text_key"), on="doc_id")
    if "weight" in found.columns:  # what holds for one of two equal texts holds for the other
        found = found.with_columns(pl.col("weight").max().over("query_id", "text_key"))
    ordered = found.sort("query_id", "score", "doc_id", descending=[False, True, False])
    return ordered.unique(["query_id", "text_key"], keep="first", maintain_order=True)


def choose(
    params: "Params", pool: pl.DataFrame, barred: NDArray[np.bool_] | None = None, vectorise: Vectorise | None = None
) -> tuple[pl.DataFrame, pl.Series]:
    """The rows of `pool` (`samplings.pool_of`) that are taken, and the query_id of each near-duplicate passed over.

    The rows have `band` too; of each query the curated ones come first, then by falling score (ties by doc_id).
    `barred` [rows] marks what a cap keeps out; without `vectorise` nothing is passed over.
    """
    visits = strategies.visits(params, pool)
    if barred is not None:
        visits = visits.filter(~pl.Series(barred).gather(visits["row"]))
    alike = vectorise and near_duplicates.Alike(pool["doc_id"], params.thin_similarity, vectorise)
    taken, thinned = near_duplicates.walk(visits, pool["curated"].to_numpy(), params.negatives, alike)
    found = visits[taken]
    chosen = pool[found["row"].to_numpy()].with_columns(found["band"])
    order = chosen.sort("query_id", "curated", "score", "doc_id", descending=[False, True, True, False])
    return order, pool["query_id"].gather(visits["row"].gather(thinned))
