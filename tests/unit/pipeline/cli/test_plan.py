"""`prep plan` as a process, and its predictions beside what then happened."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.plan import format_bytes, format_duration, format_plan, match_prediction_to_runs, read_events
from pipeline.workflow.artifact_store import Workspace
from pipeline.workflow.graph import PIPELINE
from stages.planning.cost_model import Prediction
from tests.conftest import Project


def planned(time: str, **seconds: float | None) -> dict[str, Any]:
    stages = {name: {"seconds": taken, "memory": 100} for name, taken in seconds.items()}
    return {"event": "planned", "time": time, "machine": "this machine", "stages": stages}


def done(stage: str, seconds: float) -> dict[str, Any]:
    return {"event": "done", "stage": stage, "seconds": seconds, "memory": 150}


def ratios(found: dict[str, Any] | None) -> dict[str, float | None]:
    assert found
    return {row["stage"]: row["ratio"] for row in found["stages"]}


def test_a_prediction_is_stood_beside_the_first_run_after_it() -> None:
    happened = [
        done("encode", 99),
        planned("first", encode=10.0, search=2.0, train=100.0),
        done("encode", 15),
        {"event": "hit", "stage": "search"},
        done("train", 50),
        done("train", 7),
        done("gate", 1),
    ]
    found = match_prediction_to_runs(happened)
    assert found and found["time"] == "first"
    assert ratios(found) == {"encode": 1.5, "train": 0.5}
    assert found["stages"][0]["memory_predicted"] == 100
    assert found["stages"][0]["memory_happened"] == 150


def test_it_is_the_last_prediction_of_which_something_ran() -> None:
    happened = [planned("first", encode=10.0, search=1.0), done("encode", 20), planned("second", search=4.0)]
    assert ratios(match_prediction_to_runs(happened)) == {"encode": 2.0}
    assert ratios(match_prediction_to_runs([*happened, done("search", 2)])) == {"search": 0.5}


def test_nothing_is_compared_before_anything_ran() -> None:
    assert match_prediction_to_runs([]) is None
    assert match_prediction_to_runs([done("encode", 3), planned("first", encode=10.0)]) is None
    assert match_prediction_to_runs([planned("first", search=10.0), done("encode", 3)]) is None


def test_what_nobody_could_know_has_no_ratio() -> None:
    assert ratios(match_prediction_to_runs([planned("first", verify=None), done("verify", 3)])) == {"verify": None}
    old = {"event": "done", "stage": "verify", "seconds": 3.0}
    found = match_prediction_to_runs([planned("first", verify=1.0), old])
    assert found and found["stages"][0]["memory_happened"] is None


def test_a_prediction_for_another_machine_is_not_stood_beside_what_this_one_took() -> None:
    elsewhere = {**planned("second", encode=0.1), "machine": "4 x NVIDIA H100 SXM"}
    found = match_prediction_to_runs([planned("first", encode=10.0), elsewhere, done("encode", 20)])
    assert ratios(found) == {"encode": 2.0}
    assert match_prediction_to_runs([elsewhere, done("encode", 20)]) is None


def test_what_went_on_after_an_interruption_has_no_ratio() -> None:
    start = {"event": "start", "stage": "encode", "key": "k"}
    happened = [start, planned("first", encode=10.0), start, {**done("encode", 9), "key": "k"}]
    assert ratios(match_prediction_to_runs(happened)) == {
        "encode": 0.9
    }  # what was cut short before the plan was counted in it
    assert ratios(match_prediction_to_runs([*happened[1:3], *happened[2:]])) == {"encode": None}
    training = {**start, "stage": "train"}
    before = [training, planned("first", train=10.0), training, {**done("train", 1), "key": "k"}]
    assert ratios(match_prediction_to_runs(before)) == {"train": None}  # a plan does not look how far a training came
    assert ratios(match_prediction_to_runs([*before, planned("second", train=10.0), *before[2:]])) == {"train": 0.1}
    other = {**start, "key": "of other settings"}
    assert ratios(match_prediction_to_runs([happened[1], other, *happened[2:]])) == {"encode": 0.9}


def test_lines_that_a_full_disk_cut_are_passed_over(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    (tmp_path / "events.jsonl").write_bytes(
        b'{"event": "hit"}\n{"event": "failed", "error": "caf\xc3\n{"event": "done"}\n'
    )
    assert [event["event"] for event in read_events(workspace)] == ["hit", "done"]


def test_a_stage_whose_time_nobody_knows_is_still_to_be_done() -> None:
    asked = Prediction("verify", "500 requests at most", None, 10**9, 0, "unknown")
    said = " ".join(str(part) for part in format_plan(["mask", "verify"], [asked], [], None, None).parts)
    assert "up to date" not in said.replace("'up to date'", "")  # but in the row of mask
    assert "not in it: the time of verify" in said
    assert "500 requests at most" in said
    free = asked._replace(work="nobody is asked", seconds=0.0)
    assert "nothing to do" not in str(format_plan(["verify"], [free], [], None, None).parts)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0.0 s"), (59.94, "59.9 s"), (90, "1.5 min"), (5_399, "90.0 min"), (7_200, "2.0 h")]
)
def test_times_are_said_as_people_say_them(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words


def test_sizes_too() -> None:
    assert [format_bytes(count) for count in (1_500_000, 2_340_000_000)] == ["1.5 MB", "2.3 GB"]


def plan(project: Project, *arguments: str) -> dict[str, Any]:
    found = project.prep("plan", "--json", "-q", *arguments)
    assert found.returncode == 0, found.stderr
    data: dict[str, Any] = json.loads(found.stdout)
    return data


def test_a_plan_runs_build_pairs_alone_and_is_compared_once_its_stages_ran(project: Project) -> None:
    first = plan(project)
    assert [one["stage"] for one in first["stages"]] == [stage.name for stage in PIPELINE if stage.name != "pairs"]
    assert first["up_to_date"] == ["pairs"]
    assert first["compared"] is None
    measured = {one["stage"]: one for one in first["stages"]}
    for name in ("encode", "search", "train", "evaluate"):
        assert measured[name]["source"] == "measured"
        assert measured[name]["seconds"] > 0
        assert measured[name]["memory"] > 1 << 20
    assert first["seconds"] == pytest.approx(sum(one["seconds"] for one in first["stages"]))
    assert first["dominates"] in measured
    assert {event["stage"] for event in project.events() if event["event"] == "done"} == {"pairs"}
    (event,) = [event for event in project.events() if event["event"] == "planned"]
    assert event["stages"]["train"]["seconds"] == measured["train"]["seconds"]

    nothing = project.prep("plan", "--compare")
    assert "nothing that was predicted has run yet" in nothing.stdout

    assert project.prep("mine-negatives", "-q").returncode == 0
    took = {event["stage"]: event for event in project.events() if event["event"] == "done"}
    (said,) = [json.loads(project.prep("plan", "--compare", "--json").stdout)["compared"]]
    assert [row["stage"] for row in said["stages"]] == ["encode", "search", "features", "verify", "mask", "sample"]
    encode = said["stages"][0]
    assert encode["predicted"] == measured["encode"]["seconds"]
    assert encode["happened"] == took["encode"]["seconds"]
    assert encode["memory_happened"] == took["encode"]["memory"] > 1 << 20

    # what is there costs nothing, and nothing is left to do up to there
    again = project.prep("plan", "--until", "sample")
    assert "nothing to do: everything is up to date" in again.stdout
    assert "happened / predicted" in again.stdout
    assert len([event for event in project.events() if event["event"] == "planned"]) == 1


def test_texts_that_have_a_vector_are_not_counted(project: Project) -> None:
    assert project.prep("encode", "-q").returncode == 0
    with (project.folder / "faq.csv").open("a", encoding="utf-8") as file:
        header = (project.folder / "faq.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
        row = dict.fromkeys(header, "")
        row |= {"question": "is there a ferry to the shop", "article": "There is no ferry to any of our shops."}
        file.write(",".join(row.get(name, "") for name in header) + "\n")
    (found,) = plan(project, "--until", "encode")["stages"]
    assert found["work"].startswith("1 queries + 1 documents")


def test_gpus_elsewhere_go_by_what_is_published(project: Project) -> None:
    found = plan(project, "--gpu", "h100", "--gpus", "4", "--until", "train")
    sources = {one["stage"]: one["source"] for one in found["stages"]}
    assert sources["encode"] == sources["train"] == "published rate x 0.3"
    (event,) = [event for event in project.events() if event["event"] == "planned"]
    assert event["machine"] == "4 x NVIDIA H100 SXM"
    said = project.prep("plan", "--gpu", "h100", "--until", "encode").stdout
    assert "nothing was measured on such a machine" in said


def test_gpus_that_are_not_known_are_refused(project: Project) -> None:
    found = project.prep("plan", "--gpu", "voodoo2")
    assert found.returncode == 2
    assert "h100" in found.stderr
    found = project.prep("plan", "--gpus", "2")
    assert found.returncode == 2
    assert "--gpu h100" in found.stderr
