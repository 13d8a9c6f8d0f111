"""Who is asked about what, and what follows: by hand, with a teacher and a judge that answer by the text."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from stages.core import schemas
from stages.core.errors import InputError
from stages.mining.verify import cross_encoder, llm_judge
from stages.mining.verify import stage as verify_stage
from stages.mining.verify.params import Params
from stages.mining.verify.stage import P_JUDGED_NOT_RELEVANT, P_JUDGED_RELEVANT
from tests.unit.stages.mining.collection import table, tools, write

LOGIT = {"x": 2.0, "sure": 5.0, "good": 3.0, "bad": -4.0, "worse": -6.0}


class Reader:
    """A teacher that gives each text its logit."""

    said: list[tuple[str, str]]

    def __init__(self, *_: object) -> None:
        self.counts = {"scored": 0, "cached": 0}

    def score_pairs(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        Reader.said = pairs
        self.counts["scored"] += len(pairs)
        return np.array([LOGIT[text] for _, text in pairs], np.float32)


class Court:
    """A judge to whom "good" is relevant and "worse" can't be decided."""

    said: list[tuple[str, str]]

    def __init__(self, url: str, model: str, *_: object) -> None:
        self.summary = {"model": model, "failed": 0}

    def judge_pairs(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        Court.said = pairs
        verdicts = np.array([{"good": 1.0, "worse": np.nan}.get(text, 0.0) for _, text in pairs], np.float32)
        self.summary["failed"] = int(np.isnan(verdicts).sum())
        return verdicts


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    monkeypatch.setattr(cross_encoder, "CrossEncoderVerifier", Reader)
    monkeypatch.setattr(llm_judge, "LLMJudge", Court)
    monkeypatch.setattr(verify_stage, "model_digest", lambda _: "digest")
    # of q's five candidates, three are to be emitted; good is likelier false than not and may be won back; t is of test
    p = {"sure": 0.95, "good": 0.6, "bad": 0.4, "worse": 0.1, "easy": 0.001}
    rows = [("q", doc, "dense", i + 1, 0.9 - 0.1 * i) for i, doc in enumerate(p)] + [("t", "good", "dense", 1, 0.9)]
    evidence = table(schemas.CANDIDATE_FEATURES, *[(*row, *[None] * 5, p[row[1]]) for row in rows]).with_columns(
        *(pl.lit(None, pl.Float32).alias(name) for name in schemas.FEATURES)
    )
    made = write(
        tmp_path,
        queries=table(schemas.QUERIES, ("q", "Question?", "train", "q"), ("t", "Tested?", "test", "t")),
        corpus=table(schemas.CORPUS, *((name, name) for name in sorted([*LOGIT, "easy"]))),
        qrels_scored=table(schemas.QRELS_SCORED, ("q", "x", 1, 0.95), ("t", "x", 1, 0.95)),
        features=evidence,
    )
    schemas.write_table(
        table(schemas.HOLDOUT_CANDIDATES), schemas.HOLDOUT_CANDIDATES, tmp_path / "holdout_candidates.parquet"
    )
    (tmp_path / "estimator.json").write_text(
        json.dumps({"source": "pretrained", "unreliable_reason": None, "models": {}})
    )
    return made | {
        "holdout_candidates": tmp_path / "holdout_candidates.parquet",
        "estimator": tmp_path / "estimator.json",
    }


def verified(inputs: dict[str, Path], folder: Path, **given: object) -> tuple[dict[str, dict], dict]:
    out = folder / "out"
    out.mkdir(exist_ok=True)
    params = Params(**{"num_negatives": 3, "max_false_negatives": 0.3, **given})  # type: ignore[arg-type]
    summary = verify_stage.run(params, inputs, out, tools(folder))
    found = schemas.read_table(out / "verifier_scores.parquet", schemas.VERIFIER_SCORES)
    assert found["query_id"].is_in(["q"]).all()
    return {row["doc_id"]: row for row in found.iter_rows(named=True)}, summary


def test_nobody_is_asked_where_nobody_is_named(inputs: dict[str, Path], tmp_path: Path) -> None:
    assert verified(inputs, tmp_path) == ({}, {"n_pairs": 0})


def test_a_teacher_reads_what_is_in_doubt_and_the_positives(inputs: dict[str, Path], tmp_path: Path) -> None:
    # 0.3 of 3 negatives: 0.5 + 0.4 is too much; at the price found, 0.4, 0.1 and 0.001 are emitted
    found, summary = verified(inputs, tmp_path, verifier="some/model")
    assert Reader.said == [("Question?", name) for name in ("bad", "good", "worse", "x")]  # 0.95 and 0.001 are sure
    assert {name: row["verifier_score"] for name, row in found.items()} == {
        "bad": -4.0, "good": 3.0, "worse": -6.0, "x": 2.0,
    }  # fmt: skip
    assert {row["verifier_positive_max"] for name, row in found.items() if name != "x"} == {2.0}
    # nothing is hidden here, so p is only raised: to the odds that it beats the positive, sigmoid(3 - 2)
    after = {name: row["p_false_negative"] for name, row in found.items()}
    assert after == {
        "bad": pytest.approx(0.4),
        "good": pytest.approx(0.7311, abs=1e-4),
        "worse": pytest.approx(0.1),
        "x": None,
    }
    assert summary["verifier"]["is_used"] is False


def test_a_judge_is_asked_where_its_verdict_changes_most(inputs: dict[str, Path], tmp_path: Path) -> None:
    found, summary = verified(inputs, tmp_path, llm_judge="http://here/v1", llm_judge_model="m", llm_judge_budget=3)
    assert len(Court.said) == 3
    assert {text for _, text in Court.said} >= {"bad", "worse"}  # emitted with p 0.4 and 0.1
    assert found["bad"]["llm_judge"] is False
    assert found["bad"]["p_false_negative"] == pytest.approx(P_JUDGED_NOT_RELEVANT)
    assert "worse" not in found  # no verdict
    assert summary["llm_judge"] == {"model": "m", "failed": 1}
    assert summary["complete"] is False  # "worse" is asked again in the next run
    found, _ = verified(inputs, tmp_path, llm_judge="http://here/v1", llm_judge_model="m", llm_judge_budget=100)
    assert found["good"]["p_false_negative"] == pytest.approx(P_JUDGED_RELEVANT)


def test_both_are_heard(inputs: dict[str, Path], tmp_path: Path) -> None:
    found, _ = verified(inputs, tmp_path, verifier="some/model", llm_judge="http://here/v1", llm_judge_model="m")
    assert found["good"]["verifier_score"] == 3.0
    assert found["good"]["p_false_negative"] == pytest.approx(P_JUDGED_RELEVANT)
    assert found["worse"]["p_false_negative"] == pytest.approx(0.1)


def test_a_table_too_small_for_a_self_taught_teacher_goes_on_without_one(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    write(tmp_path, candidates=table(schemas.CANDIDATES))
    given = inputs | {"candidates": tmp_path / "candidates.parquet"}
    found, summary = verified(given, tmp_path, verifier="self")
    assert found == {}
    assert "too few" in summary["verifier"]["reason"]


def test_without_an_estimate_there_is_no_doubt_to_ask_about(inputs: dict[str, Path], tmp_path: Path) -> None:
    inputs["estimator"].write_text(
        json.dumps({"source": None, "unreliable_reason": "estimate is switched off", "models": {}})
    )
    with pytest.raises(InputError, match="estimate is switched off"):
        verified(inputs, tmp_path, verifier="some/model")


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (
            {"verifier": "some/model"},
            "no verifier is used: the estimate of false negatives is not reliable here, since too odd",
        ),
        (
            {"verifier": "self"},
            "no verifier is used: the estimate of false negatives is not reliable here, since too odd",
        ),
        ({"llm_judge": "http://here/v1", "llm_judge_model": "m"}, "no LLM judge is used: the estimate"),
        (
            {"verifier": "self", "llm_judge": "http://here/v1", "llm_judge_model": "m"},
            "no verifier nor LLM judge is used: the estimate",
        ),
        ({}, None),
    ],
)
def test_a_table_whose_estimate_can_t_be_trusted_goes_on_and_says_that_nobody_is_asked(
    inputs: dict[str, Path], tmp_path: Path, asked: dict[str, str], says: str | None
) -> None:
    inputs["estimator"].write_text(json.dumps({"source": "pretrained", "unreliable_reason": "too odd", "models": {}}))
    Reader.said, Court.said = [], []
    given, out = tools(tmp_path), tmp_path / "out"
    out.mkdir()
    summary = verify_stage.run(Params(**asked), inputs, out, given)  # type: ignore[arg-type]
    assert (Reader.said, Court.said) == ([], [])
    assert schemas.read_table(out / "verifier_scores.parquet", schemas.VERIFIER_SCORES).is_empty()
    assert summary == ({"n_pairs": 0, "skipped_reason": "too odd"} if says else {"n_pairs": 0})
    lines = given.progress.messages  # type: ignore[attr-defined]
    assert len(lines) == (1 if says else 0)
    assert all(line.startswith(says) for line in lines)
