"""A refresh as its users meet it: what is published, what a second run costs, what the gate lets through."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

import pipeline.workflow.refresh
from pipeline.report.page import render_report
from pipeline.workflow.artifact_store import Workspace
from pipeline.workflow.config import load_settings
from pipeline.workflow.publish import read_latest_publication
from pipeline.workflow.runner import Runner
from stages.core.context import NullProgress
from stages.core.errors import InputError, QualityGateError
from stages.core.model_files import DEFAULT_ENCODER
from tests.conftest import ROOT, Project


def lived_in(project: Project, finished: Path) -> Project:
    """The project with a copy of a finished workspace."""
    shutil.copytree(finished, project.work, symlinks=True)
    return project


def result(project: Project, *arguments: str) -> dict:  # type: ignore[type-arg]
    """A command's JSON."""
    done = project.prep(*arguments, "--json", "-q")
    assert done.returncode == 0, done.stderr
    found: dict = json.loads(done.stdout)  # type: ignore[type-arg]
    return found


def read_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_publication_has_all_files_of_its_readers(finished: Path) -> None:
    current = finished / "current"
    assert str(current.readlink()).startswith("published/")
    # read by services under other accounts: safetensors and its like write for the owner alone
    published = [*current.resolve().rglob("*"), *(finished / "runs").rglob("*")]
    assert {path.stat().st_mode & 0o777 for path in published if path.is_file()} == {0o666 & ~read_umask()}
    assert (current / "reranker" / "model.safetensors").is_file()
    metrics = json.loads((current / "metrics.json").read_text())
    for split in ("dev", "test"):
        assert set(metrics[split]) == {"bm25", "embedder", "reranker", "fused"}
        for row in metrics[split].values():
            assert {"nDCG@10", "MRR@10", "MAP@100", "Hit@1", "Hit@3", "Hit@5"} <= set(row)
    candidates = pl.read_parquet(current / "candidates.parquet")
    verdicts = pl.read_parquet(current / "verdicts.parquet")
    assert candidates.height > 0
    assert verdicts.join(candidates, on=["query_id", "doc_id"], how="inner").height == candidates.height
    assert "<html" in (current / "report.html").read_text()[:200]


def test_other_loaders_read_mined_jsonl(finished: Path) -> None:
    from datasets import load_dataset

    path = finished / "current" / "mined.jsonl"
    rows = load_dataset("json", data_files=str(path), split="train", cache_dir=str(finished / "datasets"))
    queries = pl.read_parquet(finished / "current" / "queries.parquet")
    train = set(queries.filter(pl.col("split") == "train")["query_id"])
    assert len(rows) > 5
    for row in rows:
        assert row["query_id"] in train
        assert len(row["pos"]) == len(row["pos_ids"]) == len(row["pos_scores"]) >= 1
        assert len(row["neg"]) == len(row["neg_ids"]) == len(row["neg_scores"]) >= 1
        assert not set(row["neg"]) & set(row["pos"])


@pytest.mark.filterwarnings("ignore")
def test_flagembedding_trains_on_mined_jsonl_as_it_is(finished: Path, tiny_model: Path, tmp_path: Path) -> None:
    from FlagEmbedding.abc.finetune.reranker import AbsRerankerDataArguments, AbsRerankerTrainDataset
    from transformers import AutoTokenizer

    path = finished / "current" / "mined.jsonl"
    arguments = AbsRerankerDataArguments(
        train_data=[str(path)], cache_path=str(tmp_path), train_group_size=3, knowledge_distillation=True
    )
    examples = AbsRerankerTrainDataset(arguments, AutoTokenizer.from_pretrained(tiny_model))
    mined = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(examples) == len(mined)
    for row, (group, scores) in zip(mined, (examples[i] for i in range(len(mined))), strict=True):
        assert len(group) == 3
        assert scores[0] in row["pos_scores"]
        assert set(scores[1:]) <= set(row["neg_scores"])


def test_the_published_reranker_loads_elsewhere(finished: Path) -> None:
    from sentence_transformers import CrossEncoder
    from transformers import AutoModelForSequenceClassification

    folder = str((finished / "current" / "reranker").resolve())
    ranked = CrossEncoder(folder).rank("how long is delivery", ["two days", "in a tent"])
    assert {entry["corpus_id"] for entry in ranked} == {0, 1}
    assert AutoModelForSequenceClassification.from_pretrained(folder).config.num_labels == 1


