"""What a publication is, with and without a reranker."""

import json
from pathlib import Path

from pipeline.workflow.artifact_store import Artifact, Workspace
from pipeline.workflow.graph import PUBLISHED_OUTPUTS
from pipeline.workflow.publish import (
    PUBLICATION_FILE,
    is_current_complete,
    list_published_outputs,
    publish,
    read_publication,
)


def make_artifacts(workspace: Workspace) -> dict[str, Artifact]:
    """A folder with an empty file for each published output."""
    for path in PUBLISHED_OUTPUTS:
        step, name = path.split("/")
        file = workspace.get_artifact_folder(step, "key") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    steps = {path.split("/")[0] for path in PUBLISHED_OUTPUTS}
    return {step: Artifact(workspace.get_artifact_folder(step, "key"), {"key": "key"}) for step in steps}


def test_without_a_reranker_a_publication_is_complete_and_another_one_than_with_it(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    artifacts = make_artifacts(workspace)
    without = publish(workspace, artifacts, "page", "embedder")
    assert is_current_complete(workspace)
    assert not (workspace.current / "reranker").exists()
    assert (read_publication(workspace.current) or {})["ranking"] == "embedder"
    assert publish(workspace, artifacts, "page", "reranker") != without
    assert is_current_complete(workspace)
    assert (workspace.current / "reranker").exists()
    (workspace.current / "reranker").unlink()
    assert not is_current_complete(workspace), "a reranker that is named must be there"


def test_a_publication_of_an_older_version_holds_a_reranker(tmp_path: Path) -> None:
    found = {"artifacts": {"pairs": "a", "train": "b"}, "report_digest": "c"}
    (tmp_path / PUBLICATION_FILE).write_text(json.dumps(found))
    assert read_publication(tmp_path) == found | {"ranking": "reranker"}
    (tmp_path / PUBLICATION_FILE).write_text(json.dumps(found | {"artifacts": {"pairs": "a"}}))
    assert read_publication(tmp_path) is None


def test_only_the_reranker_is_left_out() -> None:
    assert set(list_published_outputs("reranker")) == set(PUBLISHED_OUTPUTS)
    assert set(PUBLISHED_OUTPUTS) - set(list_published_outputs("embedder")) == {"train/reranker"}
