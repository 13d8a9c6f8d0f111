"""`prep plan` as a process, before and after the steps ran."""

import json
from typing import Any

import pytest

from pipeline.workflow.graph import PIPELINE
from tests.conftest import Project


def plan(project: Project, *arguments: str) -> dict[str, Any]:
    done = project.prep("plan", "--json", "-q", *arguments)
    assert done.returncode == 0, done.stderr
    data: dict[str, Any] = json.loads(done.stdout)
    return data


def list_finished_steps(project: Project) -> list[str]:
    return [event["stage"] for event in project.events() if event["event"] == "done"]


def test_rates_are_measured_first_and_then_those_of_the_last_run(project: Project) -> None:
    first = plan(project)
    assert list_finished_steps(project) == ["pairs"]
    assert [one["step"] for one in first["steps"]] == [stage.name for stage in PIPELINE if stage.name != "pairs"]
    sources = {one["step"]: one["rate_source"] for one in first["steps"]}
    assert {step for step, source in sources.items() if source == "probe"} == {"encode", "search", "train", "evaluate"}
    assert all(one["memory_bytes"] > 1 << 20 and one["last_run_seconds"] is None for one in first["steps"])
    assert first["seconds"] == pytest.approx(sum(one["seconds"] for one in first["steps"]))

    assert project.prep("refresh", "-q").returncode in (0, 3)  # so small a model may collapse
    nothing = plan(project)
    assert (nothing["steps"], nothing["seconds"]) == ([], 0)
    assert nothing["up_to_date"] == [stage.name for stage in PIPELINE]

    # all but encode would run again on the same table, at the speed of the run
    took = {event["stage"]: event for event in project.events() if event["event"] == "done"}
    assert took["train"]["work"]["steps"] > 0
    project.set("train", "epochs", "2")
    project.set("evaluate", "top_k", "5")
    (train, retrievers, evaluate) = plan(project)["steps"]
    assert {one["rate_source"] for one in (train, retrievers, evaluate)} == {"last run"}
    # 3 epochs and one of distillation were run, 2 and one are planned
    assert train["seconds"] == pytest.approx(took["train"]["seconds"] * 7 / 8, rel=0.15)
    assert train["last_run_seconds"] is None
    assert train["memory_bytes"] == pytest.approx(took["train"]["memory"], rel=0.1)

    project.set("train", "dropout", "0.1")
    train = plan(project)["steps"][0]
    assert train["rate_source"] == "probe"


def test_only_new_texts_are_to_be_encoded(project: Project) -> None:
    assert project.prep("encode", "-q").returncode == 0
    with (project.folder / "faq.csv").open("a", encoding="utf-8") as file:
        header = (project.folder / "faq.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
        row = dict.fromkeys(header, "")
        row |= {"question": "is there a ferry to the shop", "article": "There is no ferry to any of our shops."}
        file.write(",".join(row.get(name, "") for name in header) + "\n")
    (encode,) = plan(project, "--until", "encode")["steps"]
    assert encode["description"].startswith("2 new texts, ")
    assert encode["rate_source"] == "last run"
    assert encode["last_run_seconds"] is None  # it encoded 80 rows


def test_the_table_fits_100_columns(project: Project) -> None:
    done = project.prep("plan", "-q", "--until", "sample")
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 100
