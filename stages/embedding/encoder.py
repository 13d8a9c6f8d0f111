"""The encoder: its specification, which is read without loading the model, and the loaded model.

`Encoder` is a model on this machine, `server_encoder.ServerEncoder` one behind a URL.

With `Encoder` the vector of a text depends only on the text and the encoder, so an incremental run gives the same
vectors as a full run. Two effects could make it depend on the other texts of a batch. On the CPU both are avoided, in
float32 and bfloat16:

- Padding changes the order of the sums in attention and pooling. So a text is padded to its own token count rounded up
  to a multiple of 8, not to the longest text of the batch.
- Matrix products use other kernels for small, odd row counts (measured: torch 2.13 with MKL, 1-3, 7 and 9 rows). With
  padding, row counts are multiples of 8, and then neither the count nor the number of threads changed a bit. If a layer
  works on whole texts (a Dense after the pooling), or if the model's limit is no multiple of 8, batches are filled to a
  multiple of 8 texts.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from stages.core.arrays import Floats
from stages.core.device import detect_device_type, pick_device, should_use_bfloat16
from stages.core.errors import InputError
from stages.core.memory import is_oom
from stages.core.model_files import model_digest, model_display_name, resolve_model

_ROW_MULTIPLE = 8
"""Row counts of matrix products are multiples of this."""
_BATCH_INVARIANT_MODULES = {"Transformer", "Pooling", "Normalize"}
"""Modules of sentence-transformers without a matrix product that has one row per text."""
_DOCUMENT_PROMPT_NAMES = ("document", "passage", "corpus")
"""Names of the document prompt in models, in the order of sentence-transformers."""


@dataclass(frozen=True)
class ServerSpec:
    """What an encoder behind a URL has beside its `EncoderSpec`."""

    url: str
    document_model: str
    """The name under which documents are sent; empty if it is that of the queries."""
    input_type: str
    """The request's `input_type` for documents; empty if requests have none."""
    dimension: int
    """Length of its vectors; 0 if it was never asked."""
    probe: tuple[float, ...]
    """The vectors that it gave the probe text as a query and as a document, one behind the other."""


@dataclass(frozen=True)
class EncoderSpec:
    """Everything that a vector depends on, besides the text. `key` names the encoder's folder in the vector store."""

    model: str
    weights: str
    """Digest of the model's files; of a server, which shows none, that of its probe's vectors."""
    query_prompt: str
    document_prompt: str
    max_length: int | None
    dtype: str
    device: str
    similarity: str
    routed: bool
    """The model treats queries and documents differently beyond their prompts (a sentence-transformers Router)."""
    server: ServerSpec | None = None
    """Set if the model is behind a URL."""

    def __str__(self) -> str:
        return f"{self.model} at {self.server.url}" if self.server else f"{self.model} in {self.dtype}"

    def prompt_for(self, role: str) -> str:
        """The prompt of a role, "query" or "document"."""
        return self.query_prompt if role == "query" else self.document_prompt

    def hash_prefix(self, role: str) -> str:
        """The prefix of a text when it is hashed: texts with the same prefix have the same vector in both roles."""
        return f"{role}\0{self.prompt_for(role)}" if self.routed else self.prompt_for(role)

    @property
    def key(self) -> str:
        """The encoder's name in the vector store.

        For a model on this machine it depends on the weights, but not on the model's name or on library versions: with
        other versions, texts are not encoded again. For a server it depends on the URL, the names of the models,
        input_type, the dimension and the digest of the probe's vectors.
        """
        parts = {name: value for name, value in asdict(self).items() if name not in ("model", "server")}
        if self.server:
            parts |= {"model": self.model, **asdict(self.server)}
            del parts["probe"]  # its digest is in `weights`, which a harmless difference of the numbers does not change
        parts["device"] = self.device.partition(":")[0]  # the number of the GPU does not matter
        return xxhash.xxh3_128_hexdigest(json.dumps(parts, sort_keys=True).encode())


