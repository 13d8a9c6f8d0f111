"""Cross-encoders: load and save them, compute logits for training, and score pairs fast and reproducibly."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.core.device import Dtype as Dtype
from stages.core.device import autocast, pick_device
from stages.core.errors import InputError
from stages.core.libraries import silence_huggingface_logging

if TYPE_CHECKING:
    import torch
    from sentence_transformers import CrossEncoder

TextPair = tuple[str, str]

_LENGTH_MULTIPLE = 32
"""Lengths are padded to a multiple of this, so that there are few shapes."""
_TOKENS_PER_PASS = {"cpu": 2048}
"""Tokens in one forward pass: on a CPU as many as its caches hold; elsewhere enough to fill the device."""
_DEFAULT_TOKENS_PER_PASS = 1 << 16
_PAIRS_PER_CHUNK = 1 << 14
"""Pairs that are tokenised at once."""


def has_head(folder: Path) -> bool:
    """Whether the model in `folder` is a cross-encoder; otherwise it is an encoder, which gets a new head.

    Raises `InputError` if it is neither, or if it is a classifier with several labels.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"the model in {folder} can't be read: {_summarise_error(error)}") from error
    architecture = (getattr(config, "architectures", None) or [""])[0]
    if "ForCausalLM" in architecture or getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"the model in {folder} is a {architecture or config.model_type}, which generates text. "
            "A reranker's base is an encoder (such as BertModel) or a cross-encoder (…ForSequenceClassification)."
        )
    if not architecture.endswith("ForSequenceClassification"):
        return False
    if config.num_labels != 1:
        raise InputError(
            f"the model in {folder} is a classifier of {config.num_labels} labels; a reranker has one output, the "
            "relevance. Use a cross-encoder with num_labels = 1, or an encoder, which gets a new head."
        )
    return True


def load_reranker(
    folder: Path, device: str = "auto", max_length: int | None = None, dropout: float | None = None, seed: int = 0
) -> "CrossEncoder":
    """Load the cross-encoder in `folder`, in evaluation mode and float32; an encoder gets a random head from `seed`.

    `max_length`: tokens of query and document together, at most the model's number of positions. `dropout` replaces
    every dropout rate of the model's configuration. The head computes in float32 under autocast too, because a logit in
    bfloat16 has 8 bits, and candidates would tie. Raises `InputError` if the folder can't be loaded.
    """
    import torch
    from safetensors import SafetensorError
    from sentence_transformers import CrossEncoder
    from transformers import AutoConfig

    needs_new_head = not has_head(folder)
    config_overrides: dict[str, Any] = {}
    if dropout is not None:
        config_overrides = dict.fromkeys(
            _find_dropout_names(AutoConfig.from_pretrained(folder, local_files_only=True)), dropout
        )
    with silence_huggingface_logging():
        torch.manual_seed(seed)
        try:
            model = CrossEncoder(
                str(folder),
                num_labels=1 if needs_new_head else None,
                device=pick_device(device),
                local_files_only=True,
                model_kwargs={"dtype": torch.float32},
                config_kwargs=config_overrides,
            )
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
            raise InputError(f"the model in {folder} can't be loaded: {_summarise_error(error)}") from error
    limit = min(model.max_seq_length or 512, getattr(model.config, "max_position_embeddings", 512))
    model.max_seq_length = min(max_length or limit, limit)
    head_names = [name for name, module in model.named_modules() if _is_ranking_head(module)]
    model.set_keep_in_fp32_modules(head_names[-1:])
    return model.eval()


def save_reranker(model: "CrossEncoder", folder: Path) -> None:
    """Write the model as a Hugging Face folder without model card and times: equal weights give equal bytes.

    sentence-transformers and `AutoModelForSequenceClassification` read it. `CrossEncoder.predict` returns the sigmoid
    of the logit, which has the same order.
    """
    with silence_huggingface_logging():
        model.save_pretrained(str(folder), create_model_card=False)