def test_nothing_changed_runs_nothing_and_loads_no_model(project: Project, finished: Path) -> None:
    lived_in(project, finished)
    before = str((project.work / "current").readlink())
    script = (
        "import sys\nfrom pipeline.cli.main import main\nsys.argv = ['prep', 'refresh', '--json', '-q']\n"
        "try: main()\nexcept SystemExit as stop: assert stop.code == 0, stop.code\n"
        "print(sorted({'torch', 'transformers', 'sentence_transformers', 'faiss'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=project.folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    printed, loaded = done.stdout.splitlines()
    assert json.loads(printed)["status"] == "unchanged"
    assert json.loads(printed)["ran"] == []
    assert loaded == "[]"
    assert str((project.work / "current").readlink()) == before


def test_a_new_row_costs_its_own_texts_and_ends_like_a_run_from_nothing(project: Project, finished: Path) -> None:
    lived_in(project, finished)
    with (project.folder / "faq.csv").open("a", newline="") as file:
        file.write(
            "T-99999,2026-11-14,chat,can i bring a parrot,Yes.,KB-Z1,Parrots are welcome on a perch.,Shops,Pets,1\n"
        )
    encoded = result(project, "encode")["summary"]["encode"]
    assert encoded["n_encoded"] == 2
    assert encoded["n_cached"] > 50
    lived = result(project, "mine-negatives")["artifacts"]["sample"]
    fresh = result(project, "mine-negatives", "--workspace", "fresh")["artifacts"]["sample"]
    assert (project.folder / lived / "mined.jsonl").read_bytes() == (
        project.folder / fresh / "mined.jsonl"
    ).read_bytes()


def test_a_new_mask_searches_nothing_again(project: Project, finished: Path) -> None:
    lived_in(project, finished)
    assert result(project, "mine-negatives", "--rank-window", "1", "12")["ran"] == ["mask", "sample"]
    assert result(project, "mine-negatives", "--num-negatives", "2")["ran"] == ["mask", "sample"]
    assert result(project, "mine-negatives", "--sampling", "random")["ran"] == ["sample"]


def test_the_learned_mask_says_how_sure_it_is(project: Project, finished: Path) -> None:
    lived_in(project, finished)
    project.set("encode", "model", f'"{DEFAULT_ENCODER}"')  # the tests' encoder knows letters only: a misfit
    made = result(project, "mine-negatives", "--mask", "learned", "--max-false-negatives", "0.05")
    summary = made["summary"]["mask"]
    verdicts = pl.read_parquet(project.folder / made["artifacts"]["mask"] / "verdicts.parquet")
    assert summary["rule"] == "learned"
    judged = verdicts.filter(pl.col("p_false_negative").is_not_null())
    assert judged["p_false_negative"].is_between(0, 1).all()
    above = judged.filter(pl.col("p_false_negative") > pl.col("threshold"))
    assert (above["verdict"] != "negative").all()
    mined = [json.loads(line) for line in (finished / "current" / "mined.jsonl").read_text().splitlines()]
    chosen = pl.DataFrame({"query_id": [row["query_id"] for row in mined]})
    kept = verdicts.filter(pl.col("verdict") == "negative").join(chosen, on="query_id", how="semi")
    best = kept.sort("score", descending=True).group_by("query_id").head(7)
    assert best["p_false_negative"].drop_nulls().mean() <= 0.05  # type: ignore[operator]
    lines = project.prep("mine-negatives", "--mask", "learned", "--max-false-negatives", "0.05").stdout
    assert "estimate of false negatives" in lines or "validated on" in lines
    trade = result(project, "calibrate")
    shares = [row["expected"] for row in trade["budgets"]]
    assert shares == sorted(shares)
    assert all(row["expected"] <= row["max_false_negatives"] for row in trade["budgets"])
    assert {row["rule"] for row in trade["rules"]} >= {"naive", "perc 0.95", "window 10-210"}
    again = result(project, "mine-negatives", "--mask", "learned", "--max-false-negatives", "0.01")
    assert again["ran"] == ["mask", "sample"]


def test_status_lists_stale_steps_with_reasons(project: Project, finished: Path) -> None:
    lived_in(project, finished)
    assert {row["state"] for row in result(project, "status")["stages"]} == {"fresh"}
    project.set("search", "top_k", "15")
    stages = {row["stage"]: row for row in result(project, "status")["stages"]}
    assert stages["encode"]["state"] == "fresh"
    assert stages["search"] | {"made": 0} == {
        "stage": "search",
        "state": "stale",
        "made": 0,
        "folder": stages["search"]["folder"],
        "why": ["parameters.top_k: 20 -> 15"],
    }
    assert stages["mask"]["why"] == ["search, features, verify first"]
    (project.folder / "faq.csv").write_bytes((project.folder / "faq.csv").read_bytes() + b"\n")
    stages = {row["stage"]: row for row in result(project, "status")["stages"]}
    assert stages["pairs"]["why"] == ["table:faq.csv changed"]


def test_show_explains_a_verdict(project: Project, finished: Path) -> None:
    lived_in(project, finished)
    query = pl.read_parquet(project.work / "current" / "queries.parquet").row(0, named=True)
    shown = result(project, "show", query["query_id"], "--top", "4")
    assert shown["query"] == query["query"]
    assert [row["verdict"] for row in shown["documents"][:1]] == ["positive"]
    assert len([row for row in shown["documents"] if row["verdict"] != "positive"]) == 4
    assert all(row["explanation"] and row["text"] for row in shown["documents"])
    text = project.prep("show", query["query"], "-q")
    assert text.returncode == 0
    assert query["query_id"] in text.stdout
    assert "mask window: the ranks from 2 to 19" in text.stdout
    unknown = project.prep("show", "a question that nobody asked", "-q")
    assert unknown.returncode == 2
    assert "no query" in unknown.stderr


def test_show_marks_the_documents_of_mined_jsonl(project: Project, finished: Path) -> None:
    lived_in(project, finished)
    line = json.loads((project.work / "current" / "mined.jsonl").read_text().splitlines()[0])
    shown = result(project, "show", line["query_id"], "--top", "100")
    assert sorted(shown["negatives"]) == sorted(line["neg_ids"])
    for side, key in (("pos", "pos_ids"), ("neg", "neg_ids")):
        assert {row["doc_id"] for row in shown["documents"] if row["mined"] == side} == set(line[key])
    project.set("mine", "num_negatives", "1")  # a new setting, so that mined.jsonl is written under this prep.toml
    assert len(result(project, "show", line["query_id"])["negatives"]) == 1
    for name, value in (("mask", '"abs"'), ("rank_window", "[10, 210]")):
        project.set("mine", name, value)
    project.set("mine", "threshold", "-2.0")  # nothing is left to compose, which is what show is asked about
    done = project.prep("show", line["query_id"])
    assert done.returncode == 0
    assert "sample has no result: no negative is left" in done.stderr
    assert "mined.jsonl is not written yet" in done.stdout
    assert "may be a positive by the rule abs: score" in " ".join(done.stdout.split())


def test_results_are_shown_by_their_names_in_current(project: Project, finished: Path) -> None:
    lived_in(project, finished)
    project.set("mine", "num_negatives", "2")
    done = project.prep("mine-negatives", "-q")
    assert done.returncode == 0, done.stderr
    assert "runs/" not in done.stdout
    lines = done.stdout.splitlines()
    assert "in work/current: candidates.parquet" in lines
    assert any(line.startswith("not published yet: mined.jsonl, verdicts.parquet (") for line in lines)
    shutil.rmtree(next(project.work.glob("runs/pairs/*")))
    status = project.prep("status", "-q")
    assert "runs/" not in status.stdout
    assert "damaged or missing: queries.parquet" in status.stdout


def test_a_held_workspace_is_exit_75(project: Project) -> None:
    workspace = Workspace(project.work)
    with workspace.lock():
        done = project.prep("refresh", "--json")
    assert done.returncode == 75
    assert json.loads(done.stdout)["exit"] == 75
    assert f"process {os.getpid()}" in done.stderr


def test_a_collapsed_reranker_is_exit_3_and_not_published(project: Project, finished: Path) -> None:
    lived_in(project, finished)
    before = str((project.work / "current").readlink())
    project.set("train", "learning_rate", "1e-12")
    for _ in range(2):
        done = project.prep("refresh", "-q", "--force")
        assert done.returncode == 3, done.stderr
        assert "collapsed" in done.stderr
        assert str((project.work / "current").readlink()) == before


def test_the_gate_refuses_a_worse_reranker_unless_forced_and_gc_keeps_the_newest(
    project: Project, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lived_in(project, finished)
    project.set("mine", "num_negatives", "2")
    workspace = Workspace(project.work)
    before = str(workspace.current.readlink())
    params = load_settings(project.folder / "prep.toml", workspace)[0].validate_params()
    real = pipeline.workflow.refresh.run_gate(
        Runner(workspace, params, NullProgress()), bring_all(workspace, params), current(workspace), False
    )
    assert real is not None
    assert real["verdict"] in ("better", "same", "worse")
    worse = {**real, "verdict": "worse", "low": -0.3, "high": -0.1, "difference": -0.2}
    monkeypatch.setattr(pipeline.workflow.refresh, "run_gate", lambda *_: worse)
    with pytest.raises(QualityGateError, match="worse than the published one"):
        pipeline.workflow.refresh.refresh(Runner(workspace, params, NullProgress()), 3, False, render_report)
    assert str(workspace.current.readlink()) == before
    assert "worse than the published one" in result(project, "status")["refused"]["reason"]
    assert result(project, "gc", "--keep", "3")["artifacts"] == 0, "what was refused is kept, or it is made again"
    forced = pipeline.workflow.refresh.refresh(Runner(workspace, params, NullProgress()), 3, True, render_report)
    assert forced.status == "published"
    assert str(workspace.current.readlink()) == forced.publication != before
    assert (project.work / before).exists()
    assert len(list((project.work / "runs" / "train").iterdir())) == 2
    dropped = result(project, "gc", "--keep", "1")
    assert dropped["publications"] == 1
    assert not (project.work / before).exists()
    assert len(list((project.work / "runs" / "train").iterdir())) == 1
    assert result(project, "refresh")["status"] == "unchanged"


def bring_all(workspace: Workspace, params):  # type: ignore[no-untyped-def]
    """Every stage's artifact."""
    runner = Runner(workspace, params, NullProgress())
    runner.build("evaluate")
    return runner.artifacts


def current(workspace: Workspace):  # type: ignore[no-untyped-def]
    """What is published."""
    return read_latest_publication(workspace)


def test_a_lost_or_damaged_publication_is_made_again_and_still_gated(project: Project, finished: Path) -> None:
    lived_in(project, finished)
    workspace = Workspace(project.work)
    (workspace.current / "report.html").write_text("")
    assert result(project, "refresh")["status"] == "published"
    assert (workspace.current / "report.html").stat().st_size > 1000
    (workspace.current / "publication.json").write_text('{"artifacts": {}}')
    assert read_latest_publication(workspace) is not None, "the publication before it still counts"
    assert result(project, "refresh")["status"] == "published"
    assert result(project, "refresh")["status"] == "unchanged"
    workspace.current.unlink()
    assert read_latest_publication(workspace) is not None
    assert result(project, "refresh")["status"] == "published"


def test_show_reads_while_another_run_holds_the_workspace(project: Project, finished: Path) -> None:
    lived_in(project, finished)
    query = pl.read_parquet(project.work / "current" / "queries.parquet")["query_id"][0]
    with Workspace(project.work).lock():
        assert result(project, "show", query)["query_id"] == query
        project.set("search", "top_k", "15")
        assert result(project, "show", query)["query_id"] == query


def test_a_table_that_changes_while_it_is_read_is_an_error(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    import stages.pairs.stage

    workspace = Workspace(project.work)
    params = load_settings(project.folder / "prep.toml", workspace)[0].validate_params()
    real = stages.pairs.stage.run

    def slow(*arguments):  # type: ignore[no-untyped-def]
        summary = real(*arguments)
        with (project.folder / "faq.csv").open("a") as file:
            file.write("T-1,2026-11-14,chat,a late question,Yes.,KB-Z1,A late article.,Shops,Pets,1\n")
        return summary

    monkeypatch.setattr(stages.pairs.stage, "run", slow)
    with workspace.lock(), pytest.raises(InputError, match=r"table:faq\.csv changed while it was read"):
        Runner(workspace, params, NullProgress()).build("pairs")
    assert workspace.list_artifacts("pairs") == []


def test_a_decision_is_honoured_by_all_that_comes_after(project: Project, finished: Path) -> None:
    lived_in(project, finished)
    first = json.loads((finished / "current" / "mined.jsonl").read_text().splitlines()[0])
    wrong = {"query_id": first["query_id"], "doc_id": first["neg_ids"][0], "label": "positive"}
    (project.folder / "decisions.jsonl").write_text(json.dumps(wrong) + "\n" + json.dumps({**wrong, "query_id": "?"}))
    done = result(project, "mine-negatives", "--num-negatives", "2")
    assert done["ran"] == ["mask", "sample"]
    project.set("pairs", "label_overrides", '"decisions.jsonl"')
    done = result(project, "mine-negatives", "--num-negatives", "2")
    assert done["summary"]["sample"]["queries"] > 0
    lines = (project.folder / done["artifacts"]["sample"] / "mined.jsonl").read_text().splitlines()
    again = next(row for row in map(json.loads, lines) if row["query_id"] == first["query_id"])
    assert set(again["pos_ids"]) == {*first["pos_ids"], first["neg_ids"][0]}
    assert first["neg_ids"][0] not in again["neg_ids"]
    pairs = result(project, "build-pairs")
    assert pairs["summary"]["pairs"]["label_overrides"] == 1
    rejects = pl.read_parquet(project.folder / pairs["artifacts"]["pairs"] / "rejects.parquet")
    assert rejects.filter(pl.col("source") == "decisions.jsonl")["reason"].to_list() == [
        "label override for an unknown question"
    ]


def test_a_table_behind_a_url_is_the_same_table_and_its_publication_is_copied(project: Project, finished: Path) -> None:
    lived_in(project, finished)
    table, target = project.folder / "faq.csv", project.folder / "shared"
    moved = table.rename(project.folder.parent / "faq.csv")
    project.set("pairs", "tables", f'["{moved.as_uri()}"]')
    (project.folder / "prep.toml").write_text(
        (project.folder / "prep.toml").read_text() + f'\n[refresh]\npublish_to = "{target.as_uri()}"\n'
    )
    first = result(project, "refresh")
    assert (first["status"], first["ran"], first["copied"]) == ("unchanged", [], True)
    named = json.loads((target / "current.json").read_text())
    assert named["publication"] == str((project.work / "current").readlink())
    mined = target / named["publication"] / "mined.jsonl"
    assert mined.read_bytes() == (project.work / "current" / "mined.jsonl").read_bytes()
    assert (target / named["publication"] / "reranker" / "config.json").is_file()
    assert result(project, "refresh")["copied"] is False


def test_a_failed_copy_is_logged_and_repeated(project: Project, finished: Path) -> None:
    lived_in(project, finished)
    blocked = project.folder / "shared"
    blocked.write_text("a file where the folder would be")
    text = (project.folder / "prep.toml").read_text()
    (project.folder / "prep.toml").write_text(f'{text}\n[refresh]\npublish_to = "{(blocked / "prep").as_uri()}"\n')
    done = project.prep("refresh", "-q")
    assert done.returncode == 2
    assert "unchanged here as published/" in done.stderr
    assert "can't be written" in done.stderr
    blocked.unlink()
    assert result(project, "refresh")["copied"] is True


def test_status_of_a_table_behind_a_url_leaves_no_trace(project: Project) -> None:
    moved = (project.folder / "faq.csv").rename(project.folder.parent / "faq.csv")
    project.set("pairs", "tables", f'["{moved.as_uri()}"]')
    done = project.prep("status")
    assert done.returncode == 0, done.stderr
    assert not project.work.exists()
    assert project.prep("build-pairs", "-q").returncode == 0
    first = next(row for row in result(project, "status")["stages"] if row["stage"] == "pairs")
    assert first["state"] == "fresh"
