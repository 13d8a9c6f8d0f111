"""`prep mine-negatives --index` as a process: what it says of its recall, and what it refuses."""

import json
from typing import Any

from tests.conftest import Project


def mined(project: Project, *arguments: str, work: str = "work") -> tuple[dict[str, Any], dict[str, Any]]:
    """The summary of the search and the files of all artifacts."""
    done = project.prep("mine-negatives", "--json", "--workspace", work, *arguments)
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout)
    folders = {name: project.folder / folder for name, folder in output["artifacts"].items()}
    files = {name: json.loads((folder / "manifest.json").read_text())["files"] for name, folder in folders.items()}
    return output["summary"]["search"], files


def test_an_index_on_the_way_to_mined_jsonl(project: Project) -> None:
    project.set("search", "faiss_index", '"IVF2,SQ8"')
    output, files = mined(project)
    assert output["faiss_indexes"]["dense"]["recall"] >= 0.95
    assert output["candidates_by_source"] == {"dense": 20 * output["queries"]}
    assert (mined(project, work="again")) == (output, files)
    done = project.prep("mine-negatives")
    assert f"FAISS index IVF2,SQ8 ({output['faiss_indexes']['dense']['parameters']}), recall@20" in done.stdout
    exact, exact_files = mined(project, "--faiss-index", "exact")
    assert "faiss_indexes" not in exact
    assert exact["candidates"] == output["candidates"]
    assert mined(project, "--faiss-index", "Flat", work="flat")[1]["sample"] == exact_files["sample"]


def test_the_manifest_says_the_index_and_its_recall(project: Project) -> None:
    output, _ = mined(project, "--faiss-index", "HNSW8", "--set", "search.faiss_params=efSearch=64")
    (folder,) = (project.work / "runs/search").iterdir()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["summary"]["faiss_indexes"] == output["faiss_indexes"]
    assert {"faiss_index": "HNSW8", "faiss_params": "efSearch=64", "min_recall": "0.95"}.items() <= manifest[
        "key_extras"
    ].items()
    assert output["faiss_indexes"]["dense"]["parameters"] == "efSearch=64"


def test_too_low_a_recall_is_exit_2(project: Project) -> None:
    done = project.prep(
        "mine-negatives", "--faiss-index", "IVF2,PQ1x2", "--set", "search.min_recall=0.999", "--top-k", "2"
    )
    assert done.returncode == 2
    assert "recall@2 is 0." in done.stderr
    assert "min_recall is 0.999" in done.stderr
    assert "take a bigger code" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (project.work / "current").exists()


def test_an_invalid_index_string_is_an_error_before_any_step_runs(project: Project) -> None:
    for arguments, why in (
        (("--faiss-index", "IVF,PQ64"), "--faiss-index = 'IVF,PQ64': this is no string of faiss.index_factory"),
        (
            ("--set", "search.faiss_params=nprobe=2"),
            "is for an index, and there is none: give faiss_index too",
        ),
        (
            ("--faiss-index", "IVF2,Flat", "--set", "search.faiss_params=nprobe"),
            "--set search.faiss_params = 'nprobe': these are NAME=NUMBER",
        ),
    ):
        done = project.prep("mine-negatives", *arguments)
        assert (done.returncode, why in done.stderr) == (2, True), done.stderr
        assert not (project.work / "runs").exists()


def test_an_index_that_does_not_fit_the_table_is_exit_2(project: Project) -> None:
    for index, why in (("IVF4096,PQ64", "4,096 lists"), ("PQ7", "dimension 32 can't be made: The dimension of")):
        done = project.prep("mine-negatives", "--faiss-index", index)
        assert done.returncode == 2, done.stderr
        assert index in done.stderr
        assert why in done.stderr
