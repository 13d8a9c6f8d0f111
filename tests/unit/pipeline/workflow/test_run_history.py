"""Past runs, from events that are written by hand."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from pipeline.workflow.artifact_store import Workspace
from pipeline.workflow.run_history import WorkCounter, read_past_runs, select_similar_runs
from stages.core.context import NullProgress

MACHINES = {"pairs": "here", "encode": "here", "search": "here with a GPU"}
DONE = {"event": "done", "machine": "here", "seconds": 2.0, "memory": 300, "work": {"texts": 4, "tokens": 90}}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Holds the result of the step pairs under the key p."""
    found = Workspace(tmp_path)
    commit(found, "pairs", "p")
    return found


def commit(workspace: Workspace, step: str, key: str, **parameters: Any) -> None:
    with workspace.create_build_folder(step, key) as folder:
        manifest = {"version": 1, "key_extras": {"model": "m"}, "parameters": parameters, "summary": {}}
        workspace.commit_artifact(step, key, folder, manifest)


def read(workspace: Workspace, events: Iterable[dict[str, Any]]) -> list[tuple[str, float]]:
    (workspace.root / "events.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))
    return [(run.step, run.seconds) for run in read_past_runs(workspace, MACHINES)]


def start(step: str, key: str) -> dict[str, Any]:
    return {"event": "start", "stage": step, "key": key}


def done(step: str, key: str, **changes: Any) -> dict[str, Any]:
    return {**DONE, "stage": step, "key": key, **changes}


HIT = {"event": "hit", "stage": "pairs", "key": "p"}


def test_a_run_records_its_time_and_the_manifests_of_its_inputs(workspace: Workspace) -> None:
    commit(workspace, "encode", "e", dtype="float32")
    assert read(workspace, [HIT, start("encode", "e"), done("encode", "e")]) == [("encode", 2.0)]
    (run,) = read_past_runs(workspace, MACHINES)
    assert (run.memory_bytes, run.work) == (300, {"texts": 4, "tokens": 90})
    assert run.manifests["encode"]["parameters"] == {"dtype": "float32"}
    assert run.manifests["pairs"]["key"] == "p"


def test_a_run_on_another_machine_is_left_out(workspace: Workspace) -> None:
    commit(workspace, "encode", "e")
    elsewhere = done("encode", "e", machine="there")
    older = {name: value for name, value in done("encode", "e").items() if name != "machine"}
    for event in (elsewhere, older):
        assert read(workspace, [HIT, start("encode", "e"), event]) == []


def test_each_step_has_a_machine_of_its_own(workspace: Workspace) -> None:
    commit(workspace, "encode", "e")
    commit(workspace, "search", "s")
    events = [HIT, {"event": "hit", "stage": "encode", "key": "e"}, start("search", "s")]
    assert read(workspace, [*events, done("search", "s")]) == []
    assert read(workspace, [*events, done("search", "s", machine="here with a GPU")]) == [("search", 2.0)]


def test_a_run_that_continues_an_interrupted_one_is_left_out(workspace: Workspace) -> None:
    commit(workspace, "encode", "e")
    interrupted = [HIT, start("encode", "e"), start("encode", "e"), done("encode", "e")]
    assert read(workspace, interrupted) == []
    again = [start("encode", "e"), done("encode", "e", seconds=3.0)]
    assert read(workspace, [*interrupted, *again]) == [("encode", 3.0)]
    other = start("encode", "other")
    assert read(workspace, [HIT, other, *again]) == [("encode", 3.0)]


def test_a_run_whose_result_is_gone_is_left_out(workspace: Workspace) -> None:
    assert read(workspace, [HIT, start("encode", "e"), done("encode", "e")]) == []
    commit(workspace, "encode", "e")
    assert read(workspace, [{**HIT, "key": "gone"}, start("encode", "e"), done("encode", "e")]) == []


def test_runs_are_similar_if_settings_and_models_are(workspace: Workspace) -> None:
    commit(workspace, "encode", "e1", dtype="float32", max_length=64)
    commit(workspace, "encode", "e2", dtype="float32", max_length=128)
    commit(workspace, "encode", "e3", dtype="bfloat16", max_length=64)
    events = [event for key in ("e1", "e2", "e3") for event in (start("encode", key), done("encode", key))]
    read(workspace, [HIT, *events])
    runs = read_past_runs(workspace, MACHINES)

    def select(*ignored: str, **changes: Any) -> list[str]:
        now = {
            "version": 1,
            "key_extras": {"model": "m"},
            "parameters": {"dtype": "float32", "max_length": 64},
            **changes,
        }
        return [
            run.manifests["encode"]["key"] for run in select_similar_runs("encode", runs, {"encode": now}, {*ignored})
        ]

    assert select() == ["e1"]
    assert select("max_length") == ["e1", "e2"]
    assert select("max_length", "dtype") == ["e1", "e2", "e3"]
    assert select(version=2) == []
    assert select(key_extras={"model": "another"}) == []
    assert select_similar_runs("search", runs, {}) == []


def test_a_search_is_similar_only_with_the_same_encoder(workspace: Workspace) -> None:
    commit(workspace, "encode", "e", dtype="float32")
    commit(workspace, "search", "s")
    events = [HIT, {"event": "hit", "stage": "encode", "key": "e"}, start("search", "s")]
    read(workspace, [*events, done("search", "s", machine="here with a GPU")])
    runs = read_past_runs(workspace, MACHINES)
    search = {"version": 1, "key_extras": {"model": "m"}, "parameters": {}}
    for dtype, n_runs in (("float32", 1), ("bfloat16", 0)):
        encode = {**search, "parameters": {"dtype": dtype}}
        assert len(select_similar_runs("search", runs, {"encode": encode, "search": search})) == n_runs


def test_reports_of_a_unit_are_its_state_and_not_a_step() -> None:
    counter = WorkCounter(NullProgress())
    counter.advance(2, 10, "texts", 50)
    counter.advance(10, 10, "texts", 220)
    assert counter.counts == {"texts": 10, "tokens": 220}


def test_a_count_that_starts_again_is_added() -> None:
    counter = WorkCounter(NullProgress())
    for done, tokens in ((4, 40), (9, 90), (3, 30), (5, 50)):
        counter.advance(done, None, "texts", tokens)
    counter.advance(7, None, "pairs")
    assert counter.counts == {"texts": 14, "tokens": 140, "pairs": 7}
