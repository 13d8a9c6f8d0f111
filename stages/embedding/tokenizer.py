"""The tokenizer of an encoder on this machine, and how much of a text the encoder reads; no weights are loaded."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.embedding.encoder import EncoderSpec

_SETTINGS_FILES = ("sentence_bert_config.json", "tokenizer_config.json", "config.json")


@dataclass(frozen=True)
class EncoderTokenizer:
    """A tokenizer of transformers, and what is read of a text."""

    tokenizer: Any
    max_length: int | None
    """Tokens of a text, with its prompt and the special ones; None if there is no limit."""

    def count_text_tokens(self, prompt: str) -> int | None:
        """Tokens that are left for a text behind `prompt`."""
        if self.max_length is None:
            return None
        n_prompt = len(self.tokenizer(prompt, add_special_tokens=False)["input_ids"]) if prompt else 0
        return max(1, self.max_length - n_prompt - int(self.tokenizer.num_special_tokens_to_add()))


def load_tokenizer(folder: Path, spec: EncoderSpec) -> EncoderTokenizer | None:
    """The tokenizer of the model in `folder`; None if it has none that transformers can load without its code."""
    from transformers import AutoTokenizer

    from stages.core.libraries import silence_huggingface_logging

    place = _find_tokenizer_folder(folder)
    if place is None:
        return None
    with silence_huggingface_logging():
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(place, local_files_only=True)
        except Exception:  # of whatever kind: the encoder itself may load all the same, and if not, says why
            return None
    return EncoderTokenizer(tokenizer, spec.max_length or read_max_length(place))


def read_max_length(folder: Path) -> int | None:
    """The limit that a model's files set: that of sentence-transformers, else the least of the tokenizer's and of the
    positions'. None if there is none."""
    sentence_bert, tokenizer, config = (_read_settings(folder / name) for name in _SETTINGS_FILES)
    limits = [sentence_bert.get("max_seq_length")]
    if not limits[0]:
        limits = [tokenizer.get("model_max_length"), config.get("max_position_embeddings")]
    known = [limit for limit in limits if isinstance(limit, int | float) and math.isfinite(limit) and 0 < limit < 1e9]
    return int(min(known)) if known else None


def _find_tokenizer_folder(folder: Path) -> Path | None:
    """Where the first module with a tokenizer keeps it (in the folder itself, or in 0_Transformer)."""
    names = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "sentencepiece.bpe.model")
    places = [folder, *sorted(path for path in folder.glob("*") if path.is_dir())]
    return next((place for place in places if any((place / name).is_file() for name in names)), None)


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
