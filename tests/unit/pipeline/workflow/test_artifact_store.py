"""The workspace: commits are whole or absent, damage is noticed, a damaged artifact is replaced without a gap."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.workflow.artifact_store import MANIFEST_FILE, Workspace, digest_json, read_manifest
from stages.core.errors import InputError, WorkspaceBusyError


def committed(workspace: Workspace, text: str = "hello", key: str = "k1") -> Path:
    with workspace.create_build_folder("pairs", key) as out:
        (out / "a.txt").write_text(text)
        (out / "model").mkdir()
        (out / "model" / "w.bin").write_bytes(b"\x00\x01")
        return workspace.commit_artifact("pairs", key, out, {"stage": "pairs", "summary": {"rows": 1}}).folder


def test_a_committed_artifact_is_found_with_its_summary(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    folder = committed(workspace)
    found = workspace.find_artifact("pairs", "k1")
    assert found is not None
    assert found.folder == folder == tmp_path / "runs" / "pairs" / "k1"
    assert found.summary == {"rows": 1}
    assert sorted(found.manifest["files"]) == ["a.txt", "model/w.bin"]


def test_an_output_folder_has_one_digest_over_its_files(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    committed(workspace)
    found = workspace.find_artifact("pairs", "k1")
    assert found is not None
    assert found.digest_output("model") == digest_json({"model/w.bin": found.manifest["files"]["model/w.bin"]})
    assert found.digest_output("model") != found.digest_output("a.txt")


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "a.txt").write_text("hellp"),
        lambda folder: (folder / "model" / "w.bin").write_bytes(b"\x00"),
        lambda folder: (folder / "a.txt").unlink(),
        lambda folder: (folder / MANIFEST_FILE).unlink(),
        lambda folder: (folder / MANIFEST_FILE).write_text('{"key": "k1", "fi'),
        lambda folder: (folder / MANIFEST_FILE).write_text(
            (folder / MANIFEST_FILE).read_text().replace('"rows": 1', '"rows": 2')
        ),
    ],
    ids=["flipped", "truncated", "missing", "no manifest", "half a manifest", "flipped manifest"],
)
def test_a_damaged_artifact_is_not_found_and_a_commit_mends_it(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    workspace = Workspace(tmp_path)
    folder = committed(workspace)
    damage(folder)
    assert workspace.find_artifact("pairs", "k1") is None
    committed(workspace)
    assert workspace.find_artifact("pairs", "k1") is not None


def test_a_committed_artifact_has_the_permissions_of_the_umask(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    before = os.umask(0o027)
    try:
        with workspace.create_build_folder("train", "k1") as out:
            (out / "reranker").mkdir(mode=0o700)
            (out / "reranker" / "model.safetensors").touch(mode=0o600)
            (out / "training.json").touch()
            folder = workspace.commit_artifact("train", "k1", out, {"summary": {}}).folder
    finally:
        os.umask(before)
    modes = {path.relative_to(folder).as_posix(): path.stat().st_mode & 0o777 for path in folder.rglob("*")}
    assert modes.pop("reranker") == folder.stat().st_mode & 0o777 == 0o750
    assert modes == dict.fromkeys(("reranker/model.safetensors", "training.json", MANIFEST_FILE), 0o640)


def test_extra_files_in_an_artifact_are_no_damage(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    (committed(workspace) / "model" / "model.onnx").write_text("somebody's export")
    assert workspace.find_artifact("pairs", "k1") is not None


def test_an_uncommitted_artifact_does_not_exist(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with pytest.raises(RuntimeError), workspace.create_build_folder("pairs", "k1") as out:
        (out / "a.txt").write_text("half")
        raise RuntimeError
    assert workspace.find_artifact("pairs", "k1") is None
    assert list((tmp_path / "runs" / "pairs").iterdir()) == []


def test_manifests_hold_no_time_so_that_equal_results_are_equal_bytes(tmp_path: Path) -> None:
    first, second = Workspace(tmp_path / "1"), Workspace(tmp_path / "2")
    one, two = committed(first), committed(second)
    os.utime(two / "a.txt", (0, 0))
    assert (one / MANIFEST_FILE).read_bytes() == (two / MANIFEST_FILE).read_bytes()
    assert read_manifest(one) is not None


def test_a_held_workspace_is_busy_at_once_and_a_dead_holder_does_not_hold(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from pipeline.workflow.artifact_store import Workspace\n"
        "with Workspace(Path(sys.argv[1])).lock():\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(WorkspaceBusyError, match=f"process {holder.pid}"), Workspace(tmp_path).lock():
        pass
    holder.kill()
    holder.wait()
    with Workspace(tmp_path).lock():
        pass


def test_a_workspace_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "work").write_text("")
    with pytest.raises(InputError, match="is not a folder"), Workspace(tmp_path / "work").lock():
        pass


def test_a_folder_with_other_files_is_not_taken_for_a_workspace(tmp_path: Path) -> None:
    (tmp_path / "runs" / "exp1").mkdir(parents=True)
    (tmp_path / "runs" / "exp1" / "weights.bin").write_text("a month of work")
    with pytest.raises(InputError, match="holds other files"), Workspace(tmp_path).lock():
        pass
    assert (tmp_path / "runs" / "exp1" / "weights.bin").exists()


def test_a_new_workspace_is_marked_with_its_layout(tmp_path: Path) -> None:
    with Workspace(tmp_path).lock():
        assert (tmp_path / "prep-workspace").read_text() == "2\n"
    with Workspace(tmp_path).lock():
        assert (tmp_path / "prep-workspace").read_text() == "2\n"


@pytest.mark.parametrize(
    ("marker", "step", "is_refused"),
    [
        ("", "pairs", True),  # every workspace of prep 0.1 has an empty marker
        ("", "evidence", True),
        ("2", "compose", True),
        ("3", "pairs", True),  # made by a later version
        ("2", "pairs", False),
        ("", None, False),  # a process was killed before it wrote the version
    ],
)
def test_a_workspace_of_another_layout_is_an_error_and_stays_unchanged(
    tmp_path: Path, marker: str, step: str | None, is_refused: bool
) -> None:
    (tmp_path / "prep-workspace").write_text(marker)
    if step:
        (tmp_path / "runs" / step / ".tmp-half").mkdir(parents=True)
    if not is_refused:
        with Workspace(tmp_path).lock():
            return
    with pytest.raises(InputError), Workspace(tmp_path).lock():
        pass
    assert (tmp_path / "prep-workspace").read_text() == marker
    assert (tmp_path / "runs" / str(step) / ".tmp-half").is_dir()


def test_a_torn_last_event_does_not_swallow_the_next(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    (tmp_path / "events.jsonl").write_text('{"event": "start"}\n{"event": "do')
    workspace.log_event(event="hit")
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert len(lines) == 3
    assert json.loads(lines[-1])["event"] == "hit"


def test_a_lock_removes_the_files_of_a_killed_run(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with workspace.lock():
        leftover = tmp_path / "runs" / "pairs" / ".tmp-k9"
        leftover.mkdir(parents=True)
        (leftover / "half").write_text("")
    with workspace.lock():
        assert not leftover.exists()


def test_events_that_a_full_disk_cut_short_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_bytes(
        b'{"event": "hit"}\n{"event": "failed", "error": "caf\xc3\n{"event": "done"}\n'
    )
    assert [event["event"] for event in Workspace(tmp_path).read_events()] == ["hit", "done"]
    assert Workspace(tmp_path / "nothing").read_events() == []
