"""The stage on a tiny random BERT: the same bytes every time, also after a kill; and what it says of itself."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from stages.core.context import StageContext, Summary
from stages.core.errors import InputError
from stages.core.model_files import model_digest
from stages.core.schemas import CANDIDATES, CORPUS, QRELS, QUERIES, write_table
from stages.evaluation.candidate_lists import CandidateLists
from stages.reranking.cross_encoder import load_reranker, save_reranker
from stages.training import losses, trainer
from stages.training import stage as training_stage
from stages.training.dataset import EpochBatchSampler
from stages.training.stage import Params, build_dev_evaluation, detect_training_collapse
from stages.training.trainer import TrainingHistory, summarise_log_history

ROOT = Path(__file__).parents[4]
TRAIN, DEV = 21, 4
STEPS = 6
"""21 groups in batches of 4: six steps an epoch, the last of one group."""


class Log:
    """Progress that remembers, and stops the training at a step by what it is told to do there."""

    def __init__(self, at: int = 0, stop: Callable[[], None] | None = None) -> None:
        self.said: list[str] = []
        self.steps: list[tuple[int, int | None]] = []
        self.at, self.stop = at, stop

    def advance(self, done: int, total: int | None, unit: str, tokens: int = 0) -> None:
        self.steps.append((done, total))
        if self.stop and done == self.at:
            self.stop()

    def log(self, message: str) -> None:
        self.said.append(message)


class Killed(Exception):
    """Stands for a kill within one process."""


def kill() -> None:
    raise Killed


def make_inputs(folder: Path, negatives: int = 5) -> dict[str, Path]:
    """Documents with a z are right for every question, others wrong; the last query has fewer negatives."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = "abcdefghijkl"
    texts = {f"d{i:02}": " ".join(letters[(i * k + k) % 12] for k in range(3 + i % 5)) for i in range(40)}
    right = {f"q{i:02}": f"d{i:02}" for i in range(TRAIN + DEV)}
    texts |= {doc_id: f"{texts[doc_id]} z z z" for doc_id in right.values()}
    wrong = [f"d{i:02}" for i in range(TRAIN + DEV, 40)]
    split = {query_id: "train" if i < TRAIN else "dev" for i, query_id in enumerate(right)}
    queries = pl.DataFrame(
        {"query_id": list(right), "query": [f"find {q}" for q in right], "split": list(split.values())}
    )
    write_table(queries.with_columns(group="query_id"), QUERIES, folder / "queries.parquet")
    write_table(pl.DataFrame({"doc_id": list(texts), "text": list(texts.values())}), CORPUS, folder / "corpus.parquet")
    judged = pl.DataFrame({"query_id": list(right), "doc_id": list(right.values())})
    write_table(judged.with_columns(relevance=pl.lit(1, pl.Int32)), QRELS, folder / "qrels.parquet")
    found = [(q, d, "dense", rank, 1 / rank) for q in right for rank, d in enumerate([*wrong[:6], right[q]], 1)]
    candidates = pl.DataFrame(found, schema=["query_id", "doc_id", "source", "rank", "score"], orient="row")
    write_table(candidates, CANDIDATES, folder / "candidates.parquet")
    lines = []
    for i, (query_id, doc_id) in enumerate(right.items()):
        chosen = wrong[: 2 if i == 3 else negatives]
        row = {"query_id": query_id, "query": f"find {query_id}", "pos": [texts[doc_id]], "pos_ids": [doc_id]}
        row |= {
            "neg": [texts[d] for d in chosen],
            "neg_ids": chosen,
            "pos_scores": [1.0],
            "neg_scores": [0.1] * len(chosen),
        }
        lines += [json.dumps(row)] * (split[query_id] == "train")
    (folder / "mined.jsonl").write_text("\n".join(lines) + "\n")
    names = ("queries.parquet", "corpus.parquet", "qrels.parquet", "candidates.parquet", "mined.jsonl")
    return {Path(name).stem: folder / name for name in names}


