"""How large a model is and how many tokens it reads of a text, by its files; no weights are loaded."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stages.core.arrays import Ints
from stages.core.errors import InputError


class ModelSize(NamedTuple):
    """The size of a transformer; `max_length` is the limit in tokens that it sets itself."""

    n_weights: int
    n_layers: int
    hidden_size: int
    max_length: int


def read_model_size(folder: Path) -> ModelSize:
    """The size of the model in `folder`; facts that its files lack are taken from BERT base."""
    facts: dict[str, Any] = {}
    for name in ("config.json", "tokenizer_config.json", "sentence_bert_config.json"):
        path = folder / name
        facts |= json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    weights = [*folder.glob("*.safetensors")] or [*folder.glob("pytorch_model*.bin")]
    bytes_per_weight = 2 if "16" in str(facts.get("dtype") or facts.get("torch_dtype")) else 4
    limits = [facts.get(key) or 1e9 for key in ("max_seq_length", "model_max_length", "max_position_embeddings")]
    return ModelSize(
        sum(path.stat().st_size for path in weights) // bytes_per_weight,
        facts.get("num_hidden_layers") or facts.get("n_layers") or 12,
        facts.get("hidden_size") or facts.get("dim") or 768,
        int(min(limits)),
    )


def count_tokens(folder: Path, texts: Sequence[str], second_texts: Sequence[str] | None = None) -> Ints:
    """Tokens of each text, or of each pair with `second_texts`, as the model in `folder` reads it, not cut: [n].

    Raises `InputError` if the folder has no tokenizer.
    """
    if not texts:
        return np.empty(0, np.int64)
    from transformers import AutoTokenizer

    from stages.core.library_logging import silence_huggingface_logging

    with silence_huggingface_logging():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise InputError(f"the tokenizer in {folder} can't be read: {error}") from error
        ids = tokenizer(list(texts), second_texts and list(second_texts), return_attention_mask=False)["input_ids"]
    return np.array([len(one) for one in ids], np.int64)
