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
    """Let the threads that start from now on share one heap for each core, if the allocator is glibc's (mallopt(3)).

    By default there are up to eight for each core, and each keeps its freed memory. The environment variable
    MALLOC_ARENA_MAX takes precedence.
    """
    if "MALLOC_ARENA_MAX" not in os.environ:
        _call_libc("mallopt", _ARENA_MAX, os.cpu_count() or 1)


def reset_peak_rss() -> None:
    """Return freed memory to the system (glibc: malloc_trim(3)) and restart the peak of `peak_rss`, if the kernel
    supports it (Linux: proc_pid_clear_refs(5), 5)."""
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
    """Call a function of the C library if it exists."""
    with contextlib.suppress(AttributeError):
        getattr(ctypes.CDLL(None), name)(*arguments)


_OOM_MESSAGES = re.compile(
    "CUDA error: out of memory"
    "|CUBLAS_STATUS_ALLOC_FAILED"
    "|could not create a memory object"
    "|could not (create|execute) a primitive$"  # its code or scratch space; not its *descriptor*
    "|DefaultCPUAllocator: not enough memory"
    "|std::bad_alloc"
    "|can't start new thread"
)
"""Messages of out-of-memory errors that accelerate does not recognise: CUDA, cuBLAS, oneDNN, torch on Windows, C++ and
Python (threads need memory for a stack)."""


def is_oom(error: Exception) -> bool:
    """Whether an error of numpy or torch means that the memory of its device ran out."""
    if isinstance(error, MemoryError):
        return True
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    is_device_oom = isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)
    return is_device_oom or bool(_OOM_MESSAGES.search(str(error)))
