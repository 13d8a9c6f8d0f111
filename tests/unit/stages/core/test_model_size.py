"""Facts of a model, from its files."""

from pathlib import Path

import pytest

from stages.core.errors import InputError
from stages.core.model_size import count_tokens, read_model_size


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


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        count_tokens(tmp_path, ["a"])
