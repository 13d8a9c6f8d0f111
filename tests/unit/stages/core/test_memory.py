"""The peak memory of this process since a reset, and the memory that malloc keeps."""

import os
import platform
import subprocess
import sys

import pytest

from stages.core.memory import peak_rss, reset_peak_rss

BIG = 200 << 20


def test_the_peak_includes_freed_memory() -> None:
    reset_peak_rss()
    before = peak_rss()
    held = bytearray(BIG)
    del held
    assert peak_rss() >= before + BIG // 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can reset the peak")
def test_it_is_counted_anew() -> None:
    held = bytearray(BIG)
    del held
    high = peak_rss()
    reset_peak_rss()
    assert peak_rss() <= high - BIG // 2


GLIBC = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc's malloc has many heaps, and trims them"
)

HEAPS = """
import ctypes, sys, threading
from stages.core.memory import limit_malloc_arenas

if "share" in sys.argv:
    limit_malloc_arenas()
c, all_there = ctypes.CDLL(None), threading.Barrier(8)
c.malloc.restype, c.fopen.restype = ctypes.c_void_p, ctypes.c_void_p

def work():
    c.malloc(100)
    all_there.wait()

threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
c.malloc_info(0, ctypes.c_void_p(c.fopen(b"/dev/stdout", b"w")))
c.fflush(None)
"""


def heaps(*arguments: str, **environment: str) -> int:
    """How many heaps malloc has in a process whose eight threads have all allocated, on one core."""
    script = "import os; os.cpu_count = lambda: 1\n" + HEAPS
    command = [sys.executable, "-c", script, *arguments]
    given = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | environment
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=True)
    return done.stdout.count("<heap nr=")


@GLIBC
def test_threads_share_a_heap_a_core_unless_the_environment_says_how_many() -> None:
    assert heaps("share") == 1
    assert heaps() > 2
    assert heaps("share", MALLOC_ARENA_MAX="3") == 3


FREED = """
import ctypes, resource
from stages.core.memory import reset_peak_rss

c = ctypes.CDLL(None)
c.malloc.restype = ctypes.c_void_p
pieces = [c.malloc(60_000) for _ in range(2_000)]
for piece in pieces:
    ctypes.memset(ctypes.c_void_p(piece), 1, 60_000)
for piece in pieces[:-1]:  # the last one keeps the heap from shrinking
    c.free(ctypes.c_void_p(piece))

def held():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

before = held()
reset_peak_rss()
print(before - held())
"""


@GLIBC
def test_freed_memory_is_returned() -> None:
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 100_000_000
