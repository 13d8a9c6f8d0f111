"""The actors that do the work of one `map` on a Ray cluster; what a lost one had in hand, another does again."""

import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from stages.core.context import Progress
from stages.core.errors import InputError, PrepError
from stages.core.executor import Worker
from stages.core.libraries import get_library_versions

_MAX_CPUS_PER_ACTOR = 4
"""An actor's at most: one process makes poor use of more."""
_ITEMS_PER_ACTOR = 2
"""Items that an actor has in hand, so that it need not wait for the next."""
_MAX_ATTEMPTS = 3
"""Actors that an item may cost before it is taken for the cause."""
SYNCHRONISED_LIBRARIES = ("prep", "faiss-cpu", "numpy", "sentence-transformers", "tokenizers", "torch", "transformers")
"""Must be the same everywhere, or vectors could differ in their last bits."""


class _ActorTask(NamedTuple):
    """What an actor has in hand: item `item_index`, which lies in the object store; None: it is only asked if it is
    fit."""

    actor: Any
    item_index: int | None
    item: Any


class ActorPool:
    """The actors of one map. They are recruited anew when none is left, on whatever nodes there are then."""

    def __init__(self, worker: Worker[Any, Any], progress: Progress) -> None:
        import ray

        self._worker, self._progress = worker, progress
        self._worker_ref = ray.put(worker)
        self._actors: list[Any] = []
        """Those that are not lost."""
        self._free_slots: list[Any] = []
        """An actor stands here once for each item that it could take."""
        self._in_flight: dict[Any, _ActorTask] = {}
        self._retry_queue: list[tuple[int, Any]] = []
        self._attempts: dict[int | str | None, int] = {}

    def map_items(self, items: Iterable[Any]) -> Iterator[Any]:
        """The results of the items, in their order."""
        import ray

        pending = ((number, ray.put(item)) for number, item in enumerate(items))
        done: dict[int, list[Any]] = {}
        n_taken = next_index = 0
        has_more = True
        while has_more or next_index < n_taken:
            if not self._actors:
                self._start()
            while self._free_slots and (
                self._retry_queue or (has_more and n_taken - next_index < 2 * _ITEMS_PER_ACTOR * len(self._actors))
            ):
                task = self._retry_queue.pop(0) if self._retry_queue else next(pending, None)
                if task is None:
                    has_more = False
                    break
                n_taken = max(n_taken, task[0] + 1)
                self._submit(self._free_slots.pop(0), *task)
            if has_more or next_index < n_taken:
                done |= self._wait_for_results()
            while next_index in done:
                yield from done.pop(next_index)
                next_index += 1

    def stop(self) -> None:
        """End the actors."""
        for actor in self._actors:
            _kill_actor(actor)

    def _start(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        actor_class = ray.remote(WorkerActor)
        expected_versions = get_library_versions(SYNCHRONISED_LIBRARIES)
        gpu = self._worker.device.startswith("cuda")
        nodes = [node for node in ray.nodes() if node["Alive"]]
        for node in nodes:
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            for resources in divide_node_resources(node["Resources"], gpu):
                actor = actor_class.options(scheduling_strategy=strategy, **resources).remote(self._worker_ref)
                self._actors.append(actor)
                self._in_flight[actor.check_versions.remote(expected_versions)] = _ActorTask(actor, None, None)
        if not self._actors:
            raise InputError(
                f"none of the {len(nodes)} nodes of the Ray cluster offers a {'GPU' if gpu else 'CPU'}: "
                f"start them with `ray start --num-{'gpus' if gpu else 'cpus'}=N`, or use --executor local."
            )

    def _submit(self, actor: Any, number: int, item: Any) -> None:
        self._in_flight[actor.run_item.remote(item)] = _ActorTask(actor, number, item)

    def _wait_for_results(self) -> dict[int, list[Any]]:
        """Wait for a task to end: the results by the item's number, none where an actor was lost or said it is fit."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        ready, _ = ray.wait(list(self._in_flight), timeout=60)
        if not ready and not self._free_slots and all(task.item_index is None for task in self._in_flight.values()):
            self._progress.log("the Ray cluster has no room for a worker yet; waiting")
        done = {}
        for reference in ready:
            task = self._in_flight.pop(reference)
            try:
                found = ray.get(reference)
            except RayTaskError:
                raise
            except RayError as error:
                if "error raised in its creation" in str(error):
                    raise InputError(
                        f"a node of the Ray cluster can't work for prep: {_get_last_error_line(error)}. Is the same "
                        f"prep "
                        "installed on every node, with the same Python?"
                    ) from error
                self._handle_lost_actor(task, error)
                continue
            if isinstance(found, PrepError):
                raise found
            if task.actor in self._actors:
                self._free_slots += [task.actor] * (_ITEMS_PER_ACTOR if task.item_index is None else 1)
            if task.item_index is not None:
                done[task.item_index] = found
        return done

    def _handle_lost_actor(self, task: _ActorTask, error: Exception) -> None:
        """Take the item back, and give the actor none any more."""
        if task.actor in self._actors:
            self._progress.log(
                f"a Ray worker was lost; what it had in hand is done again ({_get_first_error_line(error)})"
            )
            self._actors.remove(task.actor)
            self._free_slots = [actor for actor in self._free_slots if actor is not task.actor]
            _kill_actor(task.actor)  # one that only can't be reached would keep others off its CPUs
        if task.item_index is not None:
            self._retry_queue = sorted([*self._retry_queue, (task.item_index, task.item)], key=lambda one: one[0])
        # an item that costs every actor, or actors that never get to work
        work = "to begin" if task.item_index is None and not self._actors else task.item_index
        self._attempts[work] = self._attempts.get(work, 0) + 1
        if work is not None and self._attempts[work] >= _MAX_ATTEMPTS:
            raise InputError(
                f"Ray workers are lost again and again ({_get_first_error_line(error)}). Are all nodes up (`ray "
                f"status`)? Where "
                "their memory runs out, lower batch_tokens under [encode]."
            )


class WorkerActor:
    """A process on a node. What the person at the keyboard can mend comes back as a value: Ray would wrap it."""

    def __init__(self, worker: Worker[Any, Any]) -> None:
        self._worker = worker
        self._function: Callable[[Any], Iterable[Any]] | None = None

    def check_versions(self, expected: dict[str, str]) -> InputError | None:
        """Whether this node has the libraries of the process that runs `prep`."""
        found = get_library_versions(SYNCHRONISED_LIBRARIES)
        if found == expected:
            return None
        both = ((name, found.get(name, "absent"), expected.get(name, "absent")) for name in found | expected)
        wrong = ", ".join(f"{name} {has}, not {should}" for name, has, should in both if has != should)
        return InputError(f"the node {socket.gethostname()} has {wrong}: install the same versions on every node.")

    def run_item(self, item: Any) -> list[Any] | PrepError:
        """The results of an item."""
        try:
            self._function = self._function or self._worker.factory()
            return list(self._function(item))
        except PrepError as error:
            return type(error)(f"{error} (On the node {socket.gethostname()}.)")


def divide_node_resources(resources: Mapping[str, float], needs_gpu: bool) -> list[dict[str, int]]:
    """What each actor takes of a node: a GPU with its part of the CPUs; or like parts of the CPUs, at most _CPUS."""
    cpus, gpus = (int(resources.get(name, 0)) for name in ("CPU", "GPU"))
    count = gpus if needs_gpu else -(-cpus // _MAX_CPUS_PER_ACTOR)
    return [{"num_cpus": min(cpus // count, _MAX_CPUS_PER_ACTOR), "num_gpus": int(needs_gpu)} for _ in range(count)]


def _kill_actor(actor: Any) -> None:
    import ray

    with suppress(Exception):  # it, or the cluster, may be gone by now
        ray.kill(actor)


def _get_first_error_line(error: BaseException) -> str:
    return _split_error_lines(error)[0]


def _get_last_error_line(error: BaseException) -> str:
    return _split_error_lines(error)[-1]


def _split_error_lines(error: BaseException) -> list[str]:
    lines = [re.sub(r"\x1b\[\d+m", "", line).strip() for line in str(error).splitlines()]
    return [line for line in lines if line] or [type(error).__name__]