def score_pairs(
    model: "CrossEncoder",
    pairs: Sequence[TextPair],
    dtype: Dtype = "auto",
    on_progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """The logit of each (query, document): float32 [n].

    On a CPU a score does not depend on the other pairs, because every forward pass has one of a few fixed shapes,
    filled with padding. `on_progress` gets the number of pairs that are done.
    """
    scores = np.empty(len(pairs), dtype=np.float32)
    n_done = 0
    for rows, logits in iter_pair_scores(model, pairs, dtype):
        scores[rows] = logits
        n_done += len(rows)
        if on_progress:
            on_progress(n_done)
    return scores


def iter_pair_scores(
    model: "CrossEncoder", pairs: Sequence[TextPair], dtype: Dtype = "auto"
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The row numbers and the logits of each forward pass of `score_pairs`."""
    import torch

    was_training = model.training
    model.eval()
    with (
        torch.inference_mode(),
        autocast(model.device, dtype),
    ):  # around all passes, since it caches the weights in bfloat16
        for start in range(0, len(pairs), _PAIRS_PER_CHUNK):
            encoded = _tokenise(model, pairs[start : start + _PAIRS_PER_CHUNK])
            for rows, length, batch_size in _iter_fixed_shapes(encoded["input_ids"], _get_token_budget(model)):
                logits = _forward(model, _pad_batch(model, encoded, rows, length, batch_size))
                yield start + np.asarray(rows), logits[: len(rows)].cpu().numpy()
    model.train(was_training)


def count_pair_tokens(model: "CrossEncoder", pairs: Sequence[TextPair]) -> np.ndarray:
    """The tokens of each (query, document) as the model reads it, cut to its limit: int64 [n]."""
    counts = [
        len(ids)
        for start in range(0, len(pairs), _PAIRS_PER_CHUNK)
        for ids in _tokenise(model, pairs[start : start + _PAIRS_PER_CHUNK])["input_ids"]
    ]
    return np.array(counts, dtype=np.int64)


def compute_logits(model: "CrossEncoder", pairs: Sequence[TextPair], dtype: Dtype = "auto") -> "torch.Tensor":
    """The logit of each (query, document) with its gradient: float32 [n].

    Pairs of similar length share a forward pass, so that there is little padding. The model may be wrapped for training
    in several processes (DDP).
    """
    import torch

    forward, model = model, getattr(model, "module", model)
    encoded = _tokenise(model, pairs)
    order: list[int] = []
    batch_logits: list[torch.Tensor] = []
    with autocast(model.device, dtype):
        for rows in _group_by_length(encoded["input_ids"], _get_token_budget(model) * 2):
            length = max(len(encoded["input_ids"][row]) for row in rows)
            batch_logits.append(_forward(forward, _pad_batch(model, encoded, rows, length, len(rows))))
            order += rows
    inverse_order = torch.tensor(order, device=batch_logits[0].device).argsort()
    return torch.cat(batch_logits)[inverse_order]


def get_tokens_per_pass(device: str) -> int:
    """Tokens in one forward pass on a device."""
    return _TOKENS_PER_PASS.get(device.partition(":")[0], _DEFAULT_TOKENS_PER_PASS)


def _get_token_budget(model: "CrossEncoder") -> int:
    return get_tokens_per_pass(model.device.type)


def _tokenise(model: "CrossEncoder", pairs: Sequence[TextPair]) -> dict[str, list[list[int]]]:
    """Token ids (and segment ids if the model has them) without padding, as in `CrossEncoder.predict`."""
    queries, documents = [query for query, _ in pairs], [document for _, document in pairs]
    with silence_huggingface_logging():
        encoded = model.tokenizer(
            queries, documents, truncation="longest_first", max_length=model.max_seq_length, return_attention_mask=False
        )
    return dict(encoded)


def _pad_batch(
    model: "CrossEncoder", encoded: dict[str, list[list[int]]], rows: Sequence[int], length: int, batch_size: int
) -> dict[str, Any]:
    """`rows` as tensors [batch_size, length]; additional rows attend to one padding token only."""
    import torch

    padding_values = {"input_ids": model.tokenizer.pad_token_id, "token_type_ids": model.tokenizer.pad_token_type_id}
    arrays = {name: np.full((batch_size, length), padding_values.get(name, 0), dtype=np.int64) for name in encoded}
    attention_mask = np.zeros((batch_size, length), dtype=np.int64)
    attention_mask[len(rows) :, 0] = 1
    for place, row in enumerate(rows):
        size = len(encoded["input_ids"][row])
        attention_mask[place, :size] = 1
        for name, array in arrays.items():
            array[place, :size] = encoded[name][row]
    arrays["attention_mask"] = attention_mask
    return {name: torch.from_numpy(array).to(model.device) for name, array in arrays.items()}


def _forward(model: "CrossEncoder", features: dict[str, Any]) -> "torch.Tensor":
    scores: torch.Tensor = model(features)["scores"]
    return scores.squeeze(-1).float()


def _group_by_length(token_ids: Sequence[Sequence[int]], max_tokens: int) -> Iterator[list[int]]:
    """Rows in groups of similar length, longest first, each of at most `max_tokens` tokens with padding."""
    order = sorted(range(len(token_ids)), key=lambda row: (-len(token_ids[row]), row))
    while order:
        batch_size = max(1, max_tokens // max(1, len(token_ids[order[0]])))
        yield order[:batch_size]
        order = order[batch_size:]


def _iter_fixed_shapes(token_ids: Sequence[Sequence[int]], max_tokens: int) -> Iterator[tuple[list[int], int, int]]:
    """(rows, length, batch_size) of forward passes; the batch size depends only on the length.

    It is a multiple of 8, because the last rows of other sizes use other instructions. Each pass has some padding,
    because attention without padding uses another kernel.
    """
    buckets: dict[int, list[int]] = {}
    for row, text in enumerate(token_ids):
        buckets.setdefault(-(-len(text) // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE, []).append(row)
    for length, rows in sorted(buckets.items(), reverse=True):
        batch_size = max(8, max_tokens // length // 8 * 8)
        while rows:
            is_unpadded = all(len(token_ids[row]) == length for row in rows[:batch_size])
            n_rows = batch_size - 1 if is_unpadded else batch_size
            yield rows[:n_rows], length, batch_size
            rows = rows[n_rows:]


def _is_ranking_head(module: Any) -> bool:
    import torch

    return isinstance(module, torch.nn.Linear) and module.out_features == 1


def _find_dropout_names(config: Any) -> list[str]:
    """The names of the dropout rates in a model configuration, which differ between model families."""
    values = config.to_dict()
    return [name for name in values if "dropout" in name and isinstance(values[name], int | float | None)]


def _summarise_error(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
