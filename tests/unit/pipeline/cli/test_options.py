"""Options are made from the settings; help shows first what people use first; --set reaches every setting."""

import json
from pathlib import Path

import click
import pytest

from pipeline.cli.command_types import SettingsCommand
from pipeline.cli.main import prep
from pipeline.cli.reference import iter_commands
from pipeline.workflow.config import list_section_fields
from pipeline.workflow.graph import PIPELINE
from stages.core.params import has_mark
from tests.conftest import Project, run_prep

COMMANDS = dict(iter_commands(prep, "prep"))


def options_of(path: str) -> list[click.Option]:
    command = COMMANDS[path]
    params = command.get_params(click.Context(command, info_name=path))
    return [param for param in params if isinstance(param, click.Option)]


def help_of(path: str, width: int = 100) -> list[str]:
    command = COMMANDS[path]
    context = click.Context(command, info_name=path, terminal_width=width)
    return command.get_help(context).splitlines()


@pytest.mark.parametrize("path", COMMANDS)
def test_a_command_has_at_most_30_options_each_with_a_short_help(path: str) -> None:
    options = options_of(path)
    assert len(options) <= 30
    flags = [name for option in options for name in (*option.opts, *option.secondary_opts)]
    assert len(flags) == len(set(flags))


@pytest.mark.parametrize("path", COMMANDS)
def test_the_help_of_a_command_fits_two_screens(path: str) -> None:
    lines = help_of(path)
    assert len(lines) <= 100
    assert all(len(line) <= 100 for line in lines)


@pytest.mark.parametrize(
    "path", ["prep build-pairs", "prep encode", "prep mine-negatives", "prep train", "prep evaluate"]
)
def test_the_ten_settings_that_people_use_first_come_first(path: str) -> None:
    lines = help_of(path)
    first, advanced, common = (lines.index(f"{name}:") for name in ("Options", "Advanced", "Common"))
    assert first < advanced < common
    command = COMMANDS[path]
    assert isinstance(command, SettingsCommand)
    shown = [line.split()[0] for line in lines[first + 1 : advanced] if line.startswith("  --")]
    assert 1 <= len(shown) <= 10
    assert shown == [option.opts[0] for _, option in command.setting_options if not option.is_advanced]
    assert all(any(f"{flag} " in line for line in lines[common:]) for flag in ("--set", "--workspace", "--help"))


def test_every_setting_has_one_or_two_sentences_of_help() -> None:
    for section, fields in list_section_fields().items():
        for name, field in fields.items():
            text = field.description or ""
            assert 10 < len(text) <= 170, (section, name)
            assert text.replace("...", "").replace(". - is", "").count(". ") <= 1, (section, name)


def test_a_setting_is_a_flag_of_the_command_of_its_section_unless_it_stands_in_prep_toml_only() -> None:
    flags: dict[str, set[str]] = {}
    for command in COMMANDS.values():
        if isinstance(command, SettingsCommand):
            for section, option in command.setting_options:
                flags.setdefault(section, set()).add(str(option.name))
    for section, fields in list_section_fields().items():
        assert flags[section] == {name for name, field in fields.items() if not has_mark(field, "no_flag")}


@pytest.mark.parametrize("path", ["prep calibrate", "prep audit", "prep plan", "prep show", "prep status", "prep gc"])
def test_commands_that_only_read_take_settings_by_set_alone(path: str) -> None:
    command = COMMANDS[path]
    assert isinstance(command, SettingsCommand)
    assert command.setting_options == []
    assert {"--set", "--config"} <= {name for option in options_of(path) for name in option.opts}


def test_prep_help_names_every_step_with_its_section_and_command_in_order() -> None:
    lines = [line.split() for line in prep.get_help(click.Context(prep, info_name="prep")).splitlines()]
    table = [words[:3] for words in lines if len(words) >= 3 and words[1].startswith("[")]
    assert [words[0] for words in table] == [*(stage.name for stage in PIPELINE), "gate"]
    assert [words[1] for words in table[:-1]] == [f"[{stage.section}]" for stage in PIPELINE]
    assert all(f"prep {words[2]}" in COMMANDS for words in table)


def test_set_reaches_settings_that_are_no_flags_and_the_artifact(project: Project) -> None:
    done = project.prep("build-pairs", "--set", "pairs.split_seed=7", "--set", "pairs.min_chars=1", "--json", "-q")
    assert done.returncode == 0, done.stderr
    (manifest,) = project.work.glob("runs/pairs/*/manifest.json")
    parameters = json.loads(manifest.read_text())["parameters"]
    assert (parameters["split_seed"], parameters["min_chars"]) == (7, 1)
    status = json.loads(project.prep("status", "--json").stdout)["stages"][0]
    assert (status["stage"], status["state"]) == ("pairs", "stale")
    same = json.loads(
        project.prep("status", "--json", "--set", "pairs.split_seed=7", "--set", "pairs.min_chars=1").stdout
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
