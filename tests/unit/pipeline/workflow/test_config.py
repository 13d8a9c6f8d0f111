"""Settings: prep.toml, then flags; every mistake is named with its place."""

import re
import tomllib
from pathlib import Path

import pytest

from pipeline.workflow.artifact_store import Workspace
from pipeline.workflow.config import (
    list_section_fields,
    list_section_models,
    load_settings,
    remember_flags,
    render_commented_toml,
)
from stages.core.errors import InputError


def settings_of(tmp_path: Path, text: str, section: str | None = None, **flags: object):  # type: ignore[no-untyped-def]
    path = tmp_path / "prep.toml"
    path.write_text(text)
    return load_settings(path, Workspace(tmp_path / "work"), section, flags)[0]


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "[mine]\ndepth = 50\nnegatives = 3\n", "mine", depth=60)
    params = settings.validate_params()
    assert params["search"].depth == 60
    assert params["sample"].negatives == 3


def test_paths_in_the_file_are_relative_to_it(tmp_path: Path) -> None:
    params = settings_of(tmp_path, '[pairs]\ntables = ["a.csv", "/b.csv"]\n').validate_params()
    assert list(params["pairs"].tables) == [str(tmp_path / "a.csv"), "/b.csv"]


def test_model_folders_in_the_file_are_relative_to_it_in_lists_too(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    settings = settings_of(tmp_path, '[encode]\nmodel = "mine"\nmore_models = ["mine", "BAAI/bge-small-en-v1.5"]\n')
    params = settings.validate_params()["encode"]
    assert params.model == str(tmp_path / "mine")
    assert params.more_models == (str(tmp_path / "mine"), "BAAI/bge-small-en-v1.5")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[mine]\ndepht = 5", r"prep.toml \[mine\]: unknown key 'depht' \(did you mean 'depth'\?\)"),
        ("[mining]\ndepth = 5", r"unknown section \[mining\] \(did you mean 'mine'\?\)"),
        ('[mine]\ndepth = "deep"', r"prep.toml \[mine\] depth = 'deep': .*integer"),
        ("[mine]\ndepth = 0", r"prep.toml \[mine\] depth = 0: "),
        ('[mine]\nsources = ["bm25"]', r"prep.toml \[mine\] sources = \['bm25'\]: dense must be among the sources"),
        (
            "[mine]\nfolds = 4",
            r"prep.toml \[mine\] folds = 4 counts only with teacher = 'self': give that, or leave it",
        ),
        (
            '[mine]\nsampling = "slices"\nmask = "perc"',
            r"\[mine\] mask = 'perc' does not count with sampling = 'slices'",
        ),
        ("[mine\n", r"prep.toml is not valid TOML: .*line 1"),
        ("depth = 5", r"depth = 5 stands outside a section"),
    ],
)
def test_mistakes_are_named_with_their_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings_of(tmp_path, text).validate_params()


def test_flags_beside_a_file_are_said_not_to_stay(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "[mine]\ndepth = 50\n", "mine", mask="perc", max_false_negatives=0.01)
    assert settings.describe_flags() == (
        "for this command alone: --mask, --max-false-negatives; what is to stay goes into prep.toml"
    )
    assert settings_of(tmp_path, "[mine]\ndepth = 50\n", "mine").describe_flags() is None


def test_a_wrong_flag_is_named_as_a_flag(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--depth = -1: "):
        settings_of(tmp_path, "", "mine", depth=-1).validate_params()


def test_a_flag_that_would_be_ignored_is_refused_whatever_the_file_says(tmp_path: Path) -> None:
    for text in ("", '[mine]\nsampling = "slices"\n'):
        with pytest.raises(InputError, match=r"^--mask = 'perc' does not count with sampling = 'slices'.*'learned'$"):
            settings_of(tmp_path, text, "mine", mask="perc", sampling="slices").validate_params()
    with pytest.raises(InputError, match=r"^--folds = 3 counts only with teacher = 'self'.*\n--above = 0.8 "):
        settings_of(tmp_path, "[mine]\nnegatives = 3\n", "mine", folds=3, above=0.8).validate_params()


def test_what_the_file_describes_may_rest_while_a_flag_goes_another_way(tmp_path: Path) -> None:
    text = '[mine]\nmask = "window"\nwindow_start = 5\nsampling = "simans"\nsimans_a = 100.0\n'
    assert settings_of(tmp_path, text, "mine", mask="perc").validate_params()["mask"].mask == "perc"
    assert settings_of(tmp_path, text, "mine", sampling="top").validate_params()["sample"].simans_a == 100
    assert settings_of(tmp_path, text.replace("simans_a = 100.0", ""), "mine", sampling="slices").validate_params()
    with pytest.raises(InputError, match=r"window_start = 5 counts only with mask = 'window'"):
        settings_of(tmp_path, text.replace('"window"', '"perc"'), "mine", sampling="top").validate_params()


def test_what_is_remembered_may_rest_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    workspace = Workspace(tmp_path / "work")
    workspace.root.mkdir()
    remember_flags(workspace, "mine", {"mask": "perc", "sampling": "random"})
    assert load_settings(None, workspace, "mine", {"sampling": "slices"})[0].validate_params()
    remember_flags(workspace, "mine", {"sampling": "slices"})
    assert load_settings(None, workspace, "train", {"epochs": 1})[0].validate_params()["mask"].mask == "perc"


def test_a_named_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        load_settings(tmp_path / "no.toml", Workspace(tmp_path), None, {})


def test_flags_are_remembered_where_no_file_holds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    workspace = Workspace(tmp_path / "work")
    workspace.root.mkdir()
    remember_flags(workspace, "pairs", {"tables": ("a.csv",), "question": "q"})
    settings, from_file = load_settings(None, workspace, "mine", {"depth": 9})
    assert not from_file
    params = settings.validate_params()
    assert list(params["pairs"].tables) == [str(tmp_path / "a.csv")]
    assert params["pairs"].question == "q"
    assert params["search"].depth == 9


def test_what_is_remembered_is_shown_but_no_database_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    workspace = Workspace(tmp_path / "work")
    workspace.root.mkdir()
    assert load_settings(None, workspace, "mine", {"depth": 9})[0].describe_remembered() is None
    remember_flags(workspace, "pairs", {"database": "postgresql://me:secret@host/db", "sql": "select 1"})
    remember_flags(workspace, "mine", {"depth": 7, "mask": "abs"})
    shown = load_settings(None, workspace, "mine", {"depth": 9})[0].describe_remembered()
    assert shown is not None
    assert shown.endswith(
        ": [pairs] database = (kept), [pairs] sql = 'select 1', [mine] mask = 'abs'"
    )  # depth is this command's own


def test_the_written_prep_toml_is_valid_and_holds_every_key_with_its_default() -> None:
    text = render_commented_toml()
    assert set(tomllib.loads(text)) == set(list_section_models())
    uncommented = re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE).replace(' = ""', ' = "none"')
    sections = tomllib.loads(uncommented)
    for section, models in list_section_models().items():
        for name, field in list_section_fields(models).items():
            expected = "none" if field.default is None else field.default
            found = sections[section].pop(name)
            if name != "tables":
                assert (tuple(found) if isinstance(expected, tuple) else found) == expected
        assert sections[section] == {}
