"""Where a model's files are, and what they hash to."""

import hashlib
from pathlib import Path

import pytest

from stages.core import model_files
from stages.core.errors import InputError
from stages.core.model_files import (
    DEFAULT_ENCODER,
    count_tokens,
    model_digest,
    model_display_name,
    read_model_size,
    resolve_model,
)


def test_the_packaged_default_is_the_official_file() -> None:
    weights = (resolve_model(DEFAULT_ENCODER) / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def test_a_digest_depends_on_contents_and_names_but_not_on_the_place_or_the_readme(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(b"1")
        (tmp_path / name / "README.md").write_text(name)
    assert model_digest(tmp_path / "one") == model_digest(tmp_path / "two")
    (tmp_path / "two" / "model.safetensors").write_bytes(b"2")
    assert model_digest(tmp_path / "one") != model_digest(tmp_path / "two")


def test_a_folder_that_is_no_model_and_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no config\.json"):
        resolve_model(str(tmp_path))
    with pytest.raises(InputError, match="there is no model folder"):
        resolve_model(str(tmp_path / "nowhere"))


def test_a_model_is_called_by_its_hub_id_or_its_folders_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    assert (
        model_display_name(str(tmp_path / "mine"))
        == model_display_name(".")
        == model_display_name("../mine/")
        == "mine"
    )
    assert model_display_name("BAAI/bge-reranker-base") == "BAAI/bge-reranker-base"


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_model_name_is_an_error(name: str) -> None:
    with pytest.raises(InputError, match="name a model"):
        resolve_model(name)


@pytest.mark.parametrize("name", ["~nobody-of-this-name/model", "m" * 300])
def test_an_invalid_path_is_an_error(name: str) -> None:
    with pytest.raises(InputError, match="can't be read"):
        resolve_model(name)


def test_unreadable_files_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")

    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(model_files, "file_digest", refuse)  # not by chmod: root may read everything
    with pytest.raises(InputError, match=r"Permission denied: .*config\.json"):
        model_digest(tmp_path)


def test_an_unreachable_hub_model_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="could not be fetched"):
        resolve_model("nobody/no-such-model")


def test_the_size_of_a_model_is_in_its_files(tiny_model: Path) -> None:
    size = read_model_size(tiny_model)
    assert (size.n_layers, size.hidden_size, size.max_length) == (2, 32, 128)
    weights = tiny_model / "model.safetensors"
    assert size.n_weights == weights.stat().st_size // 4


def test_weights_of_half_precision_have_two_bytes(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(bytes(600))
    (tmp_path / "config.json").write_text('{"torch_dtype": "float16", "dim": 24, "n_layers": 3}')
    size = read_model_size(tmp_path)
    assert (size.n_weights, size.hidden_size, size.n_layers) == (300, 24, 3)


def test_the_limit_is_the_lowest_that_the_files_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 514}')
    assert read_model_size(tmp_path).max_length == 514
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 1e30}')
    assert read_model_size(tmp_path).max_length == 514
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 512}')
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": null}')
    assert read_model_size(tmp_path).max_length == 512
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 77}')
    assert read_model_size(tmp_path).max_length == 77


def test_tokens_are_counted_without_a_limit(tiny_model: Path) -> None:
    # [CLS] and [SEP], and the letters between; a pair has one [SEP] more
    assert count_tokens(tiny_model, ["ab", "a " * 300]).tolist() == [4, 302]
    assert count_tokens(tiny_model, ["ab"], ["cde"]).tolist() == [8]
    assert count_tokens(tiny_model, []).tolist() == []


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        count_tokens(tmp_path, ["a"])
