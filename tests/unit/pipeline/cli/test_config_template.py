"""The prep.toml of `prep init`: every line of it, uncommented, is the default; unedited, it says what is missing."""

import re
import tomllib
from pathlib import Path

import pytest

from pipeline.cli.config_template import render_commented_toml
from pipeline.workflow.artifact_store import Workspace
from pipeline.workflow.config import list_section_fields, load_settings
from stages.core.params import BaseParams

TEXT = render_commented_toml()
LINES = TEXT.splitlines()
SETTING_LINES = [number for number, line in enumerate(LINES) if re.match(r"#+\w+ = ", line)]


def params_of(folder: Path, text: str) -> dict[str, BaseParams]:
    (folder / "prep.toml").write_text(text)
    return load_settings(folder / "prep.toml", Workspace(folder / "work"))[0].validate_params()


def test_it_has_every_section_and_every_key_commented_out() -> None:
    fields = list_section_fields()
    assert tomllib.loads(TEXT) == {section: {} for section in fields}
    names = [re.match(r"#+(\w+) = ", LINES[number])[1] for number in SETTING_LINES]  # type: ignore[index]
    assert names == [name for keys in fields.values() for name in keys]


@pytest.mark.parametrize("number", SETTING_LINES, ids=lambda number: LINES[number].split(" = ")[0])
def test_a_line_uncommented_as_printed_is_the_default(number: int, tmp_path: Path) -> None:
    text = "\n".join([*LINES[:number], LINES[number].removeprefix("#"), *LINES[number + 1 :]])
    assert params_of(tmp_path, text) == params_of(tmp_path, "")


def test_all_lines_uncommented_are_the_defaults(tmp_path: Path) -> None:
    text = "\n".join(line.removeprefix("#") if i in SETTING_LINES else line for i, line in enumerate(LINES))
    assert params_of(tmp_path, text) == params_of(tmp_path, "")


def test_a_setting_without_a_value_takes_one_once_both_signs_are_gone(tmp_path: Path) -> None:
    assert LINES[SETTING_LINES[0]] == "#tables = []"
    for name, value in (("answer", "reply"), ("sql", "select 1"), ("verifier", "self")):
        (line,) = [line for line in LINES if line.startswith(f"##{name} = ")]
        assert line == f'##{name} = "..."'
        assert tomllib.loads(line.removeprefix("##").replace("...", value)) == {name: value}
