import importlib.util

import pytest

from pipeline.executors.factory import open_executor
from pipeline.executors.local import LocalExecutor
from stages.core.context import NullProgress
from stages.core.errors import InputError
from tests.conftest import Project


def test_local_is_this_machine() -> None:
    with open_executor("local", NullProgress()) as executor:
        assert isinstance(executor, LocalExecutor)


@pytest.mark.parametrize("name", ["there:6379", "ray://", "rays", ""])
def test_any_other_name_is_refused_before_anything_runs(project: Project, name: str) -> None:
    done = project.prep("encode", "--executor", name)
    assert done.returncode == 2
    assert "local, ray or ray://HOST:PORT" in done.stderr
    assert not (project.work / "runs").exists()


def test_the_address_of_a_cluster_in_the_environment_is_no_wish_to_use_it(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "there:6379")
    done = project.prep("encode", "-q")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_environment_may_name_the_executor(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREP_EXECUTOR", "elsewhere")
    assert project.prep("encode", "-q").returncode == 2


def test_without_ray_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else plain(name))
    with pytest.raises(InputError, match=r"pip install 'prep-reranker\[ray\]'"), open_executor("ray", NullProgress()):
        pass
