"""The executor that --executor names."""

from collections.abc import Iterator
from contextlib import contextmanager

from stages.core.context import Progress
from stages.core.errors import InputError
from stages.core.executor import Executor

_RAY_PREFIX = "ray://"


@contextmanager
def open_executor(name: str, progress: Progress) -> Iterator[Executor]:
    """The executor of `name`: "local", "ray" or "ray://HOST:PORT" (a cluster's head).

    Raises `InputError` for any other name, and if Ray is not installed.
    """
    if name == "local":
        from pipeline.executors.local import LocalExecutor

        yield LocalExecutor()
        return
    address = name.removeprefix(_RAY_PREFIX) if name.startswith(_RAY_PREFIX) else None
    if name != "ray" and not address:
        raise InputError(f"--executor {name}: take local, ray or ray://HOST:PORT")
    from pipeline.executors.ray import RayExecutor

    executor = RayExecutor(address, progress)
    try:
        yield executor
    finally:
        executor.close()
