"""What a step reports is in words: no name of a field, no None, no dictionary."""

import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.output import ResultTable
from pipeline.cli.summaries import format_expected_false_negatives, format_gate_verdict, format_summary
from pipeline.workflow.artifact_store import Artifact
from stages.embedding.encoder_fit import TextMeasures
from tests.encodings import make_encoder_fit

ESTIMATE = {"source": "pretrained", "unreliable_reason": None, "logit_offsets": [], "n_table_queries": 1}
SUMMARIES: dict[str, dict[str, Any]] = {
    "encode": {"queries": 715, "documents": 296, "n_encoded": 1011, "n_cached": 0, "model": "org/model",
        "encoder_fit": make_encoder_fit().to_dict()},
    "search": {"queries": 715, "candidates": 143000, "candidates_by_source": {"dense": 143000, "bm25": 0},
        "mrr_at_10": {"bm25": 0.0, "dense": 0.7972}, "model": "org/model", "encoder_fit": make_encoder_fit().to_dict()},
    "features": {"n_pairs": 143000, "estimate": ESTIMATE},
    "verify": {"pairs": 0},
    "sample": {
        "queries": 582, "negatives": 4074, "n_requested": 7, "fill_rate": 1.0, "hardness": 0.3922,
        "expected_false_negative_rate": 0.0192, "n_weighted_negatives": 0,
        "skipped_queries": {"no_positive": 0, "no_negatives": 3},
    },
    "train": {
        "n_queries": 120, "n_steps": 60, "loss": 1.363, "chance_loss": 1.386, "best_epoch": 1, "n_dev_queries": 10,
        "dev_nDCG@10": 0.2374, "dev_MRR@10": 0.1867, "collapse_reason": None,
    },
}  # fmt: skip
SAMPLE = {"negatives": 4074, "n_weighted_negatives": 0, "expected_false_negative_rate": 0.0198}


def summarise(step: str) -> list[str | ResultTable]:
    return format_summary(step, {step: Artifact(Path(), {"summary": SUMMARIES[step]})})


@pytest.mark.parametrize("step", SUMMARIES)
def test_no_internals_reach_the_terminal(step: str) -> None:
    text = "\n".join(map(str, summarise(step)))
    assert not re.search(r"None|True|False|[a-z]_[a-z]|[{}\[\]]|\(\)", text), text


def test_a_summary_tells_its_counts() -> None:
    assert summarise("encode") == ["encode: 1,011 texts encoded with org/model; 0 were stored already"]
    assert summarise("search") == [
        "search: 143,000 candidates for 715 queries (143,000 by dense, 0 by bm25)",
        "  how high the first positive stands, over all queries that have one: MRR@10 bm25 0.000, dense 0.797",
    ]
    assert summarise("verify") == []
    assert summarise("sample") == [
        "sample: 4,074 negatives for 582 train queries, 100.0% of 7 each; mean retriever score 0.392",
        "  not in mined.jsonl: 3 (no negatives)",
        "false ones expected among the 4,074 negatives: 1.92%",
    ]
    assert summarise("train") == [
        "train: 120 queries, 60 steps, loss 1.363 (chance: 1.386)",
        "  epoch 1 is kept, the best of 10 dev queries: nDCG@10 0.2374, MRR@10 0.1867",
    ]


def test_a_misfit_and_cut_documents_are_reported() -> None:
    fit = make_encoder_fit(
        verdict="misfit", reasons=("BM25 ranks better",), max_length=256,
        documents=TextMeasures(296, "Han", 900.0, truncated_share=0.25),
    )  # fmt: skip
    summary = SUMMARIES["encode"] | {"encoder_fit": fit.to_dict()}
    _, misfit, cut = format_summary("encode", {"encode": Artifact(Path(), {"summary": summary})})
    assert "the encoder org/model does not fit these texts (mostly Han): BM25 ranks better. Try model = " in str(misfit)
    assert "74 of 296 documents are longer than the encoder reads (256 tokens)" in str(cut)


def test_negatives_that_are_kept_with_a_weight_are_named_beside_the_rate() -> None:
    assert format_expected_false_negatives(SAMPLE, None).endswith("4,074 negatives: 1.98%")
    line = format_expected_false_negatives(SAMPLE | {"n_weighted_negatives": 834}, None)
    assert "1.98%. The mask would leave out 834 of them" in line


def test_a_rate_above_the_accepted_one_is_explained() -> None:
    line = format_expected_false_negatives(SAMPLE | {"expected_false_negative_rate": 0.031}, 0.02)
    assert "3.10%, more than the 2.0% accepted" in line
    assert "hub_cap" in line
    assert format_expected_false_negatives(SAMPLE | {"expected_false_negative_rate": 0.0201}, 0.02).endswith("2.01%")


def test_the_gate_in_one_line() -> None:
    verdict = {
        "metric": "nDCG@10", "published_mean": 0.5, "new_mean": 0.6, "difference": 0.1, "low": 0.05, "high": 0.15,
        "verdict": "better",
    }  # fmt: skip
    assert format_gate_verdict(verdict) == (
        "against the published reranker: nDCG@10 0.5000 -> 0.6000, difference +0.1000 [+0.0500, +0.1500]: better"
    )
    assert "[" not in format_gate_verdict(verdict | {"low": None, "high": None})
    assert "no test query" in format_gate_verdict(verdict | {"difference": None})
