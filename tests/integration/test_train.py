"""The step on a tiny random BERT: what it learns, writes and logs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from stages.core.context import Summary
from stages.core.errors import InputError
from stages.core.model_files import model_digest
from stages.core.schemas import QUERIES, write_table
from stages.reranking.cross_encoder import load_reranker, save_reranker
from stages.training import losses
from stages.training import stage as training_stage
from stages.training.params import Params
from tests.fakes import RecordedProgress
from tests.small_training import STEPS, run, settings

pytestmark = pytest.mark.usefixtures("one_thread")

Run = tuple[Path, Summary, dict[str, Any], RecordedProgress]


@pytest.fixture(scope="module")
def finished_run(tiny_model: Path, training_inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A training to the end: its folder, summary, report and progress."""
    folder, progress = tmp_path_factory.mktemp("finished"), RecordedProgress()
    summary, report = run(settings(tiny_model), training_inputs, folder, progress)
    return folder, summary, report, progress


def test_a_training_lowers_the_loss_and_writes_a_model(finished_run: Run) -> None:
    folder, summary, report, progress = finished_run
    assert summary["collapse_reason"] is None
    assert report["has_new_head"] is True
    assert report["n_steps"] == 2 * STEPS
    assert [epoch["epoch"] for epoch in report["epochs"]] == [1, 2]
    assert report["epochs"][1]["loss"] < report["epochs"][0]["loss"]
    # 20 groups of 1 + 4, one of 1 + 2, two epochs
    assert report["n_pairs"] == 2 * (20 * 5 + 3)
    assert np.log(3) < report["chance_loss"] < np.log(5)
    # the relevant document alone holds a z, so every dev query has it first
    assert summary["dev_MRR@10"] == report["epochs"][report["best_epoch"] - 1]["MRR@10"] == 1.0
    assert progress.reports == [(step, 2 * STEPS, "steps", 0) for step in range(1, 2 * STEPS + 1)]
    assert any(path.name.startswith("events.out.tfevents") for path in (folder / "logs").iterdir())
    names = {path.name for path in (folder / "out" / "reranker").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert "README.md" not in names


def test_the_weights_of_negatives_reach_the_loss(
    training_params: Params, training_inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [json.loads(line) for line in training_inputs["mined"].read_text().splitlines()]
    weighted = [row | {"neg_weights": [0.25] * len(row["neg"])} for row in rows]
    (tmp_path / "mined.jsonl").write_text("".join(json.dumps(row) + "\n" for row in weighted))
    calls, listwise_loss = [], losses.listwise_loss
    monkeypatch.setitem(losses.LOSSES, "listwise", lambda *given: (calls.append(given[1:]), listwise_loss(*given))[1])
    inputs = training_inputs | {"mined": tmp_path / "mined.jsonl"}
    run(training_params.model_copy(update={"epochs": 1}), inputs, tmp_path / "weighted")
    assert len(calls) == STEPS
    for sizes, weights in calls:
        assert weights.tolist() == [weight for size in sizes for weight in [1.0] + [0.25] * (size - 1)]


def test_a_new_head_has_an_epoch_of_distillation_first(
    training_params: Params, training_inputs: dict[str, Path], tmp_path: Path
) -> None:
    one_epoch = training_params.model_copy(update={"distill_epochs": None, "epochs": 1})
    calls: list[tuple[str, Any]] = []
    progress = RecordedProgress()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("distillation_loss", "listwise_loss"):
            loss = getattr(losses, name)
            patch.setattr(losses, name, lambda *given, f=loss, n=name: (calls.append((n, given[2:])), f(*given))[1])
        patch.setitem(losses.LOSSES, "listwise", losses.listwise_loss)
        summary, report = run(one_epoch, training_inputs, tmp_path / "new_head", progress)
    assert [name for name, _ in calls] == ["distillation_loss"] * STEPS + ["listwise_loss"] * STEPS
    assert all(max(group) > min(group) for _, (labels,) in calls[:STEPS] for group in labels)
    assert summary["collapse_reason"] is None
    assert report["n_distill_epochs"] == 1
    assert len(report["epochs"]) == 2
    assert report["n_steps"] == 2 * STEPS
    [plan] = [message for message in progress.messages if "distillation" in message]
    assert plan.startswith("the base model has no ranking head: 1 epoch of distillation ")
    assert plan.endswith(" + 1 epoch of training")
    assert progress.messages.index(plan) == 0, "before the first step"
    cross_encoder = one_epoch.model_copy(update={"base": str(tmp_path / "new_head" / "out" / "reranker")})
    progress = RecordedProgress()
    assert run(cross_encoder, training_inputs, tmp_path / "cross_encoder", progress)[1]["n_distill_epochs"] == 0
    assert not any("distillation" in message for message in progress.messages)


def test_without_dev_queries_the_last_epoch_is_kept(
    training_params: Params, training_inputs: dict[str, Path], tmp_path: Path
) -> None:
    queries = pl.read_parquet(training_inputs["queries"]).filter(pl.col("split") == "train")
    write_table(queries, QUERIES, tmp_path / "queries.parquet")
    summary, report = run(training_params, {**training_inputs, "queries": tmp_path / "queries.parquet"}, tmp_path)
    assert report["best_epoch"] == 2
    assert report["epochs"][1].keys() == {"epoch", "loss"}
    assert "dev_MRR@10" not in summary


def test_the_pointwise_loss_falls(training_params: Params, training_inputs: dict[str, Path], tmp_path: Path) -> None:
    _, report = run(training_params.model_copy(update={"loss": "pointwise"}), training_inputs, tmp_path)
    assert 0.5 < report["chance_loss"] < 0.57, "about the entropy of one in five"
    assert report["epochs"][1]["loss"] < report["epochs"][0]["loss"]


def test_a_model_that_gives_equal_scores_is_a_collapse(
    training_params: Params, training_inputs: dict[str, Path], tmp_path: Path
) -> None:
    model = load_reranker(Path(training_params.base), "cpu")
    model.model.classifier.weight.data.zero_()
    save_reranker(model, tmp_path / "base")
    constant = training_params.model_copy(update={"base": str(tmp_path / "base"), "learning_rate": 1e-12})
    summary, report = run(constant, training_inputs, tmp_path)
    assert report["has_new_head"] is False
    assert report["epochs"][1]["loss"] == pytest.approx(report["chance_loss"])
    assert (
        summary["collapse_reason"]
        == report["collapse_reason"]
        == "it gives all candidates of a dev query the same score"
    )
    assert (tmp_path / "out" / "reranker" / "model.safetensors").exists()


def test_a_loss_that_is_not_finite_ends_the_training_as_a_collapse(
    training_params: Params, training_inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(losses.LOSSES, "listwise", lambda scores, sizes, weights: scores.sum() * float("nan"))
    summary, report = run(training_params, training_inputs, tmp_path)
    assert summary["collapse_reason"] == "the loss of epoch 1 is not finite"
    assert report["n_steps"] == 1
    assert (tmp_path / "out" / "reranker" / "model.safetensors").exists()


def test_the_base_model_enters_the_key_by_its_content(tiny_model: Path) -> None:
    assert training_stage.key_extras(Params(base=str(tiny_model))).keys() == {"base"}
    assert Params.fields_with_mark("unkeyed") == {"base", "device"}
    with pytest.raises(InputError, match="/no/such"):
        training_stage.key_extras(Params(base="/no/such"))


def test_the_result_names_the_base_model_without_its_path(tiny_model: Path, finished_run: Run) -> None:
    folder, _, report, _ = finished_run
    assert report["base_model"] == tiny_model.name
    assert report["base_model_digest"] == model_digest(tiny_model)
    files = [path for path in (folder / "out").rglob("*") if path.is_file()]
    assert [path for path in files if str(tiny_model.parent).encode() in path.read_bytes()] == []


def test_a_seed_is_one_that_numpy_takes() -> None:
    assert Params(seed=2**32 - 1).seed == 2**32 - 1
    with pytest.raises(ValidationError):
        Params(seed=2**32)
