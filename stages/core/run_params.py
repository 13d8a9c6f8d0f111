"""[run]: the settings that all steps share. A stage declares those that it reads; their help stands here once."""

from typing import Any, Literal

from stages.core.device import Device
from stages.core.params import BaseParams, option

RUN_SECTION = "run"


def seed_option(*, exclude_from_key: bool = False) -> Any:
    """The field `seed` of a stage that draws."""
    return option(
        42,
        "Seed of all draws except the split.",
        advanced=True,
        section=RUN_SECTION,
        exclude_from_key=exclude_from_key,
        ge=0,
        lt=2**32,
    )


def device_option() -> Any:
    """The field `device` of a stage that computes with torch. It never enters a key."""
    return option(
        "auto",
        "Device for models and search: cpu, cuda, cuda:1 or mps. auto takes a GPU if there is one.",
        advanced=True,
        section=RUN_SECTION,
        exclude_from_key=True,
    )


def dtype_option(*, exclude_from_key: bool = False) -> Any:
    """The field `dtype` of a stage that multiplies matrices."""
    return option(
        "auto",
        "Number format of matrix products. auto takes bfloat16 if the device is fast at it; only the "
        "encoder takes float16.",
        advanced=True,
        section=RUN_SECTION,
        exclude_from_key=exclude_from_key,
    )


class RunParams(BaseParams):
    """The keys of [run]."""

    seed: int = seed_option()
    device: Device = device_option()
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = dtype_option()
