"""What a stage leaves unread under its parameters is neither made for it nor part of its key."""

import json
import re
from pathlib import Path

import pytest

from pipeline.workflow.artifact_store import Workspace
from pipeline.workflow.graph import PIPELINE, STAGES_BY_NAME
from pipeline.workflow.runner import Runner
from stages.core.context import NullProgress
from stages.mining.sampling.stage import Params
from tests.conftest import Project


def ran(project: Project, *arguments: str) -> list[str]:
    done = project.prep(*arguments, "--json", "-q")
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)["ran"]
    return found


def states(project: Project) -> dict[str, str]:
    done = project.prep("status", "--json")
    assert done.returncode == 0, done.stderr
    return {stage["stage"]: stage["state"] for stage in json.loads(done.stdout)["stages"]}


def sliced(project: Project, **given: int) -> None:
    """Let [mine] hold nothing but sampling = slices, and what is given."""
    path = project.folder / "prep.toml"
    keys = {"sampling": '"slices"', **given}
    section = "[mine]\n" + "".join(f"{name} = {value}\n" for name, value in keys.items())
    path.write_text(re.sub(r"\[mine\]\n[^[]*", section, path.read_text()))


def test_slices_need_no_model_and_what_comes_after_still_works(project: Project) -> None:
    sliced(project, slice=4, slices=2)
    assert ran(project, "mine-negatives") == ["pairs", "sample"]
    fresh = ("pairs", "sample")
    assert states(project) == {stage.name: "fresh" if stage.name in fresh else "absent" for stage in PIPELINE}
    assert ran(project, "mine-negatives") == []
    (path,) = project.work.glob("runs/sample/*/mined.jsonl")
    mined = [json.loads(line) for line in path.read_text().splitlines()]
    queries = len({line["query_id"] for line in mined})
    assert len(mined) == 2 * queries
    assert {len(line["neg"]) for line in mined} == {4}
    # training reads the candidates too; a query with two lines is one query. (What so small a model learns from random
    # documents may count as a collapse, exit 3.)
    assert project.prep("train", "--epochs", "1", "--distill-epochs", "1", "-q").returncode in (0, 3)
    (path,) = project.work.glob("runs/train/*/training.json")
    trained = json.loads(path.read_text())
    assert trained["n_queries"] == trained["groups_per_epoch"] == queries
    assert {len(list(project.work.glob(f"runs/{stage}/*"))) for stage in ("encode", "search", "train")} == {1}


def test_stages_upstream_are_those_that_are_read() -> None:
    compose = STAGES_BY_NAME["sample"]
    assert compose.list_upstream_stages(Params(sampling="slices")) == ("pairs",)
    assert compose.list_upstream_stages(Params()) == ("pairs", "search", "mask", "encode")
    assert compose.list_upstream_stages(Params(thin_similarity=2)) == ("pairs", "search", "mask")
    assert "encode/encoder.json" not in compose.select_inputs(Params(thin_similarity=2))
    assert compose.select_inputs(Params(sampling="slices")) == (
        "pairs/queries.parquet",
        "pairs/corpus.parquet",
        "pairs/qrels.parquet",
    )


def test_a_stage_is_given_the_stores_that_it_declares_and_no_others(tmp_path: Path) -> None:
    runner = Runner(Workspace(tmp_path), {}, NullProgress())
    context = runner._make_context(STAGES_BY_NAME["verify"], "key")
    assert context.scores_dir == tmp_path / "verifier_scores"
    assert context.scratch_dir == tmp_path / "scratch" / "verify-key"
    assert context.logs_dir == tmp_path / "logs" / "verify" / "key"
    with pytest.raises(RuntimeError, match="vectors"):
        _ = context.vectors_dir
    context = runner._make_context(STAGES_BY_NAME["search"], "key")
    assert context.vectors_dir == tmp_path / "vectors"
    for read in (lambda: context.scratch_dir, lambda: context.logs_dir, lambda: context.scores_dir):
        with pytest.raises(RuntimeError, match="not declared"):
            read()


def test_a_result_that_is_not_complete_is_made_again(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    runner = Runner(workspace, {}, NullProgress())
    verify = STAGES_BY_NAME["verify"]
    for key, summary in (("whole", {"pairs": 3}), ("part", {"pairs": 3, "complete": False})):
        with workspace.create_build_folder("verify", key) as out:
            workspace.commit_artifact("verify", key, out, {"summary": summary})
        found = runner._find_valid_artifact(verify, key, runner._make_context(verify, key))
        assert (found is not None) == (key == "whole")


def test_a_search_that_changes_leaves_slices_as_they_are(project: Project) -> None:
    sliced(project)
    assert ran(project, "mine-negatives") == ["pairs", "sample"]
    assert ran(project, "mine-negatives", "--top-k", "7") == []
    refused = project.prep("mine-negatives", "--mask", "none", "--top-k", "7")
    assert refused.returncode == 2
    assert "--mask = 'none' does not count with sampling = 'slices'" in refused.stderr
    _, *others = [stage.name for stage in PIPELINE[: PIPELINE.index(STAGES_BY_NAME["sample"]) + 1]]
    assert ran(project, "mine-negatives", "--sampling", "top") == others


def test_flags_of_the_composer(project: Project) -> None:
    flags = ["--sampling", "simans", "--simans-a", "100", "--simans-b", "-0.1", "--hub-cap", "3"]
    flags += ["--source-quotas", "dense=2", "--source-quotas", "bm25=1", "--prefer-category"]
    done = project.prep("mine-negatives", *flags, "--json", "-q")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)["summary"]["sample"]
    assert summary["by_stratum"].keys() == {"simans", "rest"}  # there is no bm25
    assert summary["hubness"]["max_document_count"] <= 3
    refused = project.prep("mine-negatives", "--source-quotas", "dense")
    assert refused.returncode == 2
    assert "'dense' is no NAME=PARTS" in refused.stderr
