"""Where a model computes: what is a device, and what is there."""

import ctypes
import importlib.metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from stages.core import device as devices
from stages.core.device import describe_machine, detect_device_type, pick_device, should_use_bfloat16
from stages.core.errors import InputError
from stages.evaluation import regression_gate
from stages.evaluation import stage as evaluation_stage
from stages.training import stage as training_stage


@pytest.mark.parametrize("params", [training_stage.Params, evaluation_stage.Params, regression_gate.Params])
def test_an_invalid_device_is_an_error_that_lists_the_valid_ones(params: type) -> None:
    for device in ("auto", "cpu", "mps", "cuda", "cuda:3"):
        assert params(device=device).device == device
    for device in ("foo", "", "CPU", "cuda:", "cuda:x", "meta"):
        with pytest.raises(ValidationError, match="the devices are auto, cpu, cuda, cuda:0"):
            params(device=device)


def test_a_missing_device_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == "cpu"
    for device in ("cuda", "cuda:0", "mps", "foo"):
        with pytest.raises(InputError, match=f"device = '{device}'"):
            pick_device(device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [pick_device(device) for device in ("auto", "cuda", "cuda:1")] == ["cuda:0", "cuda", "cuda:1"]
    with pytest.raises(InputError, match="torch finds 2 CUDA GPUs"):
        pick_device("cuda:2")


class Driver:
    """As much of CUDA's driver as is asked: GPUs by their major compute capability; without any, cuInit fails."""

    def __init__(self, *capabilities: int) -> None:
        self.capabilities = capabilities

    def cuInit(self, flags: int) -> int:
        return 0 if self.capabilities else 100

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = len(self.capabilities)
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = 10 + index
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        assert attribute == 75
        value._obj.value = self.capabilities[device.value - 10]
        return 0


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretends to be on a machine with these GPUs, torch build and CPU flags; what was found of ours is forgotten."""

    def pretend(driver: Driver | None, torch_version: str = "2.13.0+cu130", flags: str = "fma avx2") -> None:
        def load(name: str) -> Driver:
            if driver is None:
                raise OSError(f"{name}: cannot open shared object file")
            return driver

        cpuinfo = "processor\t: 0\nmodel name\t: A Fine CPU\nflags\t\t: fpu " + flags + "\nbugs\t\t: none\n"
        monkeypatch.setattr(importlib.metadata, "version", lambda name: torch_version)
        monkeypatch.setattr(ctypes, "CDLL", load)
        monkeypatch.setattr(Path, "read_text", lambda path: cpuinfo)
        for found in (devices._gpus, devices._cpu_flags):
            found.cache_clear()

    yield pretend
    monkeypatch.undo()
    for found in (devices._gpus, devices._cpu_flags):
        found.cache_clear()


def test_bfloat16_is_used_if_the_cpu_has_instructions_for_it(machine: Any) -> None:
    machine(Driver(9, 7))
    assert detect_device_type() == "cuda"
    assert [should_use_bfloat16(device, "auto") for device in ("cuda", "cuda:0", "cuda:1", "cuda:2", "cpu", "mps")] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]
    assert should_use_bfloat16("cpu", "bfloat16")
    assert not should_use_bfloat16("cuda", "float32")
    for flags in ("avx2 avx512_bf16 sha_ni", "amx_bf16"):
        machine(None, flags=flags)
        assert should_use_bfloat16("cpu", "auto")
        assert not should_use_bfloat16("cuda", "auto")
    machine(None, flags="avx512_bf16x")
    assert not should_use_bfloat16("cpu", "auto")


def test_without_a_driver_or_a_build_for_it_there_is_no_gpu(machine: Any) -> None:
    for driver, build in ((Driver(9), "2.13.0+cpu"), (None, "2.13.0"), (Driver(), "2.13.0")):
        machine(driver, build)
        assert detect_device_type() == "cpu"


def test_a_machine_is_its_cores_and_the_gpus_that_are_used(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    machine(Driver(9, 7))
    assert describe_machine("cpu") == "4 x A Fine CPU"
    assert describe_machine("auto").startswith("4 x A Fine CPU, ")
    assert len({describe_machine(device) for device in ("cpu", "cuda")}) == 2
    machine(None)
    assert describe_machine("auto") == describe_machine("cpu")
