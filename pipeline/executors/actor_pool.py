"""The actors that do the work of one `map` on a Ray cluster; another actor repeats the items of a lost one.

`ray.util.ActorPool` with `max_restarts` was tried: an item stays with its actor. When one of two busy nodes was killed,
the map failed after 4 s with two retries of a task, and with unlimited ones waited for a CPU until it was ended.
"""

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
"""A process hardly gets faster with more."""
_ITEMS_PER_ACTOR = 2
"""Items queued for an actor, so that it does not wait."""
_MAX_ATTEMPTS = 3
"""If this many actors are lost on one item, the item is considered the cause."""
SYNCHRONISED_LIBRARIES = (
    "faiss-cpu",
    "numpy",
    "prep-reranker",
    "sentence-transformers",
    "tokenizers",
    "torch",
    "transformers",
)
"""Must be the same everywhere, or vectors could differ in their last bits."""


class _ActorTask(NamedTuple):
    """A running call of an actor: item `item_index` (`item` is its reference), or the check of versions (None)."""

    actor: Any
    item_index: int | None
    item: Any


class ActorPool:
    """The actors of one map. When none is left, new ones start on the nodes that are alive then."""

    def __init__(self, worker: Worker[Any, Any], progress: Progress) -> None:
        import ray

        self._worker, self._progress = worker, progress
        self._worker_ref = ray.put(worker)
        self._actors: list[Any] = []
        """Actors that are not lost."""
        self._free_slots: list[Any] = []
        """Contains each actor once for every item that it can still take."""
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
        """Wait for calls to end: the results by item number. A lost actor or a check of versions gives none."""
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
                        f"a node of the Ray cluster can't work for prep: {_get_last_error_line(error)}. Install the "
                        "same prep on every node, with the same Python."
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
        """Queue the item again, and give the actor no other."""
        if task.actor in self._actors:
            self._progress.log(f"a Ray worker was lost; its items are done again ({_get_first_error_line(error)})")
            self._actors.remove(task.actor)
            self._free_slots = [actor for actor in self._free_slots if actor is not task.actor]
            _kill_actor(task.actor)  # an actor that is alive but out of reach would block its CPUs
        if task.item_index is not None:
            self._retry_queue = sorted([*self._retry_queue, (task.item_index, task.item)], key=lambda task: task[0])
        # the same item loses every actor, or no actor ever starts to work
        work = "start" if task.item_index is None and not self._actors else task.item_index
        self._attempts[work] = self._attempts.get(work, 0) + 1
        if work is not None and self._attempts[work] >= _MAX_ATTEMPTS:
            raise InputError(
                f"Ray workers are lost again and again ({_get_first_error_line(error)}). Check that all nodes are up "
                "(`ray status`). If their memory runs out, lower batch_tokens under [encode]."
            )


class WorkerActor:
    """A process on a node. A `PrepError` comes back as a value, because Ray would wrap an exception."""

    def __init__(self, worker: Worker[Any, Any]) -> None:
        self._worker = worker
        self._function: Callable[[Any], Iterable[Any]] | None = None

    def check_versions(self, expected: dict[str, str]) -> InputError | None:
        """None if this node has the libraries of the process that runs `prep`, else an error that names the others."""
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
    """The resources of each actor on a node: a GPU and a share of the CPUs, or an equal share of the CPUs alone."""
    cpus, gpus = (int(resources.get(name, 0)) for name in ("CPU", "GPU"))
    count = gpus if needs_gpu else -(-cpus // _MAX_CPUS_PER_ACTOR)
    return [{"num_cpus": min(cpus // count, _MAX_CPUS_PER_ACTOR), "num_gpus": int(needs_gpu)} for _ in range(count)]


def _kill_actor(actor: Any) -> None:
    import ray

    with suppress(Exception):  # the actor or the cluster may be gone
        ray.kill(actor)


def _get_first_error_line(error: BaseException) -> str:
    return _split_error_lines(error)[0]


def _get_last_error_line(error: BaseException) -> str:
    return _split_error_lines(error)[-1]


def _split_error_lines(error: BaseException) -> list[str]:
    lines = [re.sub(r"\x1b\[\d+m", "", line).strip() for line in str(error).splitlines()]
    return [line for line in lines if line] or [type(error).__name__]