def resolve_encoder_spec(
    model: str,
    query_prompt: str | None = None,
    document_prompt: str | None = None,
    max_length: int | None = None,
    dtype: str = "auto",
    device: str = "auto",
    similarity: str = "auto",
) -> EncoderSpec:
    """Choose the unset values by the model (prompts, similarity) or the machine (dtype, device), without loading it.

    Raises `InputError` if `model` is no model.
    """
    folder = resolve_model(model)
    settings = _read_model_json(folder / "config_sentence_transformers.json", {})
    prompts = settings.get("prompts") or {}
    if similarity == "auto":
        similarity = "dot" if _declared_similarity(folder) in ("dot", "dot_product") else "cosine"
    modules = _read_model_json(folder / "modules.json", [])
    device = detect_device_type() if device == "auto" else device
    if dtype == "auto":
        dtype = "bfloat16" if should_use_bfloat16(device, dtype) else "float32"
    return EncoderSpec(
        model=model_display_name(model),
        weights=model_digest(folder),
        query_prompt=prompts.get("query", "") if query_prompt is None else query_prompt,
        document_prompt=next((prompts[name] for name in _DOCUMENT_PROMPT_NAMES if name in prompts), "")
        if document_prompt is None
        else document_prompt,
        max_length=max_length,
        dtype=dtype,
        device=device,
        similarity=similarity,
        routed=any(str(module.get("type", "")).endswith((".Router", ".Asym")) for module in modules),
    )


def unsupported_similarity(model: str) -> str | None:
    """The similarity that `model` declares if search does not support it (euclidean, manhattan; `auto` uses the cosine
    then), else None."""
    declared = _declared_similarity(resolve_model(model))
    return None if declared in (None, "cosine", "dot", "dot_product") else str(declared)


def _declared_similarity(folder: Path) -> Any:
    return _read_model_json(folder / "config_sentence_transformers.json", {}).get("similarity_fn_name")


