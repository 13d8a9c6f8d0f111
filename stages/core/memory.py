"""Peak memory of this process since the last reset, and errors that mean that memory ran out."""

import contextlib
import ctypes
import os
import re
import resource
import sys
from pathlib import Path

_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_ARENA_MAX = -8
"""M_ARENA_MAX of glibc's malloc.h."""


def limit_malloc_arenas() -> None:
    """Have all threads to be started allocate from one heap a core, where the allocator is glibc's (mallopt(3)).

    By itself it makes up to eight a core, and each keeps what was freed in it. The environment variable
    MALLOC_ARENA_MAX goes before.
    """
    if "MALLOC_ARENA_MAX" not in os.environ:
        _call_libc("mallopt", _ARENA_MAX, os.cpu_count() or 1)


def reset_peak_rss() -> None:
    """Give back what was freed (glibc: malloc_trim(3)). From here on `peak_rss` tells the peak from here on, where the
    kernel can (Linux: proc_pid_clear_refs(5), 5)."""
    _call_libc("malloc_trim", 0)
    with contextlib.suppress(OSError):
        _CLEAR_REFS.write_text("5")


def peak_rss() -> int:
    """The highest resident size, in bytes."""
    with contextlib.suppress(OSError, StopIteration):
        lines = _STATUS.read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) << 10
    max_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return max_rss if sys.platform == "darwin" else max_rss << 10


def _call_libc(name: str, *arguments: int) -> None:
    """Call a function of the C library where it has it."""
    with contextlib.suppress(AttributeError):
        getattr(ctypes.CDLL(None), name)(*arguments)


_OOM_MESSAGES = re.compile(
    "CUDA error: out of memory"
    "|CUBLAS_STATUS_ALLOC_FAILED"
    "|could not create a memory object"
    "|could not (create|execute) a primitive$"  # its code or scratch space; a primitive's *descriptor* is another thing
    "|DefaultCPUAllocator: not enough memory"
    "|std::bad_alloc"
    "|can't start new thread"
)
"""What it is called where memory ran out, beyond what accelerate knows: CUDA, cuBLAS, oneDNN, torch on Windows, C++ and
Python, whose threads need room for a stack."""


def is_oom(error: Exception) -> bool:
    """Whether an error of numpy or torch means that the memory of its device ran out."""
    if isinstance(error, MemoryError):
        return True
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    is_device_oom = isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)
    return is_device_oom or bool(_OOM_MESSAGES.search(str(error)))