def run(
    params: Params, inputs: Mapping[str, Path], folder: Path, log: Log | None = None
) -> tuple[Summary, dict[str, Any]]:
    """Run the stage with its scratch in `folder`; the summary and training.json."""
    out = folder / "out"
    out.mkdir(parents=True, exist_ok=True)
    (folder / "scratch").mkdir(exist_ok=True)
    summary = training_stage.run(
        params, inputs, out, StageContext(log or Log(), folder / "scratch", folder, folder / "logs")
    )
    return summary, json.loads((out / "training.json").read_text())


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model is faster on one; and runs of the same number of threads are what is the same to the bit."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def params(tiny_model: Path) -> Params:
    return settings(tiny_model)


def settings(model: Path) -> Params:
    # dropout on: a resume has to bring back the state of the random numbers as well
    return Params(
        base=str(model),
        negatives=4,
        batch_size=4,
        max_length=32,
        learning_rate=3e-3,
        dropout=0.1,
        distill_epochs=0,
        device="cpu",
    )


@pytest.fixture(scope="module")
def undisturbed(
    tiny_model: Path, inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Summary, dict[str, Any], Log]:
    """A run from nothing to the end, with a checkpoint every 2 steps: its folder and what it said."""
    folder, log = tmp_path_factory.mktemp("undisturbed"), Log()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "CHECKPOINT_STEPS", 2)
        summary, report = run(settings(tiny_model), inputs, folder, log)
    return folder, summary, report, log


