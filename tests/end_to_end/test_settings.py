"""Settings as a user gives them: prep.toml, flags and --set, old names, an unedited file, an old workspace."""

import json
from pathlib import Path

import pytest

from tests.conftest import Project, run_prep


@pytest.mark.parametrize("command", ["refresh", "build-pairs", "mine-negatives", "plan"])
def test_an_unedited_prep_toml_is_an_error_that_names_the_settings(command: str, tmp_path: Path) -> None:
    assert run_prep("init", cwd=tmp_path).returncode == 0
    done = run_prep(command, cwd=tmp_path)
    assert done.returncode == 2
    assert "tables under [pairs]" in done.stderr
    assert "--tables" not in done.stderr
    assert "Traceback" not in done.stderr


def test_status_of_an_unedited_file_says_it_too(tmp_path: Path) -> None:
    assert run_prep("init", cwd=tmp_path).returncode == 0
    done = run_prep("status", cwd=tmp_path)
    assert done.returncode == 0
    assert "tables under [pairs]" in " ".join(done.stdout.split())


def test_set_reaches_settings_that_are_no_flags_and_the_artifact(project: Project) -> None:
    done = project.prep("build-pairs", "--set", "pairs.split_seed=7", "--set", "pairs.chunk_overlap=0", "--json", "-q")
    assert done.returncode == 0, done.stderr
    (manifest,) = project.work.glob("runs/pairs/*/manifest.json")
    parameters = json.loads(manifest.read_text())["parameters"]
    assert (parameters["split_seed"], parameters["chunk_overlap"]) == (7, 0)
    status = json.loads(project.prep("status", "--json").stdout)["stages"][0]
    assert (status["stage"], status["state"]) == ("pairs", "stale")
    same = json.loads(
        project.prep("status", "--json", "--set", "pairs.split_seed=7", "--set", "pairs.chunk_overlap=0").stdout
    )["stages"][0]
    assert same["state"] == "fresh"


@pytest.mark.parametrize("given", ["search.top_k", "top_k=5", "search.topk=5", "serch.top_k=5", "search.top_k=many"])
def test_a_wrong_set_is_exit_2(given: str, project: Project) -> None:
    done = project.prep("status", "--set", given)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_flag_wins_over_set(tmp_path: Path) -> None:
    done = run_prep("build-pairs", "a.csv", "--set", "pairs.dev_ratio=2", "--dev-ratio", "3", cwd=tmp_path)
    assert done.returncode == 2
    assert "--dev-ratio = 3.0" in done.stderr


def test_an_old_prep_toml_is_an_error_with_all_new_names(project: Project) -> None:
    old = '[pairs]\ntables = ["faq.csv"]\ndev = 0.2\n[mine]\ndepth = 5\nsimans_a = 1.0\n[train]\nseed = 1\nepochs = 1\n'
    (project.folder / "prep.toml").write_text(old)
    for command in ("refresh", "status", "plan", "calibrate"):
        done = project.prep(command)
        assert done.returncode == 2
        assert [line.removeprefix("prep: ") for line in done.stderr.splitlines()] == [
            "prep.toml: [pairs] dev is now [pairs] dev_ratio",
            "prep.toml: [mine] depth is now [search] top_k",
            "prep.toml: [mine] simans_a is gone: SimANS takes 100, which suits cosines",
            "prep.toml: [train] seed is now [run] seed",
        ]
    assert not (project.work / "runs").exists()


def test_an_old_name_in_set_is_an_error(tmp_path) -> None:  # type: ignore[no-untyped-def]
    done = run_prep("status", "--set", "mine.depth=5", cwd=tmp_path)
    assert done.returncode == 2
    assert "[mine] depth is now [search] top_k" in done.stderr


@pytest.mark.parametrize("command", [["build-pairs", "faq.csv"], ["status"], ["show", "anything"], ["gc"]])
def test_every_command_reports_an_old_workspace_and_the_fix(project: Project, command: list[str]) -> None:
    (project.work / "runs" / "evidence").mkdir(parents=True)
    (project.work / "prep-workspace").touch()
    (project.work / "scores").mkdir()
    (project.work / "scores" / "judge.jsonl").touch()
    done = project.prep(*command)
    assert done.returncode == 2
    for part in ("prep 0.1", "runs/evidence", "Delete it", "--workspace", "scores/judge.jsonl"):
        assert part in done.stderr


def test_flags_of_the_sample_step(project: Project) -> None:
    flags = ["--sampling", "simans", "--hub-cap", "3"]
    flags += ["--source-quotas", "dense=2", "--source-quotas", "bm25=1", "--prefer-category"]
    done = project.prep("mine-negatives", *flags, "--json", "-q")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)["summary"]["sample"]
    assert summary["by_stratum"].keys() == {"simans", "rest"}  # there is no bm25
    assert summary["hubness"]["max_document_count"] <= 3
    refused = project.prep("mine-negatives", "--source-quotas", "dense")
    assert refused.returncode == 2
    assert "'dense' must have the form NAME=PARTS" in refused.stderr


def test_the_old_flag_of_a_renamed_setting_still_counts(project: Project) -> None:
    done = project.prep("build-pairs", "--dev", "0", "--test=0", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["summary"]["pairs"]["splits"]["train"] > 0
    assert json.loads(done.stdout)["summary"]["pairs"]["splits"]["test"] == 0
    assert [line for line in done.stderr.splitlines() if "is now" in line] == [
        "prep: --dev is now --dev-ratio",
        "prep: --test is now --test-ratio",
    ]
    assert project.prep("build-pairs", "--seeed", "1").returncode == 2
