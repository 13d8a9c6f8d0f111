"""Ray: actors on the nodes of a cluster do the work; another actor repeats the items of a lost one.

Items and results travel through Ray's object store, so the nodes need no shared disk: they need prep, the same
libraries and the model. Only the process that runs `prep` reads the tables, and reads and writes the workspace.
"""

import importlib.util
import io
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, redirect_stdout
from itertools import chain, islice

from pipeline.executors.actor_pool import ActorPool
from stages.core.context import Progress
from stages.core.errors import InputError
from stages.core.executor import ItemT, ResultT, Worker


class RayExecutor:
    """The cluster at `address` (host:port), joined at the first `map`.

    None: the cluster that RAY_ADDRESS names; without it, Ray is started on this machine.

    Raises `InputError` if Ray is not installed, the cluster can't be reached, or a node has other libraries.
    """

    def __init__(self, address: str | None, progress: Progress) -> None:
        if importlib.util.find_spec("ray") is None:
            raise InputError("--executor ray needs the extra: pip install 'prep-reranker[ray]'")
        self._address = address or os.environ.get("RAY_ADDRESS") or "local"
        self._progress, self._is_connected = progress, False
        self._exit_stack = ExitStack()

    def map(self, worker: Worker[ItemT, ResultT], items: Iterable[ItemT]) -> Iterator[ResultT]:
        """The results in the order of the items. The actors live as long as this iterator."""
        items = iter(items)
        first = list(islice(items, 1))
        if not first:
            return
        self._connect()
        pool = ActorPool(worker, self._progress)
        try:
            yield from pool.map_items(chain(first, items))
        finally:
            pool.stop()

    def close(self) -> None:
        """Leave the cluster; a Ray that was started on this machine ends."""
        import ray

        with self._exit_stack:
            if self._is_connected:
                ray.shutdown()

    def _connect(self) -> None:
        import ray

        if self._is_connected:
            return
        _require_listener(self._address)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # ray prints messages about nodes to stdout, which is for the command's result
        self._exit_stack.enter_context(redirect_stdout(io.StringIO()))
        local_options = {"include_dashboard": False} if self._address == "local" else {}
        try:
            ray.init(self._address, logging_level="ERROR", log_to_driver=False, **local_options)
        except (Exception, SystemExit) as error:  # ray exits if a cluster does not answer
            why = str(error) if isinstance(error, Exception) else "it does not answer as a Ray cluster does"
            raise _make_unreachable_error(self._address, why) from error
        self._is_connected = True


def _require_listener(address: str) -> None:
    """Raise `InputError` if nothing listens at host:port; Ray itself would try for two minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise _make_unreachable_error(address, str(error)) from error


def _make_unreachable_error(address: str, why: str) -> InputError:
    if address == "local":
        return InputError(f"Ray could not be started on this machine: {why}. Try --executor local.")
    return InputError(
        f"the Ray cluster at {address} can't be reached ({why}). Is it up (`ray status --address {address}`), and does "
        f"this machine belong to it (`ray start --address {address} --num-cpus 0`)? If it asks for a token, set "
        "RAY_AUTH_MODE=token here too. Without an address in --executor or RAY_ADDRESS, Ray is started on this machine."
    )
