"""The processes that train one model together on this machine: their number, their group, and errors between them.

`stages.training.launcher` starts them for the training alone, one for each GPU.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from stages.core.errors import InputError

if TYPE_CHECKING:
    from torch.distributed import TCPStore

_WORLD_SIZE_VARIABLES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", *_WORLD_SIZE_VARIABLES)
"""What a launcher sets. accelerate looks for other processes if one of them is set."""
_HOST = "127.0.0.1"
_COLLECTIVE_TIMEOUT = timedelta(days=1)
"""How long a process waits for another one: rank 0 computes the dev metrics meanwhile."""


def check_launcher() -> None:
    """Raise `InputError` if a launcher (torchrun, accelerate launch, mpirun) started several copies of this process."""
    for name in _WORLD_SIZE_VARIABLES:
        if os.environ.get(name, "1") not in ("", "0", "1"):
            raise InputError(
                f"{name} = {os.environ[name]}: a launcher started several copies of prep. Start it without torchrun, "
                f"accelerate launch or mpirun: it starts a process for each GPU itself. (If there is no launcher, "
                f"unset {name}.)"
            )


def clear_launcher_variables() -> None:
    """Remove the variables by which accelerate would look for other processes."""
    for name in _LAUNCHER_VARIABLES:
        os.environ.pop(name, None)


def count_processes(device: str) -> int:
    """How many processes train: one for each GPU that torch can use if `device` is "auto" or "cuda", else one."""
    import torch

    return max(1, torch.cuda.device_count()) if device in ("auto", "cuda") else 1


def pick_local_device(rank: int) -> str:
    """The device of the process of this rank."""
    import torch

    return f"cuda:{rank}" if torch.cuda.is_available() else "cpu"


def open_store() -> "TCPStore":
    """The store at which the processes of a group meet, on a free port of this machine."""
    from torch.distributed import TCPStore

    return TCPStore(_HOST, 0, is_master=True, wait_for_workers=False)


def join_group(rank: int, world_size: int, port: int) -> None:
    """Make this process one of `world_size` that meet at the store of `port` on this machine."""
    clear_launcher_variables()
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    os.environ |= {name: str(value) for name, value in ranks.items()}
    os.environ |= {"MASTER_ADDR": _HOST, "MASTER_PORT": str(port)}
    import torch
    import torch.distributed as dist

    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=dist.TCPStore(_HOST, port),
        rank=rank,
        world_size=world_size,
        timeout=_COLLECTIVE_TIMEOUT,
    )


def get_rank() -> int:
    """The number of this process in its group, from 0; 0 without a group."""
    import torch.distributed as dist

    return dist.get_rank() if dist.is_initialized() else 0


def get_world_size() -> int:
    """How many processes train together; 1 without a group."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_initialized() else 1


def is_any_true(value: bool) -> bool:
    """Whether `value` is true in one of the processes. All of them have to call this."""
    if get_world_size() == 1:
        return value
    import torch
    import torch.distributed as dist

    flag = torch.tensor(int(value))
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


@contextmanager
def convert_peer_errors() -> Iterator[None]:
    """Raise `InputError` in this process if another one has ended while the two worked together."""
    import torch.distributed as dist

    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise InputError(
            f"another process of the training ended ({str(error).split('. ')[0]}). The next run resumes from the last "
            "checkpoint."
        ) from error
