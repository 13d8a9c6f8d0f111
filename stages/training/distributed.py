"""The processes that `accelerate launch` or `torchrun` started: rank 0 is the run, the others train along with it.

Rank 0 alone opens the workspace and speaks. The others wait in `run_worker_loop`, for as long as its earlier stages
take, until it calls them to a training or leaves. Both stand in the launcher's store, so nobody waits for one who is
gone.
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
from stages.core.files import file_digest
from stages.core.libraries import get_library_versions

_LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_WORLD_SIZE_VARIABLES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Any of these above 1, or LOCAL_RANK alone, makes accelerate look for others."""
_CHECKED_LIBRARIES = ("accelerate", "prep", "sentence-transformers", "tokenizers", "torch", "transformers")
_N_TRAININGS_KEY, _MAIN_RANK_EXITED_KEY = "calls", "left"
_POLL_SECONDS = 0.2
_RENDEZVOUS_TIMEOUT = timedelta(minutes=5)
"""Within this the processes find the store; some machines start later than others."""
_COLLECTIVE_TIMEOUT = timedelta(days=1)
"""How long one waits for another within a training: rank 0 takes the dev figures meanwhile."""


def get_world_size() -> int:
    """How many processes there are; 1 without a launcher."""
    return _read_int_variable("WORLD_SIZE") if all(name in os.environ for name in _LAUNCHER_VARIABLES) else 1


def get_rank() -> int:
    """The number of this process among them, from 0."""
    return _read_int_variable("RANK") if get_world_size() > 1 else 0


def _read_int_variable(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError:
        raise InputError(
            f"{name} = {os.environ[name]!r} is no number: unset {', '.join(_LAUNCHER_VARIABLES)}, or start prep by a "
            "launcher, which sets them."
        ) from None


def check_launch(device: str) -> None:
    """Raise `InputError` where the processes can't each have a device, are not to train a whole model each, once, or
    can't find one another."""
    if get_world_size() == 1:
        for name in _WORLD_SIZE_VARIABLES:
            if os.environ.get(name, "1") not in ("", "0", "1"):
                raise InputError(
                    f"{name} = {os.environ[name]} says that this is one of several processes, but not where the others "
                    f"are: start prep by torchrun or accelerate launch, which set {', '.join(_LAUNCHER_VARIABLES)}; or "
                    f"unset {name}, and each trains by itself."
                )
        return
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(
            f"device = {device!r}: {get_world_size()} processes need a device each. Set device to auto or cuda (the "
            f"GPU of each "
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


def pick_local_device(device_type: str) -> str:
    """The device of this process, of the kind that rank 0 computes on: "cuda" or "cpu"."""
    from stages.core.device import pick_device

    return pick_device(f"cuda:{_read_int_variable('LOCAL_RANK')}") if device_type == "cuda" else device_type


def clear_launcher_variables() -> None:
    """Without others, take away what accelerate would go and look for them by."""
    for name in (*_LAUNCHER_VARIABLES, *_WORLD_SIZE_VARIABLES):
        os.environ.pop(name, None)


@contextmanager
def main_rank() -> Iterator[None]:
    """Around all that rank 0 does: at its end, whatever it is, the others are told."""
    if get_world_size() == 1:
        yield
        return
    _get_store()  # from the start: not every launcher keeps it, and where none does, rank 0 does
    try:
        yield
    finally:
        with suppress(Exception):  # the launcher, and the store with it, may be gone
            _get_store().set(_MAIN_RANK_EXITED_KEY, "")


def run_worker_loop(train: Callable[[], None]) -> None:
    """What a process of another rank does: `train` whenever rank 0 calls, until that leaves."""
    n_trained = 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # of a launcher: what was copied here goes with it
    try:
        while not _get_store().check([_MAIN_RANK_EXITED_KEY]):
            if _get_store().add(_N_TRAININGS_KEY, 0) == n_trained:
                time.sleep(_POLL_SECONDS)
                continue
            _init_process_group()
            train()
            n_trained += 1
    except Exception:
        if not _has_main_rank_exited():  # where it has, it said why
            raise


def start_training() -> None:
    """Rank 0 calls the others to train."""
    _get_store().add(_N_TRAININGS_KEY, 1)
    _init_process_group()


def broadcast_object(value: Any = None) -> Any:
    """What rank 0 gives, in every process."""
    import torch.distributed as dist

    object_list = [value]
    dist.broadcast_object_list(object_list)
    return object_list[0]


def gather_objects(value: Any) -> list[Any]:
    """What each process gives, by rank, in rank 0; an empty list in the others."""
    import torch.distributed as dist

    object_list = [None] * get_world_size() if get_rank() == 0 else None
    dist.gather_object(value, object_list)
    return object_list or []


def share_folders(folders: Sequence[Path], copy_root: Path) -> list[Path]:
    """The folders that rank 0 gives, in every process: themselves if all see the same files there, else copies of them
    under `copy_root`."""
    import torch.distributed as dist

    digests_by_folder = broadcast_object({folder.resolve(): _compute_file_digests(folder) for folder in folders})
    is_visible_by_rank: list[bool] = [False] * get_world_size()
    is_visible = get_rank() == 0 or all(
        _compute_file_digests(folder) == digests for folder, digests in digests_by_folder.items()
    )
    dist.all_gather_object(is_visible_by_rank, is_visible)
    if not all(is_visible_by_rank):
        for folder, name in ((folder, name) for folder, digests in digests_by_folder.items() for name in digests):
            content = broadcast_object((folder / name).read_bytes() if get_rank() == 0 else None)
            if get_rank():
                path = copy_root / folder.name / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    return (
        list(digests_by_folder)
        if all(is_visible_by_rank) or get_rank() == 0
        else [copy_root / folder.name for folder in digests_by_folder]
    )


@contextmanager
def convert_peer_errors() -> Iterator[None]:
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


def _init_process_group() -> None:
    """Be one of a torch process group, if not yet; raises `InputError` where the libraries are others than rank 0's."""
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        return
    with convert_peer_errors():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=dist.PrefixStore("group", _get_store()),
            rank=get_rank(),
            world_size=get_world_size(),
            timeout=_COLLECTIVE_TIMEOUT,
        )
        here = get_library_versions(_CHECKED_LIBRARIES)
        wanted = broadcast_object(here)
    if wrong := ", ".join(f"{name} {here[name]}, not {wanted[name]}" for name in here if here[name] != wanted[name]):
        raise InputError(f"{socket.gethostname()} has {wrong}: install the same versions on every machine.")


@cache
def _get_store() -> Any:
    # read when torch is loaded: DDP warns of what we want as it is
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import torch.distributed as dist

    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=_RENDEZVOUS_TIMEOUT))
    except (dist.DistError, RuntimeError, ValueError) as error:
        at = ":".join(os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise InputError(f"the launcher's store at {at} can't be reached: {str(error).splitlines()[0]}") from error
    return dist.PrefixStore("prep", store)


def _has_main_rank_exited() -> bool:
    try:
        return bool(_get_store().check([_MAIN_RANK_EXITED_KEY]))
    except Exception:  # the store went with it
        return True


def _compute_file_digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}
