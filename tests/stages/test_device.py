"""Where a model computes: what is a device, and what is there."""

import pytest
import torch
from pydantic import ValidationError

from stages.device import pick_device
from stages.errors import InputError
from stages.evaluation import evaluate, gate
from stages.training import train


@pytest.mark.parametrize("params", [train.Params, evaluate.Params, gate.Params])
def test_what_is_no_device_is_refused_with_what_is(params: type) -> None:
    for device in ("auto", "cpu", "mps", "cuda", "cuda:3"):
        assert params(device=device).device == device
    for device in ("foo", "", "CPU", "cuda:", "cuda:x", "meta"):
        with pytest.raises(ValidationError, match="there are auto, cpu, cuda, cuda:0"):
            params(device=device)


def test_what_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
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
    with pytest.raises(InputError, match="torch can use 2 such GPUs"):
        pick_device("cuda:2")
