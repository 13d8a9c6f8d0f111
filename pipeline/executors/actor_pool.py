"""The actors that do the work of one `map` on a Ray cluster; what a lost one had in hand, another does again."""

import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from pipeline.workflow.runner import installed
from stages.core.errors import InputError, PrepError
from stages.core.executor import Worker
from stages.core.schemas import Progress

_CPUS = 4
"""An actor's at most: one process makes poor use of more."""
_AHEAD = 2
"""Items that an actor has in hand, so that it need not wait for the next."""
_TRIES = 3
"""Actors that an item may cost before it is taken for the cause."""
_LIBRARIES = ("prep", "faiss-cpu", "numpy", "sentence-transformers", "tokenizers", "torch", "transformers")
"""Must be the same everywhere, or vectors could differ in their last bits."""


class _Task(NamedTuple):
    """What an actor has in hand: item `number`, which lies in the object store; None: it is only asked if it is fit."""

    actor: Any
    number: int | None
    item: Any


class Crew:
    """The actors of one map. They are recruited anew when none is left, on whatever nodes there are then."""

    def __init__(self, worker: Worker[Any, Any], progress: Progress) -> None:
        import ray

        self._worker, self._progress = worker, progress
        self._made = ray.put(worker)
        self._actors: list[Any] = []
        """Those that are not lost."""
        self._free: list[Any] = []
        """An actor stands here once for each item that it could take."""
        self._under_way: dict[Any, _Task] = {}
        self._again: list[tuple[int, Any]] = []
        self._tries: dict[int | str | None, int] = {}

    def results(self, items: Iterable[Any]) -> Iterator[Any]:
        """The results of the items, in their order."""
        import ray

        coming = ((number, ray.put(item)) for number, item in enumerate(items))
        done: dict[int, list[Any]] = {}
        taken = following = 0
        more = True
        while more or following < taken:
            if not self._actors:
                self._recruit()
            while self._free and (self._again or (more and taken - following < 2 * _AHEAD * len(self._actors))):
                task = self._again.pop(0) if self._again else next(coming, None)
                if task is None:
                    more = False
                    break
                taken = max(taken, task[0] + 1)
                self._give(self._free.pop(0), *task)
            if more or following < taken:
                done |= self._finished()
            while following in done:
                yield from done.pop(following)
                following += 1

    def dismiss(self) -> None:
        """End the actors."""
        for actor in self._actors:
            _end(actor)

    def _recruit(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        made = ray.remote(Actor)
        gpu = self._worker.device.startswith("cuda")
        nodes = [node for node in ray.nodes() if node["Alive"]]
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            for needs in shares(node["Resources"], gpu):
                actor = made.options(scheduling_strategy=there, **needs).remote(self._made)
                self._actors.append(actor)
                self._under_way[actor.fit.remote(versions())] = _Task(actor, None, None)
        if not self._actors:
            raise InputError(
                f"none of the {len(nodes)} nodes of the Ray cluster offers a {'GPU' if gpu else 'CPU'}: "
                f"start them with `ray start --num-{'gpus' if gpu else 'cpus'}=N`, or use --engine local."
            )

    def _give(self, actor: Any, number: int, item: Any) -> None:
        self._under_way[actor.do.remote(item)] = _Task(actor, number, item)

    def _finished(self) -> dict[int, list[Any]]:
        """Wait for a task to end: the results by the item's number, none where an actor was lost or said it is fit."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        ended, _ = ray.wait(list(self._under_way), timeout=60)
        if not ended and not self._free and all(task.number is None for task in self._under_way.values()):
            self._progress.say("the Ray cluster has no room for a worker yet; waiting")
        done = {}
        for reference in ended:
            task = self._under_way.pop(reference)
            try:
                found = ray.get(reference)
            except RayTaskError:
                raise
            except RayError as error:
                if "error raised in its creation" in str(error):
                    raise InputError(
                        f"a node of the Ray cluster can't work for prep: {_last_line(error)}. Is the same prep "
                        "installed on every node, with the same Python?"
                    ) from error
                self._lost(task, error)
                continue
            if isinstance(found, PrepError):
                raise found
            if task.actor in self._actors:
                self._free += [task.actor] * (_AHEAD if task.number is None else 1)
            if task.number is not None:
                done[task.number] = found
        return done

    def _lost(self, task: _Task, error: Exception) -> None:
        """Take the item back, and give the actor none any more."""
        if task.actor in self._actors:
            self._progress.say(f"a Ray worker was lost; what it had in hand is done again ({_first_line(error)})")
            self._actors.remove(task.actor)
            self._free = [actor for actor in self._free if actor is not task.actor]
            _end(task.actor)  # one that only can't be reached would keep others off its CPUs
        if task.number is not None:
            self._again = sorted([*self._again, (task.number, task.item)], key=lambda one: one[0])
        # an item that costs every actor, or actors that never get to work
        work = "to begin" if task.number is None and not self._actors else task.number
        self._tries[work] = self._tries.get(work, 0) + 1
        if work is not None and self._tries[work] >= _TRIES:
            raise InputError(
                f"Ray workers are lost again and again ({_first_line(error)}). Are all nodes up (`ray status`)? Where "
                "their memory runs out, lower batch_tokens under [encode] or block under [mine]."
            )


class Actor:
    """A process on a node. What the person at the keyboard can mend comes back as a value: Ray would wrap it."""

    def __init__(self, worker: Worker[Any, Any]) -> None:
        self._worker = worker
        self._work: Callable[[Any], Iterable[Any]] | None = None

    def fit(self, wanted: dict[str, str]) -> InputError | None:
        """Whether this node has the libraries of the process that runs `prep`."""
        found = versions()
        if found == wanted:
            return None
        both = ((name, found.get(name, "absent"), wanted.get(name, "absent")) for name in found | wanted)
        wrong = ", ".join(f"{name} {has}, not {should}" for name, has, should in both if has != should)
        return InputError(f"the node {socket.gethostname()} has {wrong}: install the same versions on every node.")

    def do(self, item: Any) -> list[Any] | PrepError:
        """The results of an item."""
        try:
            self._work = self._work or self._worker.make()
            return list(self._work(item))
        except PrepError as error:
            return type(error)(f"{error} (On the node {socket.gethostname()}.)")


def shares(resources: Mapping[str, float], gpu: bool) -> list[dict[str, int]]:
    """What each actor takes of a node: a GPU with its part of the CPUs; or like parts of the CPUs, at most _CPUS."""
    cpus, gpus = (int(resources.get(name, 0)) for name in ("CPU", "GPU"))
    count = gpus if gpu else -(-cpus // _CPUS)
    return [{"num_cpus": min(cpus // count, _CPUS), "num_gpus": int(gpu)} for _ in range(count)]


def _end(actor: Any) -> None:
    import ray

    with suppress(Exception):  # it, or the cluster, may be gone by now
        ray.kill(actor)


def versions() -> dict[str, str]:
    """The libraries that shape a result, as they are installed here."""
    return {name: installed(name) for name in _LIBRARIES}


def _first_line(error: BaseException) -> str:
    return _lines(error)[0]


def _last_line(error: BaseException) -> str:
    return _lines(error)[-1]


def _lines(error: BaseException) -> list[str]:
    lines = [re.sub(r"\x1b\[\d+m", "", line).strip() for line in str(error).splitlines()]
    return [line for line in lines if line] or [type(error).__name__]
