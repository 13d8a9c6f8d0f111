import json
from pathlib import Path
from typing import Any

import pytest

from stages.embedding.encoder import resolve_encoder_spec
from stages.embedding.tokenizer import load_tokenizer, read_max_length


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"sentence_bert_config": {"max_seq_length": 256}, "config": {"max_position_embeddings": 512}}, 256),
        ({"tokenizer_config": {"model_max_length": 512}, "config": {"max_position_embeddings": 514}}, 512),
        ({"tokenizer_config": {"model_max_length": 1e30}, "config": {"max_position_embeddings": 8192}}, 8192),
        ({"tokenizer_config": {"model_max_length": 1e30}}, None),
        ({}, None),
    ],
)
def test_the_limit_of_a_model(files: dict[str, Any], expected: int | None, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert read_max_length(tmp_path) == expected


def test_prompt_and_special_tokens_count(tiny_model: Path) -> None:
    spec = resolve_encoder_spec(str(tiny_model))
    found = load_tokenizer(tiny_model, spec)
    assert found
    assert found.max_length == 128
    assert found.count_text_tokens("") == 126  # its tokens [CLS] and [SEP]
    assert found.count_text_tokens("ab: ") == 123  # a, ##b and ":", which it does not know
    shorter = load_tokenizer(tiny_model, resolve_encoder_spec(str(tiny_model), max_length=16))
    assert shorter
    assert shorter.max_length == 16


def test_a_folder_without_a_tokenizer(tiny_model: Path, tmp_path: Path) -> None:
    spec = resolve_encoder_spec(str(tiny_model))
    assert load_tokenizer(tmp_path, spec) is None
    (tmp_path / "tokenizer.json").write_text("{")
    assert load_tokenizer(tmp_path, spec) is None
