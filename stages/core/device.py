"""The device a model computes on, and its number format.

The functions that a key depends on ask the CUDA driver and /proc/cpuinfo, not torch: `prep status` then takes 1.4 s of
CPU time and 140 MB, with `import torch` 3.6 s and 326 MB (2 cores, torch 2.13.0).
"""

import importlib.metadata
import os
import platform
import re
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from stages.core.errors import InputError

Dtype = Literal["auto", "float32", "bfloat16"]


def _validate_device(device: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise ValueError("not a device; the devices are auto, cpu, cuda, cuda:0 (cuda:1, ...) and mps")
    return device


Device = Annotated[str, AfterValidator(_validate_device)]


def pick_device(device: str, option_name: str = "device") -> str:
    """The device to use; "auto" is the first GPU, or the CPU if there is none.

    Raises `InputError` for a device that this machine does not have; the message names the option, `option_name`.
    """
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
            f"{option_name} = {device!r}: torch finds {gpus} CUDA GPUs on this machine. Try {option_name} = 'cpu'."
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"{option_name} = 'mps': torch finds no Apple GPU on this machine. Try {option_name} = 'cpu'.")
    return device


def detect_device_type() -> str:
    """ "cuda" if torch is built for it and the driver shows a device, else "cpu"; does not import torch."""
    return "cuda" if _gpus() else "cpu"


def should_use_bfloat16(device: str, dtype: str) -> bool:
    """Whether to compute in bfloat16. "auto" does if the device has instructions for it; without them it is slow.

    `device`: cpu, cuda, cuda:1, ... Imports torch only if torch is built for AMD GPUs, which it also calls cuda.
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
"""The major compute capability of NVIDIA's Ampere, the first with bfloat16."""
_BFLOAT16_CPU_FLAGS = {"avx512_bf16", "amx_bf16"}
_CAPABILITY_MAJOR = 75
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR of the CUDA driver API."""


@cache
def _gpus() -> tuple[int, ...]:
    """The major compute capability of each GPU that torch can use, as the driver reports it."""
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


def describe_machine(device: str) -> str:
    """What the speed of work on `device` (auto, cpu, cuda, ...) depends on: CPU cores and, unless it is cpu, GPUs."""
    cores = f"{os.cpu_count()} x {_read_cpu_fact('model name') or platform.machine()}"
    gpus = [] if device == "cpu" else [f"GPU of compute capability {capability}" for capability in _gpus()]
    return ", ".join([cores, *gpus])


@cache
def _cpu_flags() -> frozenset[str]:
    """The instruction sets of the CPU, as Linux names them; none if the system does not list them."""
    return frozenset(_read_cpu_fact("flags").split())


def _read_cpu_fact(name: str) -> str:
    """A line of Linux' /proc/cpuinfo; empty if there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def autocast(device: object, dtype: Dtype) -> AbstractContextManager[Any]:
    """Mixed precision if `dtype` asks for it: matrix products in bfloat16, sums and norms in float32."""
    import torch

    name = str(device)
    context: AbstractContextManager[Any] = torch.autocast(
        name.split(":")[0], torch.bfloat16, enabled=should_use_bfloat16(name, dtype)
    )
    return context
