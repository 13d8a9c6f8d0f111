"""Which pairs the verifier and the LLM judge read, and the updated p: with fakes that answer by the text."""

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


class FakeVerifier:
    """Gives each text its logit."""

    pairs: list[tuple[str, str]]

    def __init__(self, *_: object) -> None:
        self.counts = {"scored": 0, "cached": 0}

    def score_pairs(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        FakeVerifier.pairs = pairs
        self.counts["scored"] += len(pairs)
        return np.array([LOGIT[text] for _, text in pairs], np.float32)


class FakeJudge:
    """An LLM judge that finds "good" relevant and gives no verdict on "worse"."""

    pairs: list[tuple[str, str]]

    def __init__(self, url: str, model: str, *_: object) -> None:
        self.summary = {"model": model, "failed": 0}

    def judge_pairs(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        FakeJudge.pairs = pairs
        verdicts = np.array([{"good": 1.0, "worse": np.nan}.get(text, 0.0) for _, text in pairs], np.float32)
        self.summary["failed"] = int(np.isnan(verdicts).sum())
        return verdicts


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    monkeypatch.setattr(cross_encoder, "CrossEncoderVerifier", FakeVerifier)
    monkeypatch.setattr(llm_judge, "LLMJudge", FakeJudge)
    monkeypatch.setattr(verify_stage, "model_digest", lambda _: "digest")
    # q needs three negatives of five candidates; good is more likely false than not; t is in the test split
    p = {"sure": 0.95, "good": 0.6, "bad": 0.4, "worse": 0.1, "easy": 0.001}
    rows = [("q", doc, "dense", i + 1, 0.9 - 0.1 * i) for i, doc in enumerate(p)] + [("t", "good", "dense", 1, 0.9)]
    features = table(schemas.CANDIDATE_FEATURES, *[(*row, *[None] * 5, p[row[1]]) for row in rows]).with_columns(
        *(pl.lit(None, pl.Float32).alias(name) for name in schemas.FEATURES)
    )
    paths = write(
        tmp_path,
        queries=table(schemas.QUERIES, ("q", "Question?", "train", "q"), ("t", "Tested?", "test", "t")),
        corpus=table(schemas.CORPUS, *((name, name) for name in sorted([*LOGIT, "easy"]))),
        qrels_scored=table(schemas.QRELS_SCORED, ("q", "x", 1, 0.95), ("t", "x", 1, 0.95)),
        features=features,
    )
    schemas.write_table(
        table(schemas.HOLDOUT_CANDIDATES), schemas.HOLDOUT_CANDIDATES, tmp_path / "holdout_candidates.parquet"
    )
    (tmp_path / "estimator.json").write_text(
        json.dumps({"source": "pretrained", "unreliable_reason": None, "models": {}})
    )
    return paths | {
        "holdout_candidates": tmp_path / "holdout_candidates.parquet",
        "estimator": tmp_path / "estimator.json",
    }


def run(inputs: dict[str, Path], folder: Path, **settings: object) -> tuple[dict[str, dict], dict]:
    out = folder / "out"
    out.mkdir(exist_ok=True)
    params = Params(**{"num_negatives": 3, "max_false_negatives": 0.3, **settings})  # type: ignore[arg-type]
    summary = verify_stage.run(params, inputs, out, tools(folder))
    found = schemas.read_table(out / "verifier_scores.parquet", schemas.VERIFIER_SCORES)
    assert found["query_id"].is_in(["q"]).all()
    return {row["doc_id"]: row for row in found.iter_rows(named=True)}, summary


def test_without_verifier_and_llm_judge_nothing_is_read(inputs: dict[str, Path], tmp_path: Path) -> None:
    assert run(inputs, tmp_path) == ({}, {"n_pairs": 0})


def test_the_verifier_scores_uncertain_candidates_and_positives(inputs: dict[str, Path], tmp_path: Path) -> None:
    # 0.3 x 3 negatives: 0.6 + 0.4 is too much; the candidates with 0.4, 0.1 and 0.001 are selected
    found, summary = run(inputs, tmp_path, verifier="some/model")
    assert FakeVerifier.pairs == [
        ("Question?", name) for name in ("bad", "good", "worse", "x")
    ]  # 0.95 and 0.001 are certain
    assert {name: row["verifier_score"] for name, row in found.items()} == {
        "bad": -4.0, "good": 3.0, "worse": -6.0, "x": 2.0,
    }  # fmt: skip
    assert {row["verifier_positive_max"] for name, row in found.items() if name != "x"} == {2.0}
    # there are no held-out positives, so p is only raised: to sigmoid(3 - 2), the odds against the positive
    after = {name: row["p_false_negative"] for name, row in found.items()}
    assert after == {
        "bad": pytest.approx(0.4),
        "good": pytest.approx(0.7311, abs=1e-4),
        "worse": pytest.approx(0.1),
        "x": None,
    }
    assert summary["verifier"]["is_used"] is False


def test_the_llm_judge_reads_the_pairs_of_the_highest_label_value(inputs: dict[str, Path], tmp_path: Path) -> None:
    found, summary = run(inputs, tmp_path, llm_judge="http://here/v1", llm_judge_model="m", llm_judge_budget=3)
    assert len(FakeJudge.pairs) == 3
    assert {text for _, text in FakeJudge.pairs} >= {"bad", "worse"}  # selected with p 0.4 and 0.1
    assert found["bad"]["llm_judge"] is False
    assert found["bad"]["p_false_negative"] == pytest.approx(P_JUDGED_NOT_RELEVANT)
    assert "worse" not in found  # no verdict
    assert summary["llm_judge"] == {"model": "m", "failed": 1}
    assert summary["complete"] is False  # the next run tries "worse" again
    found, _ = run(inputs, tmp_path, llm_judge="http://here/v1", llm_judge_model="m", llm_judge_budget=100)
    assert found["good"]["p_false_negative"] == pytest.approx(P_JUDGED_RELEVANT)


def test_verifier_and_llm_judge_together(inputs: dict[str, Path], tmp_path: Path) -> None:
    found, _ = run(inputs, tmp_path, verifier="some/model", llm_judge="http://here/v1", llm_judge_model="m")
    assert found["good"]["verifier_score"] == 3.0
    assert found["good"]["p_false_negative"] == pytest.approx(P_JUDGED_RELEVANT)
    assert found["worse"]["p_false_negative"] == pytest.approx(0.1)


def test_a_table_too_small_for_a_self_trained_verifier_uses_none(inputs: dict[str, Path], tmp_path: Path) -> None:
    write(tmp_path, candidates=table(schemas.CANDIDATES))
    with_candidates = inputs | {"candidates": tmp_path / "candidates.parquet"}
    found, summary = run(with_candidates, tmp_path, verifier="self")
    assert found == {}
    assert "are needed" in summary["verifier"]["reason"]


def test_a_verifier_without_an_estimate_is_an_error(inputs: dict[str, Path], tmp_path: Path) -> None:
    inputs["estimator"].write_text(
        json.dumps({"source": None, "unreliable_reason": "estimate is switched off", "models": {}})
    )
    with pytest.raises(InputError, match="estimate is switched off"):
        run(inputs, tmp_path, verifier="some/model")


@pytest.mark.parametrize(
    ("settings", "message"),
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
def test_an_unreliable_estimate_switches_the_verifier_off(
    inputs: dict[str, Path], tmp_path: Path, settings: dict[str, str], message: str | None
) -> None:
    inputs["estimator"].write_text(json.dumps({"source": "pretrained", "unreliable_reason": "too odd", "models": {}}))
    FakeVerifier.pairs, FakeJudge.pairs = [], []
    context, out = tools(tmp_path), tmp_path / "out"
    out.mkdir()
    summary = verify_stage.run(Params(**settings), inputs, out, context)  # type: ignore[arg-type]
    assert (FakeVerifier.pairs, FakeJudge.pairs) == ([], [])
    assert schemas.read_table(out / "verifier_scores.parquet", schemas.VERIFIER_SCORES).is_empty()
    assert summary == ({"n_pairs": 0, "skipped_reason": "too odd"} if message else {"n_pairs": 0})
    lines = context.progress.messages  # type: ignore[attr-defined]
    assert len(lines) == (1 if message else 0)
    assert all(line.startswith(message) for line in lines)
