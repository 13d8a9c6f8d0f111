"""The processes that `accelerate launch` or `torchrun` started: rank 0 is the run, the others train along with it.

Rank 0 alone opens the workspace and speaks. The others wait in `follow`, for as long as its earlier stages take, until
it calls them to a training or leaves. Both stand in the launcher's store, so nobody waits for one who is gone.
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from stages.core.errors import InputError
from stages.core.model_files import file_digest

_SET_BY_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Any of these above 1, or LOCAL_RANK alone, makes accelerate look for others."""
_LIBRARIES = ("accelerate", "prep", "sentence-transformers", "tokenizers", "torch", "transformers")
_CALLS, _LEFT = "calls", "left"
_LOOK_SECONDS = 0.2
_FOUND = timedelta(minutes=5)
"""Within this the processes find the store; some machines start later than others."""
_ANSWERED = timedelta(days=1)
"""How long one waits for another within a training: rank 0 takes the dev figures meanwhile."""


def size() -> int:
    """How many processes there are; 1 without a launcher."""
    return _number("WORLD_SIZE") if all(name in os.environ for name in _SET_BY_LAUNCHERS) else 1


def rank() -> int:
    """The number of this process among them, from 0."""
    return _number("RANK") if size() > 1 else 0


def _number(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError:
        raise InputError(
            f"{name} = {os.environ[name]!r} is no number: unset {', '.join(_SET_BY_LAUNCHERS)}, or start prep by a "
            "launcher, which sets them."
        ) from None


def check(device: str) -> None:
    """Raise `InputError` where the processes can't each have a device, are not to train a whole model each, once, or
    can't find one another."""
    if size() == 1:
        for name in _SIZES:
            if os.environ.get(name, "1") not in ("", "0", "1"):
                raise InputError(
                    f"{name} = {os.environ[name]} says that this is one of several processes, but not where the others "
                    f"are: start prep by torchrun or accelerate launch, which set {', '.join(_SET_BY_LAUNCHERS)}; or "
                    f"unset {name}, and each trains by itself."
                )
        return
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(
            f"device = {device!r}: {size()} processes need a device each. Set device to auto or cuda (the GPU of each "
            "one's place on its machine), or to cpu."
        )
    if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)):
        raise InputError(  # the launcher's store would still hold what those before them said
            "the launcher would start the processes again by itself: start it with --max-restarts 0. The next start of "
            "yours goes on from the last checkpoint."
        )
    for way in ("DEEPSPEED", "FSDP", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{way}", "").lower() == "true":
            raise InputError(
                f"accelerate is configured for {way}, which splits the model; prep trains a whole one in each process. "
                "Start it with accelerate launch --multi_gpu, or with torchrun."
            )


def own_device(kind: str) -> str:
    """The device of this process, of the kind that rank 0 computes on: "cuda" or "cpu"."""
    from stages.core.device import pick_device

    return pick_device(f"cuda:{_number('LOCAL_RANK')}") if kind == "cuda" else kind


def alone() -> None:
    """Without others, take away what accelerate would go and look for them by."""
    for name in (*_SET_BY_LAUNCHERS, *_SIZES):
        os.environ.pop(name, None)


@contextmanager
def leading() -> Iterator[None]:
    """Around all that rank 0 does: at its end, whatever it is, the others are told."""
    if size() == 1:
        yield
        return
    _store()  # from the start: not every launcher keeps it, and where none does, rank 0 does
    try:
        yield
    finally:
        with suppress(Exception):  # the launcher, and the store with it, may be gone
            _store().set(_LEFT, "")


def follow(train: Callable[[], None]) -> None:
    """What a process of another rank does: `train` whenever rank 0 calls, until that leaves."""
    done = 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # of a launcher: what was copied here goes with it
    try:
        while not _store().check([_LEFT]):
            if _store().add(_CALLS, 0) == done:
                time.sleep(_LOOK_SECONDS)
                continue
            _join()
            train()
            done += 1
    except Exception:
        if not _has_left():  # where it has, it said why
            raise


def call() -> None:
    """Rank 0 calls the others to train."""
    _store().add(_CALLS, 1)
    _join()


def broadcast(value: Any = None) -> Any:
    """What rank 0 gives, in every process."""
    import torch.distributed as dist

    held = [value]
    dist.broadcast_object_list(held)
    return held[0]


def gather(value: Any) -> list[Any]:
    """What each process gives, by rank, in rank 0; an empty list in the others."""
    import torch.distributed as dist

    held = [None] * size() if rank() == 0 else None
    dist.gather_object(value, held)
    return held or []


def share(folders: Sequence[Path], copies: Path) -> list[Path]:
    """The folders that rank 0 gives, in every process: themselves if all see the same files there, else copies of them
    under `copies`."""
    import torch.distributed as dist

    named = broadcast({folder.resolve(): _digests(folder) for folder in folders})
    same: list[bool] = [False] * size()
    seen = rank() == 0 or all(_digests(folder) == digests for folder, digests in named.items())
    dist.all_gather_object(same, seen)
    if not all(same):
        for folder, name in ((folder, name) for folder, digests in named.items() for name in digests):
            content = broadcast((folder / name).read_bytes() if rank() == 0 else None)
            if rank():
                path = copies / folder.name / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    return list(named) if all(same) or rank() == 0 else [copies / folder.name for folder in named]


@contextmanager
def together() -> Iterator[None]:
    """Around what the processes do together: where one of them is gone, the others raise an `InputError`."""
    import torch.distributed as dist

    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise InputError(
            "another process that trained along is gone; the launcher says which was the first. The next start goes on "
            f"from the last checkpoint. ({str(error).split('. ')[0]})"
        ) from error


def _join() -> None:
    """Be one of a torch process group, if not yet; raises `InputError` where the libraries are others than rank 0's."""
    from importlib.metadata import version

    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        return
    with together():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=dist.PrefixStore("group", _store()),
            rank=rank(),
            world_size=size(),
            timeout=_ANSWERED,
        )
        here = {name: version(name) for name in _LIBRARIES}
        wanted = broadcast(here)
    if wrong := ", ".join(f"{name} {here[name]}, not {wanted[name]}" for name in here if here[name] != wanted[name]):
        raise InputError(f"{socket.gethostname()} has {wrong}: install the same versions on every machine.")


@cache
def _store() -> Any:
    # read when torch is loaded: DDP warns of what we want as it is
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import torch.distributed as dist

    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=_FOUND))
    except (dist.DistError, RuntimeError, ValueError) as error:
        at = ":".join(os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise InputError(f"the launcher's store at {at} can't be reached: {str(error).splitlines()[0]}") from error
    return dist.PrefixStore("prep", store)


def _has_left() -> bool:
    try:
        return bool(_store().check([_LEFT]))
    except Exception:  # the store went with it
        return True


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}
