"""Doubts: the candidates whose verdict a second opinion could change, and the texts that it has to read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from stages.core import schemas
from stages.core.context import StageContext
from stages.core.query_batches import collect_query_batch, iter_query_batches
from stages.core.schemas import PAIR_COLUMNS, scan_documents
from stages.core.text import match_key
from stages.mining import risk_budget
from stages.mining.params import RiskPolicy
from stages.mining.risk_budget import RiskSolution

VERIFY_ROWS_PER_BLOCK = 1_000_000
"""Pairs looked at together; bounds memory and changes no result."""


@dataclass
class VerifyInputs:
    """The tables behind the candidates."""

    paths: Mapping[str, Path]
    context: StageContext

    def __post_init__(self) -> None:
        self.queries = schemas.read_table(self.paths["queries"], schemas.QUERIES).sort("query_id")
        judged = schemas.scan_table(self.paths["qrels_scored"], schemas.QRELS_SCORED)
        self.positives = judged.filter(pl.col("relevance") > 0).select(PAIR_COLUMNS).collect()

    def select_for_verification(self, risk_policy: RiskPolicy) -> pl.DataFrame:
        """The open candidates of train questions down to the last that would be emitted, as far as somebody may doubt
        them: query_id, doc_id, score, p_false_negative, threshold, emitted, reached; sorted by query_id, doc_id."""
        candidate_features = schemas.scan_table(self.paths["features"], schemas.CANDIDATE_FEATURES)
        n_rows = pq.read_metadata(self.paths["features"]).num_rows
        blocks = list(iter_query_batches(self.queries["query_id"], n_rows, VERIFY_ROWS_PER_BLOCK))
        risk_solution = risk_budget.solve_risk_budget(risk_policy, candidate_features, self.queries, blocks)
        train = self.queries.filter(pl.col("split") == "train")["query_id"]
        found = [
            select_eligible_rows(
                risk_policy,
                collect_query_batch(candidate_features, block).filter(pl.col("query_id").is_in(train.implode())),
                risk_solution,
            )
            for block in blocks
        ]
        return pl.concat(found).sort(PAIR_COLUMNS)

    def compute_match_keys(self, rows: pl.DataFrame) -> list[str]:
        """The questions of rows (query_id) by their loose form, as the estimate's folds go by."""
        texts = self.queries.select("query_id", "query").iter_rows()
        match_keys = {query_id: match_key(text) for query_id, text in texts}
        return [match_keys[query_id] for query_id in rows["query_id"]]

    def read_pair_texts(self, pairs: pl.DataFrame) -> list[tuple[str, str]]:
        """The (query, document) texts of pairs (query_id, doc_id), in their order."""
        doc_ids = pairs["doc_id"].unique()
        documents = scan_documents(self.paths["corpus"]).filter(pl.col("doc_id").is_in(doc_ids.implode())).collect()
        joined = pairs.select(PAIR_COLUMNS).join(
            self.queries.select("query_id", "query"), on="query_id", how="left", maintain_order="left"
        ).join(documents, on="doc_id", how="left", maintain_order="left")  # fmt: skip
        return list(zip(joined["query"], joined["text"], strict=True))


def select_eligible_rows(risk_policy: RiskPolicy, rows: pl.DataFrame, risk_solution: RiskSolution) -> pl.DataFrame:
    """Of some queries' EVIDENCE what `Scene.select_for_verification` gives, in the order of `rows`."""
    # what is too likely to be emitted may be won back by whoever is asked
    lists, cells, is_eligible = risk_budget.pad_eligible_candidates(risk_policy, rows, max_p=1.0)
    candidates = lists.restrict(lists.p <= risk_budget.MAX_P_FALSE_NEGATIVE)
    is_selected, threshold = risk_solution.select(candidates), risk_solution.compute_limits(candidates)
    is_within_cutoff = risk_budget.mark_through_last_selected(is_selected)
    found = rows.filter(is_eligible).select(
        *PAIR_COLUMNS, "score", "p_false_negative",
        threshold=pl.Series(threshold[cells], dtype=pl.Float32),
        emitted=pl.Series(is_selected[cells], dtype=pl.Boolean),
        reached=pl.Series(is_within_cutoff[cells], dtype=pl.Boolean),
    )  # fmt: skip
    return found.filter(pl.col("reached"))
