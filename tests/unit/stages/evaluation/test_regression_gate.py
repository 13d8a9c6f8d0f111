"""The gate: its verdict by hand, and its step on small inputs."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from stages.core.context import StageContext
from stages.core.schemas import QUERIES, write_table
from stages.evaluation import regression_gate
from stages.evaluation.regression_gate import Params, compare_rerankers
from tests.unit.stages.evaluation.small_evaluation import UseScorers, run, score_equally, score_perfectly


def results(*values: float) -> pl.DataFrame:
    ids = [f"q{number}" for number in range(len(values))]
    schema = {"query_id": pl.String, "group": pl.String, "value": pl.Float64}
    return pl.DataFrame({"query_id": ids, "group": ids, "value": values}, schema=schema)


@pytest.mark.parametrize(
    ("new", "old", "verdict", "difference"),
    [
        ([0.5] * 6, [0.75] * 6, "worse", -0.25),
        ([0.75] * 6, [0.5] * 6, "better", 0.25),
        ([0.5] * 6, [0.5] * 6, "same", 0.0),
        ([1, 0, 1, 0, 1, 0], [0, 1, 0, 1, 0, 1], "same", 0.0),
        ([0] * 5, [1] * 5, "same", -1.0),  # too few groups to tell, however large the loss
    ],
)
def test_verdicts(new: list[float], old: list[float], verdict: str, difference: float) -> None:
    found = compare_rerankers(results(*new), results(*old).drop("group"), Params())
    assert (found["verdict"], found["difference"], found["n_queries"]) == (verdict, difference, len(new))


def test_a_loss_may_pass_at_a_higher_confidence() -> None:
    # five of eight queries lose, one wins: P(mean >= 0 in a sample) is about 4 %
    new, old = results(0, 0, 0, 0, 0, 1, 0, 0), results(1, 1, 1, 1, 1, 0, 0, 0)
    assert compare_rerankers(new, old, Params(confidence=0.8))["verdict"] == "worse"
    assert compare_rerankers(new, old, Params(confidence=0.99))["verdict"] == "same"


def test_the_order_of_the_queries_does_not_matter() -> None:
    new, old = results(0.1, 0.9, 0.3, 0.2, 0.5, 0.4), results(0.3, 0.8, 0.4, 0.2, 0.6, 0.1)
    assert compare_rerankers(new.reverse(), old, Params()) == compare_rerankers(new, old, Params())


def test_without_queries_the_verdict_is_same() -> None:
    found = compare_rerankers(results(), results(), Params())
    assert found == {
        "metric": "nDCG@10",
        "new_mean": None,
        "published_mean": None,
        "difference": None,
        "low": None,
        "high": None,
        "p": None,
        "verdict": "same",
        "n_queries": 0,
    }


def test_results_on_other_queries_are_an_error() -> None:
    with pytest.raises(ValueError, match="same queries"):
        compare_rerankers(results(1, 2), results(1, 2, 3), Params())


def test_an_unknown_metric_is_an_error() -> None:
    with pytest.raises(ValidationError):
        Params(metric="nDCG@7")


def run_gate(
    inputs: dict[str, Path], evaluation: Path, published: Path, context: StageContext, **settings: Any
) -> dict[str, Any]:
    """The gate's summary for the results in `evaluation` and a published reranker."""
    out = context.scratch_dir / "gate"
    out.mkdir()
    results_of_new = {
        name: evaluation / f"{name}.{kind}" for name, kind in (("per_query", "parquet"), ("metrics", "json"))
    }
    gate_inputs = {"published_reranker": published, "published_queries": inputs["queries"]} | inputs | results_of_new
    found = regression_gate.run(Params(**settings), gate_inputs, out, context)
    assert json.loads((out / "gate.json").read_text()) == found
    return found


def test_the_published_reranker_ranks_the_new_lists(
    inputs: dict[str, Path], context: StageContext, use_scorers: UseScorers
) -> None:
    use_scorers(score_equally, score_equally)
    out, _ = run(inputs, context)
    scored = use_scorers(score_perfectly)
    assert run_gate(inputs, out, out / "published", context, metric="MRR@10", bootstrap_samples=999) == {
        "metric": "MRR@10",
        "new_mean": round(1 / 3, 6),
        "published_mean": 1.0,
        "difference": round(-2 / 3, 6),
        "low": round(-2 / 3, 6),
        "high": round(-2 / 3, 6),
        "p": 0.002,
        "verdict": "worse",
        "n_queries": 8,
    }
    assert len(scored[0]) == 24  # the lists of test, without forced positives


def test_queries_that_the_published_reranker_was_trained_on_are_left_out(
    inputs: dict[str, Path], context: StageContext, use_scorers: UseScorers
) -> None:
    use_scorers(score_equally, score_equally)
    out, _ = run(inputs, context)
    before = pl.read_parquet(inputs["queries"]).filter(pl.col("query_id") != "test-2")
    was_train = pl.col("query_id").is_in(["test-0", "test-1"])
    before = before.with_columns(split=pl.when(was_train).then(pl.lit("train")).otherwise("split"))
    write_table(before, QUERIES, out / "before.parquet")
    scored = use_scorers(score_perfectly)
    found = run_gate(inputs | {"published_queries": out / "before.parquet"}, out, out / "published", context)
    assert found["n_queries"] == 6  # test-2 is new, so the published reranker has not seen it
    assert {query for query, _ in scored[0]} == {f"about {number}" for number in range(2, 8)}


def test_the_same_model_passes_without_a_difference(inputs: dict[str, Path], context: StageContext) -> None:
    out, _ = run(inputs, context, device="cpu")
    found = run_gate(inputs, out, inputs["reranker"], context, device="cpu")
    assert (found["verdict"], found["difference"], found["p"]) == ("same", 0.0, 1.0)


def test_an_empty_test_split_passes(inputs: dict[str, Path], context: StageContext) -> None:
    queries = pl.read_parquet(inputs["queries"]).with_columns(split=pl.lit("train"))
    write_table(queries, QUERIES, inputs["queries"])
    out, _ = run(inputs, context)
    found = run_gate(inputs, out, out / "published", context)
    assert (found["verdict"], found["n_queries"], found["difference"]) == ("same", 0, None)


def test_unknown_settings_of_the_evaluation_are_an_error(
    inputs: dict[str, Path], context: StageContext, use_scorers: UseScorers
) -> None:
    use_scorers(score_equally, score_equally)
    out, metrics = run(inputs, context)
    metrics["parameters"]["of_another_version"] = 1
    (out / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(ValidationError, match="of_another_version"):
        run_gate(inputs, out, out / "published", context)
