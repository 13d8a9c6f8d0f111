"""Select the candidates whose verdict a verifier or an LLM judge could change, and read their texts."""

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
"""Pairs in memory at once; does not change the result."""


@dataclass
class VerifyInputs:
    """The tables of the verify step."""

    paths: Mapping[str, Path]
    context: StageContext

    def __post_init__(self) -> None:
        self.queries = schemas.read_table(self.paths["queries"], schemas.QUERIES).sort("query_id")
        qrels_scored = schemas.scan_table(self.paths["qrels_scored"], schemas.QRELS_SCORED)
        self.positives = qrels_scored.filter(pl.col("relevance") > 0).select(PAIR_COLUMNS).collect()

    def select_for_verification(self, risk_policy: RiskPolicy) -> pl.DataFrame:
        """The result of `select_eligible_rows` for all train queries, sorted by query_id, doc_id."""
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
        """The match key of each row's query, by which the estimator assigns folds."""
        texts = self.queries.select("query_id", "query").iter_rows()
        match_keys = {query_id: match_key(text) for query_id, text in texts}
        return [match_keys[query_id] for query_id in rows["query_id"]]

    def read_pair_texts(self, pairs: pl.DataFrame) -> list[tuple[str, str]]:
        """The (query, document) texts of `pairs` (query_id, doc_id), in their order."""
        doc_ids = pairs["doc_id"].unique()
        documents = scan_documents(self.paths["corpus"]).filter(pl.col("doc_id").is_in(doc_ids.implode())).collect()
        joined = pairs.select(PAIR_COLUMNS).join(
            self.queries.select("query_id", "query"), on="query_id", how="left", maintain_order="left"
        ).join(documents, on="doc_id", how="left", maintain_order="left")  # fmt: skip
        return list(zip(joined["query"], joined["text"], strict=True))


def select_eligible_rows(risk_policy: RiskPolicy, rows: pl.DataFrame, risk_solution: RiskSolution) -> pl.DataFrame:
    """The eligible candidates of some queries (`rows` of CANDIDATE_FEATURES), down to the last selected one.

    Columns: query_id, doc_id, score, p_false_negative, threshold, is_selected, is_within_cutoff. Candidates with a p
    above the limit are included, because a verifier may lower their p.
    """
    all_candidates, cells, is_eligible = risk_budget.pad_eligible_candidates(risk_policy, rows, max_p=1.0)
    candidates = all_candidates.restrict(all_candidates.p <= risk_budget.MAX_P_FALSE_NEGATIVE)
    is_selected, threshold = risk_solution.select(candidates), risk_solution.compute_limits(candidates)
    is_within_cutoff = risk_budget.mark_through_last_selected(is_selected)
    found = rows.filter(is_eligible).select(
        *PAIR_COLUMNS, "score", "p_false_negative",
        threshold=pl.Series(threshold[cells], dtype=pl.Float32),
        is_selected=pl.Series(is_selected[cells], dtype=pl.Boolean),
        is_within_cutoff=pl.Series(is_within_cutoff[cells], dtype=pl.Boolean),
    )  # fmt: skip
    return found.filter(pl.col("is_within_cutoff"))
