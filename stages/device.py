"""Where a model computes and in which number format, and how its libraries are kept quiet meanwhile."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from logging import ERROR, getLogger
from typing import Any, Literal

from stages.errors import InputError

Dtype = Literal["auto", "float32", "bfloat16"]


def pick_device(device: str) -> str:
    """ "auto" is the first GPU where there is one, else the CPU. Raises `InputError` for a GPU that is not there."""
    import torch

    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device = {device!r}: torch sees no GPU on this machine. Use device = 'auto' or 'cpu'.")
    return device


def use_bfloat16(device: str, dtype: Dtype) -> bool:
    """Whether to compute in bfloat16; "auto" does where the device has instructions for it (elsewhere it is slow)."""
    import torch

    if dtype != "auto":
        return dtype == "bfloat16"
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device == "cpu" and any(getattr(torch.cpu, test, lambda: False)() for test in tests)


def autocast(device: object, dtype: Dtype) -> AbstractContextManager[Any]:
    """Mixed precision as `dtype` says: matrix products in bfloat16, sums and norms in float32."""
    import torch

    name = str(device)
    context: AbstractContextManager[Any] = torch.autocast(
        name.split(":")[0], torch.bfloat16, enabled=use_bfloat16(name, dtype)
    )
    return context


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back the progress bars and warnings of the Hugging Face libraries, not their errors."""
    import datasets
    from transformers.utils import logging

    sentences = getLogger("sentence_transformers")
    level, own, bars = logging.get_verbosity(), sentences.level, logging.is_progress_bar_enabled()
    maps = datasets.are_progress_bars_disabled()
    logging.set_verbosity_error()
    sentences.setLevel(ERROR)
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        sentences.setLevel(own)
        if bars:
            logging.enable_progress_bar()
        if not maps:
            datasets.enable_progress_bars()