class Encoder:
    """A loaded sentence-transformers or Hugging Face encoder. Raises `InputError` if the model can't be loaded."""

    def __init__(self, spec: EncoderSpec, model: str) -> None:
        import torch
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        pick_device(spec.device)
        logging.disable_progress_bar()
        self.spec = spec
        try:
            self._model: Any = SentenceTransformer(
                str(resolve_model(model)),
                device=spec.device,
                model_kwargs={"dtype": getattr(torch, spec.dtype)},
                local_files_only=True,
            )
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(
                f"the encoder {model} could not be loaded ({type(error).__name__}: {reason}). "
                "Check that its folder is complete, or fetch the model again."
            ) from error
        self._model.eval()
        positions = _max_positions(self._model)
        if spec.max_length is not None:
            if positions and spec.max_length > positions:
                raise InputError(
                    f"max_length = {spec.max_length}: the encoder {spec.model} reads at most {positions} tokens. "
                    "Give no more, or leave max_length out."
                )
            self._model.max_seq_length = spec.max_length
        is_batch_invariant = {type(module).__name__ for module in self._model} <= _BATCH_INVARIANT_MODULES
        limit = self._model.max_seq_length
        self._max_tokens = int(limit) if limit and np.isfinite(limit) else None
        if is_batch_invariant and (self._max_tokens or 0) % _ROW_MULTIPLE == 0:
            self._row_multiple = 1
        else:
            self._row_multiple = _ROW_MULTIPLE
        self._executor = ThreadPoolExecutor(1)  # can be replaced after a failure (`_encode_or_shrink`)
        self.max_batch_tokens: int | None = None
        """Tokens of a batch that fit into memory, if `batch_tokens` did not."""

    def encode(
        self, texts: Sequence[str], role: str, batch_tokens: int
    ) -> Iterator[tuple[npt.NDArray[np.int64], Floats, int]]:
        """Yield (positions in `texts`, vectors float32 [b, d], tokens) for all texts, longest first.

        `batch_tokens` limits texts x padded length of a batch; it changes the speed, not the vectors. If a batch does
        not fit into memory, `max_batch_tokens` is halved for this and all later batches. With the cosine similarity,
        vectors have length 1. Raises `InputError` if the model gives a vector that is not finite, or if a single text
        does not fit into memory.
        """
        counts = self._count_tokens(texts, role)
        lengths = self._pad_lengths(counts)
        remaining = np.argsort(-lengths, kind="stable")
        while len(remaining):
            length = int(lengths[remaining[0]])
            max_tokens = min(batch_tokens, self.max_batch_tokens or batch_tokens)
            rows = max(1, max_tokens // max(length, 1) // self._row_multiple) * self._row_multiple
            batch = remaining[:rows]
            batch = batch[lengths[batch] == length]
            vectors = self._encode_or_shrink([texts[i] for i in batch], role, length)
            if vectors is None:
                continue
            non_finite = ~np.isfinite(vectors).all(axis=1)
            if non_finite.any():
                text = texts[batch[int(np.argmax(non_finite))]]
                raise InputError(
                    f"the encoder {self.spec.model} gives no finite vector for the text {text[:120]!r}. "
                    + ('Use dtype = "float32".' if self.spec.dtype != "float32" else "Are its weights damaged?")
                )
            remaining = remaining[len(batch) :]
            yield batch, vectors, int(counts[batch].sum())

    def _count_tokens(self, texts: Sequence[str], role: str) -> npt.NDArray[np.int64]:
        """Tokens of each text that the model reads; 0 for all if the model does not pad (static embeddings)."""
        counts = np.zeros(len(texts), np.int64)
        order = np.argsort([len(text) for text in texts], kind="stable")
        for part in np.array_split(order, max(1, len(order) // 256)):
            features = self._tokenise_texts([texts[i] for i in part], role)
            if "attention_mask" in features:
                counts[part] = features["attention_mask"].sum(dim=1).numpy()
        return counts

    def _pad_lengths(self, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        rounded = -(-counts // _ROW_MULTIPLE) * _ROW_MULTIPLE
        return np.minimum(rounded, self._max_tokens) if self._max_tokens else rounded

    def _tokenise_texts(self, texts: list[str], role: str, length: int = 0) -> Any:
        options = {"processing_kwargs": {"text": {"padding": "max_length", "max_length": length}}} if length else {}
        return self._model.preprocess(texts, prompt=self.spec.prompt_for(role) or None, task=role, **options)

    def _encode_or_shrink(self, texts: list[str], role: str, length: int) -> Floats | None:
        """The vectors; None if the batch does not fit into memory, and then `max_batch_tokens` is halved."""
        from accelerate.utils.memory import clear_device_cache

        try:
            return self._executor.submit(self._forward, texts, role, length).result()
        except (RuntimeError, MemoryError) as error:
            if not is_oom(error):
                raise
            if len(texts) <= self._row_multiple:
                raise InputError(
                    f"memory does not hold {len(texts)} texts of {length} tokens on {self.spec.device}, the least "
                    f"that the encoder {self.spec.model} is given at once ({' '.join(str(error).split())[:200]}). "
                    "Lower max_length under [encode], or free memory."
                ) from error
        # outside of the except block: the error referred to the frames that hold the batch
        self.max_batch_tokens = len(texts) * max(length, 1) // 2
        self._executor.shutdown()  # oneDNN fails in a thread that ran out of memory once (its PR 5907)
        self._executor = ThreadPoolExecutor(1)
        clear_device_cache()
        return None

    def _forward(self, texts: list[str], role: str, length: int) -> Floats:
        import torch

        padded_texts = texts + texts[-1:] * (-len(texts) % self._row_multiple)
        features = self._tokenise_texts(padded_texts, role, length)
        with torch.inference_mode():
            device_features = {k: v.to(self.spec.device) if hasattr(v, "to") else v for k, v in features.items()}
            out = self._model(device_features, task=role)["sentence_embedding"]
        vectors: Floats = out[: len(texts)].float().cpu().numpy()
        return l2_normalise_vectors(vectors) if self.spec.similarity == "cosine" else vectors


def _max_positions(model: Any) -> int | None:
    """The number of position embeddings of a loaded model for tokens; None without a limit."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and hasattr(module, "num_embeddings"):
            # RoBERTa and similar models start after the position of the padding token
            return int(module.num_embeddings) - (0 if module.padding_idx is None else module.padding_idx + 1)
    config = next((module.config for module in model.modules() if hasattr(module, "config")), None)
    limit = getattr(config, "max_position_embeddings", None)
    return limit if limit and limit > 0 else None


def l2_normalise_vectors(vectors: Floats) -> Floats:
    """Rows of float32 [n, d] scaled to length 1; a row of zeros is not changed."""
    lengths = np.sqrt(np.square(vectors, dtype=np.float64).sum(axis=1, keepdims=True))
    scaled: Floats = (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return scaled


def _read_model_json(path: Path, default: Any) -> Any:
    if not path.is_file():
        return default
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not readable as JSON ({error}); fetch the model again.") from error
