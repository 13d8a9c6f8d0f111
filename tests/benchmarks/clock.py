"""What a piece of work took: by the clock, and of processor time, which a busy machine blurs less."""

import resource
import time

from tests.benchmarks.work import Result


class Clock:
    """Begins when it is made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), _cpu()

    def result(self) -> Result:
        """`seconds`, and `cpu_seconds` of all threads and of the processes that were waited for."""
        return {"seconds": time.perf_counter() - self._wall, "cpu_seconds": _cpu() - self._cpu}


def rated(took: Result, flops: int) -> Result:
    """`took` with its rates: `gflops` by the clock, and `cpu_gflops` a second of processor time."""
    gflops = {"gflops": "seconds", "cpu_gflops": "cpu_seconds"}
    return took | {rate: flops / max(took[time], 1e-9) / 1e9 for rate, time in gflops.items()}


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)
