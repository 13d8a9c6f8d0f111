"""The verify step from the command line: a cross-encoder from a folder, and an LLM judge behind a real HTTP server."""

import json
from pathlib import Path

import polars as pl
import pytest

from stages.core.model_files import DEFAULT_ENCODER
from stages.reranking.cross_encoder import load_reranker, save_reranker
from tests.conftest import Project
from tests.end_to_end.test_refresh import result
from tests.integration.test_llm_judge import Server, server  # noqa: F401


@pytest.fixture
def default_project(project: Project) -> Project:
    """The small table with the default encoder, which the pretrained model supports."""
    project.set("encode", "model", f'"{DEFAULT_ENCODER}"')
    for name, value in (("mask", '"learned"'), ("rank_window", "[10, 210]")):
        project.set("mine", name, value)
    return project


def read_verdicts(project: Project, run: dict) -> pl.DataFrame:
    return pl.read_parquet(project.folder / run["artifacts"]["mask"] / "verdicts.parquet")


def test_the_llm_judge_changes_verdicts_and_is_paid_once(default_project: Project, server: Server) -> None:  # noqa: F811
    plain = result(default_project, "mine-negatives")
    options = ("--llm-judge", server.url, "--llm-judge-model", "model-a", "--set", "verify.llm_judge_budget=12")
    made = result(default_project, "mine-negatives", *options)
    assert made["ran"] == ["verify", "mask", "sample"]
    counts = made["summary"]["verify"]["llm_judge"]
    assert (counts["pairs"], counts["requested"], counts["failed"]) == (12, 12, 0)
    after = read_verdicts(default_project, made).filter(pl.col("llm_judge").is_not_null())
    assert len(after) == 12
    assert not after["llm_judge"].any()  # the server finds "RIGHT" in no document
    assert after["p_false_negative"].max() == pytest.approx(0.01)
    before = read_verdicts(default_project, plain).join(after, on=["query_id", "doc_id"], how="semi")
    assert before["p_false_negative"].max() > 0.01  # type: ignore[operator]
    requests = len(server.bodies)
    again = result(default_project, "mine-negatives", *options, "--max-false-negatives", "0.03")
    assert "verify" in again["ran"]
    assert again["summary"]["verify"]["llm_judge"]["cached"] > 0
    assert len(server.bodies) < 2 * requests
    for name, value in (("llm_judge", f'"{server.url}"'), ("llm_judge_model", '"model-a"'), ("llm_judge_budget", "12")):
        default_project.set("verify", name, value)
    documents = json.loads(default_project.prep("show", after["query_id"][0], "--top", "300", "--json").stdout)[
        "documents"
    ]
    assert any(row["explanation"].endswith("LLM judge: does not answer") for row in documents)


def test_the_verifier_scores_uncertain_candidates(default_project: Project, tiny_model: Path) -> None:
    folder = default_project.folder / "verifier"
    save_reranker(load_reranker(tiny_model, "cpu", seed=3), folder)
    made = result(default_project, "mine-negatives", "--verifier", str(folder))
    summary = made["summary"]["verify"]["verifier"]
    assert summary["scored"] > 0
    assert summary["is_used"] is False  # no query of this table has several positives, so none is held out
    assert read_verdicts(default_project, made)["verifier_score"].is_not_null().sum() > 0
    again = result(default_project, "mine-negatives", "--verifier", str(folder), "--num-negatives", "2")
    assert again["summary"]["verify"]["verifier"]["scored"] == 0


def test_an_llm_judge_that_does_not_run_is_named(default_project: Project) -> None:
    done = default_project.prep(
        "mine-negatives", "--llm-judge", "http://127.0.0.1:9/v1", "--llm-judge-model", "m", "--json"
    )
    assert done.returncode == 2
    assert "http://127.0.0.1:9/v1" in json.loads(done.stdout)["error"]


def test_a_table_unlike_the_pretrained_model_s_uses_perc_and_no_verifier(default_project: Project) -> None:
    rows = (
        ("how do I reset my password", "Open settings and choose reset."),
        ("where is my parcel", "Follow the link in the e-mail."),
        ("can I get a refund", "Within thirty days of the order."),
        ("what are your opening hours", "Nine to five on weekdays."),
        ("do you ship abroad", "To all of Europe and Norway."),
    )
    (default_project.folder / "faq.csv").write_text("question,answer\n" + "".join(f"{q},{a}\n" for q, a in rows))
    done = default_project.prep("mine-negatives", "--verifier", "self", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)["summary"]
    assert summary["mask"]["rule"] == "perc"
    assert summary["sample"]["negatives"] > 0
    assert summary["verify"]["skipped_reason"]
