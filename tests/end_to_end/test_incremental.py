"""A workspace with a history gives the bytes of a workspace from nothing, whatever the history was."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.workflow.artifact_store import Artifact, Workspace
from pipeline.workflow.config import load_settings
from pipeline.workflow.runner import Runner
from stages.core.context import NullProgress
from tests.conftest import Project

WORDS = ["tent", "boot", "refund", "parcel", "rope", "stove", "map", "card"]
row = st.tuples(
    st.lists(st.sampled_from(WORDS), min_size=2, max_size=4).map(" ".join),
    st.lists(st.sampled_from(WORDS), min_size=3, max_size=6).map(" ".join),
)
tables = st.lists(row, min_size=6, max_size=14, unique=True)


def mined(folder: Path, work: Path, rows: list[tuple[str, str]], model: Path) -> dict[str, Artifact] | None:
    """Bring everything up to mined.jsonl up to date; None where the table was refused (too little in it)."""
    from stages.core.errors import InputError

    with (folder / "faq.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("question", "context"), *rows])
    workspace = Workspace(work)
    toml = folder / "prep.toml"
    toml.write_text(
        f'[pairs]\ntables = ["faq.csv"]\n[encode]\nmodel = "{model}"\n'
        '[search]\ntop_k = 6\n[mine]\nmask = "perc_max"\nthreshold = 1.0\nnear_duplicate_similarity = 2.0\n'
        'sampling = "random"\n'
    )
    runner = Runner(workspace, load_settings(toml, workspace)[0].validate_params(), NullProgress())
    with workspace.lock():
        try:
            runner.build("sample")
        except InputError:
            return None
    return runner.artifacts


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(tables, min_size=1, max_size=3), edits=st.lists(row, max_size=3), data=st.data())
def test_any_history_gives_the_bytes_of_a_run_from_nothing(
    tiny_model: Path, tmp_path_factory, history, edits, data
) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("history")
    kept = data.draw(st.lists(st.sampled_from(history[-1]), min_size=3, unique=True))
    final = list(dict.fromkeys([*kept, *edits]))
    for rows in [*history, final]:
        lived = mined(folder, folder / "work", rows, tiny_model)
    fresh = mined(folder, folder / "fresh", final, tiny_model)
    assert (lived is None) == (fresh is None)
    if fresh is None or lived is None:
        return
    assert {name: a.manifest["files"] for name, a in lived.items()} == {
        name: a.manifest["files"] for name, a in fresh.items()
    }
    assert {name: a.key for name, a in lived.items()} == {name: a.key for name, a in fresh.items()}


def test_the_order_of_rows_changes_nothing(tiny_model: Path, tmp_path: Path) -> None:
    rows = [(f"{a} {b}?", f"{b} {a} {a}") for a in WORDS[:4] for b in WORDS[4:]]
    first = mined(tmp_path, tmp_path / "first", rows, tiny_model)
    second = mined(tmp_path, tmp_path / "second", rows[::-1], tiny_model)
    assert first is not None
    assert second is not None
    for stage in ("search", "mask", "sample"):
        assert first[stage].manifest["files"] == second[stage].manifest["files"]


def searched(project: Project, work: str) -> tuple[dict[str, int], dict[str, Any]]:
    """What a search by `prep mine-negatives` says of its lists, and what every artifact holds."""
    done = project.prep("mine-negatives", "--json", "--workspace", work)
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout)
    folders = {name: project.folder / folder for name, folder in output["artifacts"].items()}
    files = {name: json.loads((folder / "manifest.json").read_text())["files"] for name, folder in folders.items()}
    return output["summary"]["search"]["topk_cache"]["dense"], files


def test_a_changed_row_is_searched_incrementally(project: Project) -> None:
    first, _ = searched(project, "work")
    queries = first["n_searched_queries"]
    assert first["n_merged_queries"] == 0
    table = project.folder / "faq.csv"
    with table.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    rows[5] = [f"{cell} Really." for cell in rows[5]]
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows[:-1]])
    output, lived = searched(project, "work")
    assert 1 <= output["n_new_documents"] <= 3
    assert 1 <= output["n_searched_queries"] < queries / 4
    assert output["n_merged_queries"] + output["n_searched_queries"] in (queries - 1, queries)
    nothing, fresh = searched(project, "fresh")
    assert nothing["n_merged_queries"] == 0
    assert lived == fresh


def test_damaged_lists_are_searched_anew(project: Project) -> None:
    output, files = searched(project, "work")
    shutil.rmtree(project.work / "runs/search")
    (lists,) = (project.work / "vectors").glob("*/topk_cache")
    path = max(lists.glob("*.npy"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert searched(project, "work") == (output, files)
    shutil.rmtree(project.work / "runs/search")
    again, files_again = searched(project, "work")
    assert again == {"n_new_documents": 0, "n_merged_queries": output["n_searched_queries"], "n_searched_queries": 0}
    assert files_again == files
