"""The engine that a command's options name."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from stages.contracts import Progress
from stages.engine import Engine
from stages.errors import InputError


@contextmanager
def engine_for(options: Mapping[str, Any], progress: Progress) -> Iterator[Engine]:
    """The engine of `--engine` and `--ray-address`; a command without these flags works on this machine.

    Raises `InputError` where Ray is not installed, and for an address that no Ray is asked for.
    """
    if options.get("engine") != "ray":
        if options.get("ray_address"):
            raise InputError("--ray-address is only for --engine ray: add that, or leave the address out.")
        from pipeline.engines.local import Local

        yield Local()
        return
    from pipeline.engines.ray import Ray

    engine = Ray(options["ray_address"], progress)
    try:
        yield engine
    finally:
        engine.close()
