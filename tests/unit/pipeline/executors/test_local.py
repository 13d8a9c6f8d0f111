"""One process for each GPU can't be tried without GPUs; here it is tried with processes that see none."""

import os
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from pipeline.executors import local
from pipeline.executors.local import LocalExecutor, map_on_gpus
from stages.core.errors import InputError
from stages.core.executor import Worker


def letters(fails_at: str) -> Callable[[str], Iterator[tuple[str, str, int]]]:
    def work(word: str) -> Iterator[tuple[str, str, int]]:
        if word == fails_at:
            raise InputError(f"{word} can't be read")
        if word == "death":
            os._exit(9)
        for letter in word:
            yield letter, os.environ.get("CUDA_VISIBLE_DEVICES", ""), os.getpid()

    return work


def test_results_come_in_order_from_a_process_for_each_gpu() -> None:
    found = list(map_on_gpus(Worker(partial(letters, "never")), iter(["ab", "", "c", "d", "ef"]), ["3", "5"]))
    assert [letter + gpu for letter, gpu, _ in found] == ["a3", "b3", "c3", "d5", "e3", "f3"]
    processes = {gpu: {process for _, g, process in found if g == gpu} for gpu in ("3", "5")}
    assert [len(some) for some in processes.values()] == [1, 1]
    assert not processes["3"] & processes["5"]
    assert os.getpid() not in processes["3"] | processes["5"]


def test_items_are_taken_a_few_ahead() -> None:
    taken: list[str] = []

    def words() -> Iterator[str]:
        for word in "abcdefgh":
            taken.append(word)
            yield word

    results = map_on_gpus(Worker(partial(letters, "never")), words(), ["0", "1"])
    assert next(results)[0] == "a"
    assert taken == ["a", "b", "c", "d"]
    results.close()  # type: ignore[attr-defined]


def test_an_exception_of_a_worker_is_raised() -> None:
    results = map_on_gpus(Worker(partial(letters, "b")), ["a", "b", "c"], ["0", "1"])
    assert next(results)[0] == "a"
    with pytest.raises(InputError, match="b can't be read"):
        next(results)


def test_a_killed_worker_process_is_an_error() -> None:
    results = map_on_gpus(Worker(partial(letters, "never")), ["a", "death", "c", "d"], ["0", "1"])
    assert next(results)[0] == "a"
    with pytest.raises(InputError, match=r"was killed.* use fewer GPUs"):
        list(results)


@pytest.mark.parametrize(("device", "gpus"), [("cpu", ["0", "1"]), ("cuda", ["0"]), ("cuda", [])])
def test_without_several_gpus_the_work_is_done_in_this_process(
    monkeypatch: pytest.MonkeyPatch, device: str, gpus: list[str]
) -> None:
    monkeypatch.setattr(local, "list_visible_gpus", lambda: gpus)
    found = list(LocalExecutor().map(Worker(partial(letters, "never"), device), ["ab"]))
    assert {process for _, _, process in found} == {os.getpid()}
