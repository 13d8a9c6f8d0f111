"""A second opinion from the command line: a cross-encoder from a folder, and a judge behind a real HTTP server."""

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
def seen(project: Project) -> Project:
    """The small table under prep's own encoder, whose candidates the prior knows how to read."""
    project.set("encode", "model", f'"{DEFAULT_ENCODER}"')
    for name, value in (("mask", '"learned"'), ("rank_window", "[10, 210]")):
        project.set("mine", name, value)
    return project


def verdicts(project: Project, made: dict) -> pl.DataFrame:
    return pl.read_parquet(project.folder / made["artifacts"]["mask"] / "verdicts.parquet")


def test_a_judge_changes_what_is_emitted_and_is_paid_once(seen: Project, server: Server) -> None:  # noqa: F811
    plain = result(seen, "mine-negatives")
    asked = ("--llm-judge", server.url, "--llm-judge-model", "model-a", "--set", "verify.llm_judge_budget=12")
    made = result(seen, "mine-negatives", *asked)
    assert made["ran"] == ["verify", "mask", "sample"]
    told = made["summary"]["verify"]["llm_judge"]
    assert (told["pairs"], told["requested"], told["failed"]) == (12, 12, 0)
    after = verdicts(seen, made).filter(pl.col("llm_judge").is_not_null())
    assert len(after) == 12
    assert not after["llm_judge"].any()  # the server finds "RIGHT" in no document
    assert after["p_false_negative"].max() == pytest.approx(0.01)
    before = verdicts(seen, plain).join(after, on=["query_id", "doc_id"], how="semi")
    assert before["p_false_negative"].max() > 0.01  # type: ignore[operator]
    requests = len(server.bodies)
    again = result(seen, "mine-negatives", *asked, "--max-false-negatives", "0.03")
    assert "verify" in again["ran"]
    assert again["summary"]["verify"]["llm_judge"]["cached"] > 0
    assert len(server.bodies) < 2 * requests
    for name, value in (("llm_judge", f'"{server.url}"'), ("llm_judge_model", '"model-a"'), ("llm_judge_budget", "12")):
        seen.set("verify", name, value)
    shown = json.loads(seen.prep("show", after["query_id"][0], "--top", "300", "--json").stdout)["documents"]
    assert any(row["explanation"].endswith("the judge says that it does not answer") for row in shown)


def test_a_teacher_is_asked_about_what_is_in_doubt(seen: Project, tiny_model: Path) -> None:
    folder = seen.folder / "teacher"
    save_reranker(load_reranker(tiny_model, "cpu", seed=3), folder)
    made = result(seen, "mine-negatives", "--verifier", str(folder))
    told = made["summary"]["verify"]["verifier"]
    assert told["scored"] > 0
    assert told["is_used"] is False  # no question of this table has several positives to show it
    assert verdicts(seen, made)["verifier_score"].is_not_null().sum() > 0
    again = result(seen, "mine-negatives", "--verifier", str(folder), "--num-negatives", "2")
    assert again["summary"]["verify"]["verifier"]["scored"] == 0


def test_a_judge_that_is_not_there_is_named(seen: Project) -> None:
    done = seen.prep("mine-negatives", "--llm-judge", "http://127.0.0.1:9/v1", "--llm-judge-model", "m", "--json")
    assert done.returncode == 2
    assert "http://127.0.0.1:9/v1" in json.loads(done.stdout)["error"]


def test_a_table_too_unlike_the_prior_s_asks_nobody_and_goes_by_perc(seen: Project) -> None:
    rows = (
        ("how do I reset my password", "Open settings and choose reset."),
        ("where is my parcel", "Follow the link in the e-mail."),
        ("can I get a refund", "Within thirty days of the order."),
        ("what are your opening hours", "Nine to five on weekdays."),
        ("do you ship abroad", "To all of Europe and Norway."),
    )
    (seen.folder / "faq.csv").write_text("question,answer\n" + "".join(f"{q},{a}\n" for q, a in rows))
    done = seen.prep("mine-negatives", "--verifier", "self", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)["summary"]
    assert summary["mask"]["rule"] == "perc"
    assert summary["sample"]["negatives"] > 0
    assert summary["verify"]["skipped_reason"]
