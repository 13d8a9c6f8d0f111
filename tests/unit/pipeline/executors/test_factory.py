import importlib.util

import pytest

from pipeline.executors.factory import open_executor
from pipeline.executors.local import LocalExecutor
from stages.core.context import NullProgress
from stages.core.errors import InputError
from tests.conftest import Project


def test_a_command_without_the_flag_works_on_this_machine() -> None:
    for options in ({}, {"engine": "local", "ray_address": None}):
        with open_executor(options, NullProgress()) as engine:
            assert isinstance(engine, LocalExecutor)


def test_an_address_that_no_ray_is_asked_for_is_refused(project: Project) -> None:
    done = project.prep("encode", "--ray-address", "there:6379")
    assert done.returncode == 2
    assert "--ray-address is only for --engine ray" in done.stderr
    assert not (project.work / "runs").exists()


def test_the_address_of_a_cluster_in_the_environment_is_no_wish_to_use_it(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "there:6379")
    done = project.prep("encode", "-q")
    assert (done.returncode, done.stderr) == (0, "")


def test_without_ray_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else plain(name))
    with (
        pytest.raises(InputError, match=r"pip install 'prep\[ray\]'"),
        open_executor({"engine": "ray", "ray_address": None}, NullProgress()),
    ):
        pass
