import importlib.util

import pytest

from pipeline.engines.local import Local
from pipeline.engines.named import engine_for
from pipeline.progress import Quiet
from stages.errors import InputError


def test_a_command_without_the_flag_works_on_this_machine() -> None:
    for options in ({}, {"engine": "local", "ray_address": "there:6379"}):
        with engine_for(options, Quiet()) as engine:
            assert isinstance(engine, Local)


def test_without_ray_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else plain(name))
    with (
        pytest.raises(InputError, match=r"pip install 'prep\[ray\]'"),
        engine_for({"engine": "ray", "ray_address": None}, Quiet()),
    ):
        pass
