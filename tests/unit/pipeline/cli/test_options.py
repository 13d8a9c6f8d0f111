"""Options are made from the settings; help shows first what people use first; --set reaches every setting."""

import click
import pytest

from pipeline.cli.command_types import SettingsCommand
from pipeline.cli.main import prep
from pipeline.cli.reference import iter_commands
from pipeline.workflow.config import list_section_fields
from pipeline.workflow.graph import PIPELINE
from stages.core.params import has_mark

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
    own = [param.opts[0] for param in command.params if isinstance(param, click.Option)]
    shown = [line.split()[0] for line in lines[first + 1 : advanced] if line.startswith("  --")]
    assert 1 <= len(shown) <= 10
    assert shown == own + [option.opts[0] for _, option in command.setting_options if not option.is_advanced]
    assert all(any(f"{flag} " in line for line in lines[common:]) for flag in ("--set", "--workspace", "--help"))


def test_every_setting_has_one_or_two_sentences_of_help() -> None:
    for section, fields in list_section_fields().items():
        for name, field in fields.items():
            text = field.description or ""
            assert 10 < len(text) <= 170, (section, name)
            assert text.replace("...", "").replace(". - is", "").count(". ") <= 1, (section, name)


def test_a_setting_is_a_flag_of_its_section_s_command_unless_it_has_no_flag() -> None:
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


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("prep mine-negatives", ["--no-answers", "--negatives=3"], ["--no-exclude-answers", "--num-negatives=3"]),
        ("prep mine-negatives", ["--depth", "5"], ["--top-k", "5"]),
        ("prep train", ["--positives", "2"], ["--num-positives", "2"]),
        ("prep build-pairs", ["--dev-ratio", "0"], ["--dev-ratio", "0"]),
    ],
)
def test_the_old_flag_of_a_setting_is_taken_for_the_new_one(path: str, old: list[str], new: list[str]) -> None:
    command = COMMANDS[path]
    parsed = [command.make_context(path, list(arguments), resilient_parsing=True).params for arguments in (old, new)]
    assert parsed[0] == parsed[1]
    assert any(value not in (None, ()) for name, value in parsed[0].items() if name.replace("_", "-") in str(new))
