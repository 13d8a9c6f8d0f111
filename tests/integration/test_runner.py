"""What a stage leaves unread under its parameters is neither made for it nor part of its key."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.workflow.artifact_store import Workspace
from pipeline.workflow.graph import STAGES_BY_NAME
from pipeline.workflow.runner import Runner, get_seconds_per_step
from stages.core.context import NullProgress
from stages.mining.sampling.stage import Params
from tests.conftest import Project


def ran(project: Project, *arguments: str) -> list[str]:
    done = project.prep(*arguments, "--json", "-q")
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)["ran"]
    return found


def test_stages_upstream_are_those_that_are_read() -> None:
    compose = STAGES_BY_NAME["sample"]
    assert compose.list_upstream_stages(Params()) == ("pairs", "search", "mask", "encode")
    assert compose.list_upstream_stages(Params(near_duplicate_similarity=2)) == ("pairs", "search", "mask")
    assert "encode/encoder.json" not in compose.select_inputs(Params(near_duplicate_similarity=2))


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


def test_seconds_per_step_are_those_of_the_last_training_that_was_not_interrupted() -> None:
    events: list[dict[str, Any]] = [
        {"event": "start", "stage": "train", "key": "a"},
        {"event": "done", "stage": "train", "key": "a", "seconds": 60.0, "summary": {"n_steps": 30}},
        {"event": "start", "stage": "train", "key": "b"},
        {"event": "start", "stage": "train", "key": "b"},
        {"event": "done", "stage": "train", "key": "b", "seconds": 10.0, "summary": {"n_steps": 100}},
        {"event": "start", "stage": "evaluate", "key": "c"},
        {"event": "done", "stage": "evaluate", "key": "c", "seconds": 5.0, "summary": {}},
    ]
    assert get_seconds_per_step(events) == 2.0
    assert get_seconds_per_step(events[2:]) is None
    assert get_seconds_per_step([]) is None
