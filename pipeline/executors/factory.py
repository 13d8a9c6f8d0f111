"""The engine that a command's options name."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from stages.core.context import Progress
from stages.core.errors import InputError
from stages.core.executor import Executor


@contextmanager
def open_executor(options: Mapping[str, Any], progress: Progress) -> Iterator[Executor]:
    """The engine of `--engine` and `--ray-address`; a command without these flags works on this machine.

    Raises `InputError` where Ray is not installed, and for an address that no Ray is asked for.
    """
    if options.get("engine") != "ray":
        if options.get("ray_address"):
            raise InputError("--ray-address is only for --engine ray: add that, or leave the address out.")
        from pipeline.executors.local import LocalExecutor

        yield LocalExecutor()
        return
    from pipeline.executors.ray import RayExecutor

    executor = RayExecutor(options["ray_address"], progress)
    try:
        yield executor
    finally:
        executor.close()
