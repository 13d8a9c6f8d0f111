"""Doubts: the candidates whose verdict a second opinion could change, and the texts that it has to read."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from stages.core import schemas
from stages.core.query_batches import of_block, query_blocks
from stages.core.schemas import Tools, scan_documents
from stages.core.text import loose, normalise
from stages.mining import risk_budget
from stages.mining.risk_budget import Limit, Limits

ROWS_A_BLOCK = 1_000_000
"""Pairs looked at together; bounds memory and changes no result."""
PAIR = ["query_id", "doc_id"]


@dataclass
class Scene:
    """The tables behind the candidates."""

    inputs: Mapping[str, Path]
    tools: Tools

    def __post_init__(self) -> None:
        self.queries = schemas.read_table(self.inputs["queries"], schemas.QUERIES).sort("query_id")
        judged = schemas.scan_table(self.inputs["judged"], schemas.JUDGED)
        self.positives = judged.filter(pl.col("relevance") > 0).select(PAIR).collect()

    def doubtful(self, limits: Limits) -> pl.DataFrame:
        """The open candidates of train questions down to the last that would be emitted, as far as somebody may doubt
        them: query_id, doc_id, score, p_false_negative, threshold, emitted, reached; sorted by query_id, doc_id."""
        evidence = schemas.scan_table(self.inputs["evidence"], schemas.EVIDENCE)
        total = pq.read_metadata(self.inputs["evidence"]).num_rows
        blocks = list(query_blocks(self.queries["query_id"], total, ROWS_A_BLOCK))
        limit = risk_budget.settled(limits, evidence, self.queries, blocks)
        train = self.queries.filter(pl.col("split") == "train")["query_id"]
        found = [
            open_rows(limits, of_block(evidence, block).filter(pl.col("query_id").is_in(train.implode())), limit)
            for block in blocks
        ]
        return pl.concat(found).sort(PAIR)

    def forms(self, rows: pl.DataFrame) -> list[str]:
        """The questions of rows (query_id) by their loose form, as the estimate's folds go by."""
        texts = self.queries.select("query_id", "query").iter_rows()
        known = {query_id: loose(text) or normalise(text) for query_id, text in texts}
        return [known[query_id] for query_id in rows["query_id"]]

    def texts(self, pairs: pl.DataFrame) -> list[tuple[str, str]]:
        """The (query, document) texts of pairs (query_id, doc_id), in their order."""
        wanted = pairs["doc_id"].unique()
        documents = scan_documents(self.inputs["corpus"]).filter(pl.col("doc_id").is_in(wanted.implode())).collect()
        joined = pairs.select(PAIR).join(
            self.queries.select("query_id", "query"), on="query_id", how="left", maintain_order="left"
        ).join(documents, on="doc_id", how="left", maintain_order="left")  # fmt: skip
        return list(zip(joined["query"], joined["text"], strict=True))


def open_rows(limits: Limits, rows: pl.DataFrame, limit: Limit) -> pl.DataFrame:
    """Of some queries' EVIDENCE what `Scene.doubtful` gives, in the order of `rows`."""
    # what is too likely to be emitted may be won back by whoever is asked
    lists, at, here = risk_budget.open_lists(limits, rows, likely=1.0)
    emitting = replace(lists, open=lists.open & (lists.p <= risk_budget.LIKELY))
    chosen = risk_budget.choose(emitting, limit.price) & (lists.p <= limit.ceiling)
    width = lists.score.shape[1]
    last = np.where(chosen.any(axis=1), width - 1 - chosen[:, ::-1].argmax(axis=1), -1) if width else np.zeros(0)
    reached = np.arange(width)[None] <= last[:, None]
    threshold = risk_budget.allowed(emitting, limit, limits.max_false_negatives)
    found = rows.filter(here).select(
        *PAIR, "score", "p_false_negative",
        threshold=pl.Series(threshold[at], dtype=pl.Float32), emitted=pl.Series(chosen[at], dtype=pl.Boolean),
        reached=pl.Series(reached[at], dtype=pl.Boolean),
    )  # fmt: skip
    return found.filter(pl.col("reached"))
