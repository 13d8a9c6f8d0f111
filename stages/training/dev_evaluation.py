"""The metrics of a reranker on dev queries, taken after each epoch of its training."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from stages.core.device import Dtype
from stages.core.schemas import scan_documents
from stages.evaluation.candidate_lists import CandidateLists
from stages.evaluation.collapse import compute_max_score_range
from stages.evaluation.metrics import Evaluator, average_metrics
from stages.reranking.cross_encoder import TextPair, score_pairs
from stages.reranking.scoring import gather_pair_texts

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

DEV_METRICS = ("nDCG@10", "MRR@10")


@dataclass(frozen=True)
class DevEvaluator:
    """The candidates of dev queries, with all that is needed to evaluate a model that reranks them."""

    candidates: pl.DataFrame
    """query_id, doc_id, relevance."""
    text_pairs: list[TextPair]
    """The texts of `candidates`, in its order."""
    qrels: pl.DataFrame
    """query_id, doc_id, relevance."""
    dtype: Dtype

    def evaluate(self, model: "CrossEncoder") -> dict[str, float]:
        """The mean of `DEV_METRICS` over the queries, and "max_score_range": the widest range of one query's logits."""
        scores = self.candidates.with_columns(score=pl.Series(score_pairs(model, self.text_pairs, self.dtype)))
        metrics = average_metrics(Evaluator(self.qrels, DEV_METRICS).evaluate(scores))
        return metrics | {"max_score_range": compute_max_score_range(scores, ["query_id"])}


def build_dev_evaluator(dev_lists: CandidateLists, corpus_path: Path, dtype: Dtype) -> DevEvaluator:
    """An evaluator of models on `dev_lists`, whose documents' texts stand in the corpus file."""
    doc_ids = dev_lists.lists["doc_id"].unique()
    documents = scan_documents(corpus_path).filter(pl.col("doc_id").is_in(doc_ids.implode())).collect()
    return DevEvaluator(
        dev_lists.lists.select("query_id", "doc_id", "relevance"),
        gather_pair_texts(dev_lists.lists, dev_lists.queries, documents),
        dev_lists.qrels.select("query_id", "doc_id", "relevance"),
        dtype,
    )
