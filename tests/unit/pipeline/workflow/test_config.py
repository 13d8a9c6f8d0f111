"""Settings: prep.toml, then --set, then flags; every mistake is named with its place."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.workflow.artifact_store import Workspace
from pipeline.workflow.config import (
    GivenSetting,
    PipelineSettings,
    list_section_fields,
    load_settings,
    parse_overrides,
    remember_settings,
)
from stages.core.errors import InputError


def flags(section: str, **values: object) -> list[GivenSetting]:
    return [GivenSetting(section, name, v, f"--{name.replace('_', '-')}") for name, v in values.items()]


def settings_of(tmp_path: Path, text: str, given: list[GivenSetting] | None = None) -> PipelineSettings:
    path = tmp_path / "prep.toml"
    path.write_text(text)
    return load_settings(path, Workspace(tmp_path / "work"), given or [])[0]


def params_of(tmp_path: Path, text: str, given: list[GivenSetting] | None = None) -> dict[str, Any]:
    return dict(settings_of(tmp_path, text, given).validate_params())


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """One without a prep.toml."""
    monkeypatch.chdir(tmp_path)
    made = Workspace(tmp_path / "work")
    made.root.mkdir()
    return made


def test_flags_win_over_set_and_set_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    text = "[search]\ntop_k = 50\n[mine]\nnum_negatives = 3\nthreshold = 0.8\nmask = 'perc'\n"
    given = [*parse_overrides(["search.top_k=55", "mine.num_negatives=4"]), *flags("search", top_k=60)]
    params = params_of(tmp_path, text, given)
    assert params["search"].top_k == 60
    assert params["sample"].num_negatives == 4
    assert params["mask"].threshold == 0.8
    assert params["encode"].batch_tokens == 4096


def test_the_stages_that_share_a_setting_get_one_value(tmp_path: Path) -> None:
    text = "[run]\nseed = 7\ndevice = 'cpu'\ndtype = 'bfloat16'\n[mine]\nnum_negatives = 3\n"
    params = params_of(tmp_path, text + "[evaluate]\nbootstrap_samples = 500\n")
    assert [params[stage].seed for stage in ("search", "verify", "sample", "train", "evaluate", "gate")] == [7] * 6
    assert {params[stage].device for stage in ("encode", "search", "verify", "train", "evaluate", "gate")} == {"cpu"}
    assert {params[stage].dtype for stage in ("encode", "search", "verify", "train", "evaluate")} == {"bfloat16"}
    assert [params[stage].num_negatives for stage in ("verify", "mask", "sample")] == [3, 3, 3]
    assert [params[stage].bootstrap_samples for stage in ("evaluate", "gate")] == [500, 500]
    assert params["pairs"].split_seed == 0


def test_float16_is_for_the_encoder_alone(tmp_path: Path) -> None:
    params = params_of(tmp_path, "[run]\ndtype = 'float16'\n")
    found = {stage: params[stage].dtype for stage in ("encode", "search", "verify", "train", "evaluate")}
    assert found == {
        "encode": "float16", "search": "float32", "verify": "float32", "train": "float32", "evaluate": "float32",
    }  # fmt: skip


def test_set_reads_toml_and_other_values_as_text(tmp_path: Path) -> None:
    texts = ['search.sources=["dense", "bm25:50"]', "mine.mask=perc", "mine.threshold = 0.9", 'pairs.answer=""']
    params = params_of(tmp_path, "", parse_overrides([*texts, "encode.query_prompt=query: ", "run.device=cuda:1"]))
    assert params["search"].sources == ("dense", "bm25:50")
    assert (params["mask"].mask, params["mask"].threshold) == ("perc", 0.9)
    assert params["pairs"].answer == ""
    assert params["encode"].query_prompt == "query:"
    assert params["train"].device == "cuda:1"


@pytest.mark.parametrize(
    "text", ["top_k=5", "search.top_k", "=5", ".top_k=5", "search.=5", "search.depth=5", "mine.depth=5"]
)
def test_set_with_an_unknown_setting_is_an_error(text: str) -> None:
    with pytest.raises(InputError, match="--set"):
        parse_overrides([text])


def test_paths_in_the_file_are_relative_to_it(tmp_path: Path) -> None:
    params = params_of(tmp_path, '[pairs]\ntables = ["a.csv", "/b.csv"]\n')
    assert list(params["pairs"].tables) == [str(tmp_path / "a.csv"), "/b.csv"]


def test_model_folders_in_the_file_are_relative_to_it_in_lists_too(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    text = '[encode]\nmodel = "mine"\nextra_models = ["mine", "BAAI/bge-small-en-v1.5"]\n[verify]\nverifier = "mine"\n'
    params = params_of(tmp_path, text)
    assert params["encode"].model == str(tmp_path / "mine")
    assert params["encode"].extra_models == (str(tmp_path / "mine"), "BAAI/bge-small-en-v1.5")
    assert params["verify"].verifier == str(tmp_path / "mine")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[search]\ntop_l = 5", r"prep.toml: \[search\]: unknown key 'top_l' \(did you mean 'top_k'\?\)"),
        ("[mining]\ntop_k = 5", r"unknown section \[mining\] \(did you mean 'mine'\?\)"),
        ('[search]\ntop_k = "deep"', r"prep.toml \[search\] top_k = 'deep': .*integer"),
        ("[search]\ntop_k = 0", r"prep.toml \[search\] top_k = 0: "),
        ('[search]\nsources = ["bm25"]', r"prep.toml \[search\] sources = \['bm25'\]: dense must be among the sources"),
        ("[run]\ndevice = 'gpu'", r"prep.toml \[run\] device = 'gpu': "),
        ("[verify]\nllm_judge_budget = 4", r"\[verify\] llm_judge_budget = 4 needs a llm_judge"),
        ("[mine\n", r"prep.toml is not valid TOML: .*line 1"),
        ("top_k = 5", r"top_k = 5 stands outside a section"),
    ],
)
def test_mistakes_are_named_with_their_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings_of(tmp_path, text).validate_params()


def test_all_unknown_names_and_all_wrong_values_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as unknown:
        settings_of(tmp_path, "seed = 1\n[serch]\ntop_k = 5\n[mine]\nmaks = 1\nhub_kap = 2\n[train]\nepoch = 3\n")
    assert [line.split(". ")[0] for line in str(unknown.value).splitlines()] == [
        f"{tmp_path / 'prep.toml'}: {problem}"
        for problem in (
            "seed = 1 stands outside a section",
            "unknown section [serch] (did you mean 'search'?)",
            "[mine]: unknown key 'maks' (did you mean 'mask'?)",
            "[mine]: unknown key 'hub_kap' (did you mean 'hub_cap'?)",
            "[train]: unknown key 'epoch' (did you mean 'epochs'?)",
        )
    ]
    with pytest.raises(InputError) as wrong:
        settings_of(tmp_path, "[search]\ntop_k = 0\n[mine]\nnum_negatives = 0\n[train]\nepochs = 0\n").validate_params()
    assert [line.split(" = ")[0].split()[-1] for line in str(wrong.value).splitlines()] == [
        "top_k",
        "num_negatives",
        "epochs",
    ]


def test_flags_beside_a_prep_toml_are_reported_as_not_saved(tmp_path: Path) -> None:
    given = [*parse_overrides(["search.top_k=7"]), *flags("mine", mask="perc", hub_cap=1)]
    message = settings_of(tmp_path, "[search]\ntop_k = 50\n", given).describe_given()
    assert message is not None
    assert "--set search.top_k, --mask, --hub-cap" in message
    assert settings_of(tmp_path, "[search]\ntop_k = 50\n").describe_given() is None


def test_a_wrong_flag_is_named_as_a_flag(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--top-k = -1: "):
        settings_of(tmp_path, "", flags("search", top_k=-1)).validate_params()
    with pytest.raises(InputError, match=r"^--set search.top_k = -1: "):
        settings_of(tmp_path, "", parse_overrides(["search.top_k=-1"])).validate_params()


def test_a_flag_without_effect_is_an_error_with_any_prep_toml(tmp_path: Path) -> None:
    given = [*flags("verify", llm_judge_model="m"), *flags("mine", rank_window=(1, 5))]
    with pytest.raises(InputError) as refused:
        settings_of(tmp_path, "[mine]\nnum_negatives = 3\n", given).validate_params()
    assert {line.split(" = ")[0] for line in str(refused.value).splitlines()} == {
        "--llm-judge-model",
        "--rank-window",
    }


def test_a_flag_may_leave_settings_of_prep_toml_unused(tmp_path: Path) -> None:
    text = '[mine]\nrelabel = "positive"\nrelabel_min_probability = 0.8\n'
    assert params_of(tmp_path, text, flags("mine", relabel="no"))["mask"].relabel_min_probability == 0.8
    with pytest.raises(InputError, match=r"relabel_min_probability = 0.8 needs relabel = 'positive'"):
        params_of(tmp_path, text.replace('"positive"', '"no"'), flags("mine", sampling="random"))


def test_remembered_settings_may_be_unused(workspace: Workspace) -> None:
    remember_settings(workspace, flags("mine", relabel="positive", relabel_min_probability=0.8))
    remember_settings(workspace, flags("mine", relabel="no"))
    assert load_settings(None, workspace, flags("train", epochs=1))[0].validate_params()


def test_a_named_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        load_settings(tmp_path / "no.toml", Workspace(tmp_path))


def test_settings_are_remembered_without_a_prep_toml(workspace: Workspace, tmp_path: Path) -> None:
    remember_settings(workspace, [*flags("pairs", tables=("a.csv",), question="q"), *parse_overrides(["run.seed=5"])])
    settings, from_file = load_settings(None, workspace, flags("search", top_k=9))
    assert not from_file
    params: dict[str, Any] = dict(settings.validate_params())
    assert list(params["pairs"].tables) == [str(tmp_path / "a.csv")]
    assert params["pairs"].question == "q"
    assert params["search"].top_k == 9
    assert params["train"].seed == 5


def test_another_table_makes_the_columns_of_the_old_one_forgotten(workspace: Workspace) -> None:
    remember_settings(workspace, [*flags("pairs", tables=("a.csv",), question="q"), *flags("search", top_k=9)])
    other = flags("pairs", tables=("b.csv",))
    params: dict[str, Any] = dict(load_settings(None, workspace, other)[0].validate_params())
    assert (params["pairs"].question, params["search"].top_k) == (None, 9)
    remember_settings(workspace, other)
    assert json.loads((workspace.root / "settings.json").read_text())["search"] == {"top_k": 9}


def test_remembered_settings_are_shown_without_database_urls(workspace: Workspace) -> None:
    assert load_settings(None, workspace, flags("search", top_k=9))[0].describe_remembered() is None
    remember_settings(workspace, flags("pairs", database="postgresql://me:secret@host/db", sql="select 1"))
    remember_settings(workspace, [*flags("search", top_k=7), *flags("mine", mask="abs")])
    shown = load_settings(None, workspace, flags("search", top_k=9))[0].describe_remembered()
    assert shown is not None
    assert shown.endswith(
        ": [pairs] database = (kept), [pairs] sql = 'select 1', [mine] mask = 'abs'"
    )  # top_k is this command's own


def test_every_section_lists_its_keys_once_and_run_comes_last() -> None:
    fields = list_section_fields()
    assert list(fields) == ["pairs", "encode", "search", "mine", "verify", "train", "evaluate", "refresh", "run"]
    assert set(fields["run"]) == {"seed", "device", "dtype"}
    assert not any(fields["run"].keys() & keys.keys() for section, keys in fields.items() if section != "run")