def test_it_learns_and_says_so(undisturbed: tuple[Path, Summary, dict[str, Any], Log]) -> None:
    folder, summary, report, log = undisturbed
    assert summary["collapse_reason"] is None
    assert report["has_new_head"] is True
    assert report["n_steps"] == 2 * STEPS
    assert [epoch["epoch"] for epoch in report["epochs"]] == [1, 2]
    assert report["epochs"][1]["loss"] < report["epochs"][0]["loss"]
    # 20 groups of 1 + 4, one of 1 + 2, two epochs
    assert report["n_pairs"] == 2 * (20 * 5 + 3)
    assert np.log(3) < report["chance_loss"] < np.log(5)
    # with a z in the right document alone, every dev query is won
    assert summary["dev_MRR@10"] == report["epochs"][report["best_epoch"] - 1]["MRR@10"] == 1.0
    assert log.steps == [(step, 2 * STEPS) for step in range(1, 2 * STEPS + 1)]
    assert any(path.name.startswith("events.out.tfevents") for path in (folder / "logs").iterdir())
    names = {path.name for path in (folder / "out" / "reranker").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert "README.md" not in names


def test_two_runs_from_nothing_give_the_same_bytes(
    params: Params, inputs: dict[str, Path], undisturbed: tuple[Path, Summary, dict[str, Any], Log], tmp_path: Path
) -> None:
    # nor does it matter how often checkpoints are written (the steps between them only change how losses are summed)
    run(params, inputs, tmp_path)
    first, second = digests(undisturbed[0] / "out"), digests(tmp_path / "out")
    assert first.pop("training.json") and second.pop("training.json")
    assert first == second


@pytest.mark.parametrize("step", [5, STEPS, 2 * STEPS])
def test_a_resumed_run_gives_the_bytes_of_an_undisturbed_one(
    params: Params,
    inputs: dict[str, Path],
    undisturbed: tuple[Path, Summary, dict[str, Any], Log],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    monkeypatch.setattr(trainer, "CHECKPOINT_STEPS", 2)
    with pytest.raises(Killed):
        run(params, inputs, tmp_path, Log(step, kill))
    log = Log()
    run(params, inputs, tmp_path, log)
    assert len(log.steps) < 2 * STEPS
    assert "it goes on after step" in log.said[0]
    assert digests(tmp_path / "out") == digests(undisturbed[0] / "out")


def test_the_weights_of_negatives_reach_the_loss(params: Params, inputs: dict[str, Path], tmp_path: Path) -> None:
    lines = [json.loads(line) for line in inputs["mined"].read_text().splitlines()]
    weighed = [line | {"neg_weights": [0.25] * len(line["neg"])} for line in lines]
    (tmp_path / "mined.jsonl").write_text("".join(json.dumps(line) + "\n" for line in weighed))
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        plain = losses.listwise_loss
        patch.setitem(losses.LOSSES, "listwise", lambda *given: (seen.append(given[1:]), plain(*given))[1])
        run(params.model_copy(update={"epochs": 1}), inputs | {"mined": tmp_path / "mined.jsonl"}, tmp_path / "weighed")
    assert len(seen) == STEPS
    for sizes, weights in seen:
        assert weights.tolist() == [weight for size in sizes for weight in [1.0] + [0.25] * (size - 1)]


def test_a_new_head_learns_the_retriever_first_and_a_kill_changes_nothing(
    params: Params, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lesson = params.model_copy(update={"distill_epochs": None, "epochs": 1})
    log, called = Log(), []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("distillation_loss", "listwise_loss"):
            spied = getattr(losses, name)
            patch.setattr(losses, name, lambda *given, f=spied, n=name: (called.append((n, given[2:])), f(*given))[1])
        patch.setitem(losses.LOSSES, "listwise", losses.listwise_loss)
        summary, report = run(lesson, inputs, tmp_path / "whole", log)
    assert [name for name, _ in called] == ["distillation_loss"] * STEPS + ["listwise_loss"] * STEPS
    assert all(max(group) > min(group) for _, (labels,) in called[:STEPS] for group in labels)
    assert summary["collapse_reason"] is None
    assert report["n_distill_epochs"] == 1
    assert len(report["epochs"]) == 2
    assert report["n_steps"] == 2 * STEPS
    assert "the head is new: epoch 1 to 1 of 2 learn the retriever's own scores" in log.said
    monkeypatch.setattr(trainer, "CHECKPOINT_STEPS", 2)
    with pytest.raises(Killed):
        run(lesson, inputs, tmp_path / "killed", Log(3, kill))
    run(lesson, inputs, tmp_path / "killed")
    whole, killed = digests(tmp_path / "whole" / "out"), digests(tmp_path / "killed" / "out")
    assert whole.pop("training.json") and killed.pop("training.json")  # how losses are summed hangs on the checkpoints
    assert killed == whole
    trained = params.model_copy(update={"base": str(tmp_path / "whole" / "out" / "reranker"), "distill_epochs": None})
    assert run(trained.model_copy(update={"epochs": 1}), inputs, tmp_path / "on")[1]["n_distill_epochs"] == 0


def test_a_killed_process_leaves_nothing_that_shows(
    params: Params, inputs: dict[str, Path], undisturbed: tuple[Path, Summary, dict[str, Any], Log], tmp_path: Path
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "tests.unit.stages.training.test_stage",
        params.base,
        str(inputs["mined"].parent),
        str(tmp_path),
    ]
    killed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list((tmp_path / "scratch").glob("checkpoint-*"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "CHECKPOINT_STEPS", 2)
        run(params, inputs, tmp_path)
    assert digests(tmp_path / "out") == digests(undisturbed[0] / "out")


def test_training_that_was_done_is_not_done_again(
    params: Params, inputs: dict[str, Path], undisturbed: tuple[Path, Summary, dict[str, Any], Log]
) -> None:
    folder = undisturbed[0]
    before = digests(folder / "out")
    log = Log()
    run(params, inputs, folder, log)
    assert log.steps == []
    assert digests(folder / "out") == before


def test_without_a_dev_query_the_last_epoch_is_kept(params: Params, inputs: dict[str, Path], tmp_path: Path) -> None:
    queries = pl.read_parquet(inputs["queries"]).filter(pl.col("split") == "train")
    write_table(queries, QUERIES, tmp_path / "queries.parquet")
    log = Log()
    summary, report = run(params, {**inputs, "queries": tmp_path / "queries.parquet"}, tmp_path, log)
    assert report["best_epoch"] == 2
    assert report["epochs"][1].keys() == {"epoch", "loss"}
    assert "dev_MRR@10" not in summary
    assert any("the last epoch's weights are kept" in line for line in log.said)


def test_pointwise_trains_too(params: Params, inputs: dict[str, Path], tmp_path: Path) -> None:
    _, report = run(params.model_copy(update={"loss": "pointwise"}), inputs, tmp_path)
    assert 0.5 < report["chance_loss"] < 0.57, "about the entropy of one in five"
    assert report["epochs"][1]["loss"] < report["epochs"][0]["loss"]


def test_a_model_whose_scores_are_all_alike_is_a_collapse(
    params: Params, inputs: dict[str, Path], tmp_path: Path
) -> None:
    model = load_reranker(Path(params.base), "cpu")
    model.model.classifier.weight.data.zero_()
    save_reranker(model, tmp_path / "base")
    still = params.model_copy(update={"base": str(tmp_path / "base"), "learning_rate": 1e-12})
    summary, report = run(still, inputs, tmp_path)
    assert report["has_new_head"] is False
    assert report["epochs"][1]["loss"] == pytest.approx(report["chance_loss"])
    assert (
        summary["collapse_reason"]
        == report["collapse_reason"]
        == "it gives all candidates of a dev query the same score"
    )
    assert (tmp_path / "out" / "reranker" / "model.safetensors").exists()


def test_a_loss_that_is_no_number_is_a_collapse(
    params: Params, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(losses.LOSSES, "listwise", lambda scores, sizes, weights: scores.sum() * float("nan"))
    summary, report = run(params, inputs, tmp_path)
    assert summary["collapse_reason"] == "the loss of epoch 1 is no number (not finite)"
    assert report["n_steps"] < 2 * STEPS
    assert (tmp_path / "out" / "reranker" / "model.safetensors").exists()


def test_the_base_enters_the_key_by_its_content(tiny_model: Path) -> None:
    assert training_stage.key_extras(Params(base=str(tiny_model))).keys() == {"base"}
    assert Params.fields_with_mark("unkeyed") == {"base", "device"}
    with pytest.raises(InputError, match="no model folder at /no/such"):
        training_stage.key_extras(Params(base="/no/such"))


def test_the_result_names_the_base_without_its_path(
    tiny_model: Path, undisturbed: tuple[Path, Summary, dict[str, Any], Log]
) -> None:
    folder, _, report, _ = undisturbed
    assert report["base_model"] == tiny_model.name
    assert report["base_model_digest"] == model_digest(tiny_model)
    files = [path for path in (folder / "out").rglob("*") if path.is_file()]
    assert [path for path in files if str(tiny_model.parent).encode() in path.read_bytes()] == []


def test_a_seed_is_one_that_numpy_takes() -> None:
    assert Params(seed=2**32 - 1).seed == 2**32 - 1
    with pytest.raises(ValidationError):
        Params(seed=2**32)


def test_dev_figures_by_hand_with_ties_against_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = pl.DataFrame(
        {
            "list": "dev",
            "query_id": ["a", "a", "a", "b", "b"],
            "doc_id": ["d1", "d2", "d3", "d1", "d2"],
            "relevance": [1, 0, 0, 0, 1],
            "embedder": [0.9, 0.8, 0.7, 0.9, 0.8],
        }
    )
    queries = pl.DataFrame({"split": "dev", "query_id": ["a", "b"], "query": ["qa", "qb"], "group": ["a", "b"]})
    qrels = lists.filter(pl.col("relevance") > 0).select("query_id", "doc_id", "relevance")
    write_table(
        pl.DataFrame({"doc_id": ["d1", "d2", "d3"], "text": ["t1", "t2", "t3"]}), CORPUS, tmp_path / "c.parquet"
    )
    scores = {("qa", "t1"): 1.0, ("qa", "t2"): 1.0, ("qa", "t3"): 0.0, ("qb", "t1"): 0.0, ("qb", "t2"): 3.0}
    monkeypatch.setattr(
        training_stage,
        "score_pairs",
        lambda model, pairs, dtype: np.array([scores[pair] for pair in pairs], np.float32),
    )
    measure = build_dev_evaluation(CandidateLists(queries, qrels, lists, {"dev": 2}), tmp_path / "c.parquet", "float32")
    # a: the positive ties with a wrong document, so it is second; b: first
    figures = measure(None)  # type: ignore[arg-type]
    assert figures["MRR@10"] == pytest.approx((1 / 2 + 1) / 2)
    assert figures["nDCG@10"] == pytest.approx((1 / np.log2(3) + 1) / 2)
    assert figures["max_score_range"] == 3.0


EPOCH = {"epoch": 1, "loss": 0.9, "nDCG@10": 0.5, "max_score_range": 1.0}


@pytest.mark.parametrize(
    ("epochs", "taught", "best", "said"),
    [
        ([EPOCH], 0, 1, None),
        ([EPOCH | {"loss": 0.998}], 0, 1, "the loss of epoch 1, the one that is kept, is 0.9980"),
        ([EPOCH | {"loss": None}], 1, 1, "the loss of epoch 1 is no number"),
        ([EPOCH | {"max_score_range": 0.0}], 1, 1, "the same score"),
        ([{"epoch": 1, "loss": 0.2}], 0, 1, None),
        # an epoch that is not kept does not count
        ([EPOCH, EPOCH | {"epoch": 2, "loss": 1.1}], 0, 1, None),
        ([EPOCH, EPOCH | {"epoch": 2, "loss": 1.1}], 0, 2, "the loss of epoch 2"),
        # the lesson has learned, so the judged epoch may lose more than chance
        ([EPOCH, EPOCH | {"epoch": 2, "loss": 1.1}], 1, 2, None),
        ([EPOCH | {"loss": 1.0}, EPOCH | {"epoch": 2, "loss": 1.1}], 1, 2, "the loss of epoch 2"),
        ([EPOCH | {"loss": 1.0}, EPOCH | {"epoch": 2, "loss": 1.1}], 1, 1, "the loss of epoch 1"),
        ([EPOCH | {"loss": 1.0}, EPOCH | {"epoch": 2, "loss": 0.9}], 1, 2, None),
    ],
)
def test_collapse_is_named(epochs: list[dict[str, Any]], taught: int, best: int, said: str | None) -> None:
    found = detect_training_collapse(TrainingHistory(7, epochs, best, None), [1.0, 1.0], taught)
    assert found is None if said is None else said in str(found)


def test_batches_do_not_span_epochs() -> None:
    batches = EpochBatchSampler([5, 5], 2)
    assert list(batches) == [[0, 1], [2, 3], [4], [5, 6], [7, 8], [9]]
    assert len(batches) == 6


def test_epoch_losses_are_means_over_steps() -> None:
    log = [
        {"step": 2, "loss": 4.0},
        {"step": 3, "eval_nDCG@10": 0.5},
        {"step": 3, "loss": 1.0},
        {"step": 5, "loss": 2.0},
        {"step": 6, "loss": float("nan")},
        {"step": 6, "train_loss": 9.0},
    ]
    assert summarise_log_history(log, 3) == [{"epoch": 1, "loss": 3.0, "nDCG@10": 0.5}, {"epoch": 2, "loss": None}]


if __name__ == "__main__":
    trainer.CHECKPOINT_STEPS = 2
    base, folder, work = map(Path, sys.argv[1:])
    given = {path.stem: path for path in folder.iterdir()}
    run(settings(base), given, work, Log(STEPS + 3, lambda: os.kill(os.getpid(), signal.SIGKILL)))
