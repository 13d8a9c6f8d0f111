"""What `prep gc` keeps and drops."""

import json
import os
from pathlib import Path

from pipeline.workflow.artifact_store import Workspace
from pipeline.workflow.garbage_collection import collect_garbage, find_garbage


def test_gc_keeps_the_training_that_can_go_on_and_drops_other_half_done_work(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "work")
    with workspace.lock():
        workspace.get_artifact_folder("train", "done").mkdir(parents=True)
        for age, name in enumerate(("train-done", "train-new", "train-old", "pairs-x")):
            (workspace.scratch / name).mkdir(parents=True)
            (workspace.scratch / name / "checkpoint").write_text("x")
            os.utime(workspace.scratch / name, (1e9 - age, 1e9 - age))
        collect_garbage(workspace, keep=1)
    assert [path.name for path in workspace.scratch.iterdir()] == ["train-new"]


def test_unfinished_work_of_each_step_that_can_go_on_is_kept(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "work")
    with workspace.lock():
        for name in ("train-a", "verify-b", "features-c"):
            (workspace.scratch / name).mkdir(parents=True)
        collect_garbage(workspace, keep=1)
    assert {path.name for path in workspace.scratch.iterdir()} == {"train-a", "verify-b"}


def test_finding_garbage_deletes_nothing_and_needs_no_lock(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "work")
    (workspace.vectors / "one").mkdir(parents=True)
    (workspace.vectors / "one" / "segment.npy").write_bytes(b"x" * 1000)
    (workspace.logs / "train" / "k").mkdir(parents=True)
    before = sorted((tmp_path / "work").rglob("*"))
    garbage = find_garbage(workspace, keep=1)
    assert garbage.paths == [workspace.vectors / "one", workspace.logs / "train" / "k"]
    assert garbage.count() == {"publications": 0, "artifacts": 0, "encoders": 1, "bytes": 1000}
    assert sorted((tmp_path / "work").rglob("*")) == before


def test_gc_keeps_the_vectors_of_every_encoder_in_use(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "work")
    with workspace.lock():
        with workspace.create_build_folder("encode", "key") as out:
            (out / "encoder.json").write_text(
                json.dumps({"encoder_key": "one", "extra_encoders": [{"encoder_key": "two"}]})
            )
            workspace.commit_artifact("encode", "key", out, {})
        for name in ("one", "two", "three"):
            (workspace.vectors / name).mkdir(parents=True)
        assert collect_garbage(workspace, keep=1)["encoders"] == 1
    assert {path.name for path in workspace.vectors.iterdir()} == {"one", "two"}
