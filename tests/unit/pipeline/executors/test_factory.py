import importlib.util

import pytest

from pipeline.executors.factory import open_executor
from pipeline.executors.local import LocalExecutor
from stages.core.context import NullProgress
from stages.core.errors import InputError


def test_local_is_this_machine() -> None:
    with open_executor("local", NullProgress()) as executor:
        assert isinstance(executor, LocalExecutor)


def test_without_ray_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else plain(name))
    with pytest.raises(InputError, match=r"pip install 'prep-reranker\[ray\]'"), open_executor("ray", NullProgress()):
        pass
