"""Where a model computes and in which number format, and how its libraries are kept quiet meanwhile."""

import importlib.metadata
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from logging import ERROR, getLogger
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from stages.core.errors import InputError

Dtype = Literal["auto", "float32", "bfloat16"]


def _validate_device(device: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise ValueError("this is no device; there are auto, cpu, cuda, cuda:0 (cuda:1, ...) and mps")
    return device


Device = Annotated[str, AfterValidator(_validate_device)]


def pick_device(device: str, option_name: str = "device") -> str:
    """ "auto" is the first GPU where there is one, else the CPU. Raises `InputError` for a device that is not there,
    naming the `option_name` that asked for it."""
    import torch

    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        kind, _, index = _validate_device(device).partition(":")
    except ValueError as error:
        raise InputError(f"{option_name} = {device!r}: {error}") from None
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and int(index or 0) >= gpus:
        raise InputError(
            f"{option_name} = {device!r}: torch can use {gpus} such GPUs on this machine. Try {option_name} = 'cpu'."
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InputError(
            f"{option_name} = 'mps': torch can't use an Apple GPU on this machine. Try {option_name} = 'cpu'."
        )
    return device


def detect_device_type() -> str:
    """ "cuda" where torch is built for it and the driver shows a device, else "cpu"; does not import torch."""
    return "cuda" if _gpus() else "cpu"


def should_use_bfloat16(device: str, dtype: str) -> bool:
    """Whether to compute in bfloat16; "auto" does where the device has instructions for it (elsewhere it is slow).

    `device`: cpu, cuda, cuda:1, ...; does not import torch, but where it is built for AMD's GPUs, which it calls cuda.
    """
    if dtype != "auto":
        return dtype == "bfloat16"
    kind, _, index = device.partition(":")
    if kind == "cuda" and "+rocm" in importlib.metadata.version("torch"):
        import torch

        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if kind == "cuda":
        return int(index or 0) < len(_gpus()) and _gpus()[int(index or 0)] >= _MIN_BFLOAT16_CAPABILITY
    return kind == "cpu" and not _BFLOAT16_CPU_FLAGS.isdisjoint(_cpu_flags())


_MIN_BFLOAT16_CAPABILITY = 8
"""The major compute capability of NVIDIA's Ampere."""
_BFLOAT16_CPU_FLAGS = {"avx512_bf16", "amx_bf16"}
_CAPABILITY_MAJOR = 75
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR of the CUDA driver's interface."""


@cache
def _gpus() -> tuple[int, ...]:
    """The major compute capability of each GPU that torch could use, as the driver tells it."""
    if "+cpu" in importlib.metadata.version("torch"):
        return ()
    import ctypes

    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    count, device, major = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    capabilities = []
    for index in range(count.value):
        driver.cuDeviceGet(ctypes.byref(device), index)
        driver.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, device)
        capabilities.append(major.value)
    return tuple(capabilities)


@cache
def _cpu_flags() -> frozenset[str]:
    """What instructions the CPU has, as Linux names them; none where nothing says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), ()))


def autocast(device: object, dtype: Dtype) -> AbstractContextManager[Any]:
    """Mixed precision as `dtype` says: matrix products in bfloat16, sums and norms in float32."""
    import torch

    name = str(device)
    context: AbstractContextManager[Any] = torch.autocast(
        name.split(":")[0], torch.bfloat16, enabled=should_use_bfloat16(name, dtype)
    )
    return context


@contextmanager
def silence_huggingface_logging() -> Iterator[None]:
    """Hold back the progress bars and warnings of the Hugging Face libraries, not their errors."""
    import datasets
    from transformers.utils import logging

    sentence_transformers_logger = getLogger("sentence_transformers")
    transformers_level, sentence_transformers_level, transformers_bars_enabled = (
        logging.get_verbosity(),
        sentence_transformers_logger.level,
        logging.is_progress_bar_enabled(),
    )
    datasets_bars_disabled = datasets.are_progress_bars_disabled()
    logging.set_verbosity_error()
    sentence_transformers_logger.setLevel(ERROR)
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(transformers_level)
        sentence_transformers_logger.setLevel(sentence_transformers_level)
        if transformers_bars_enabled:
            logging.enable_progress_bar()
        if not datasets_bars_disabled:
            datasets.enable_progress_bars()
