"""The engine that a command's options name."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from stages.contracts import Progress
from stages.engine import Engine


@contextmanager
def engine_for(options: Mapping[str, Any], progress: Progress) -> Iterator[Engine]:
    """The engine of `--engine` and `--ray-address`; a command without these flags works on this machine.

    Raises `InputError` where Ray is not installed.
    """
    if options.get("engine") != "ray":
        from pipeline.engines.local import Local

        yield Local()
        return
    from pipeline.engines.ray import Ray

    engine = Ray(options["ray_address"], progress)
    try:
        yield engine
    finally:
        engine.close()
