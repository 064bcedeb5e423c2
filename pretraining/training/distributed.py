"""One code path for one process and for many: launched by torchrun, or spawned here for ``-num_gpus``."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn as spawn_processes

# The first process may preprocess for hours while the others wait; launchers end the job when a process is lost.
_TIMEOUT = timedelta(days=2)


@dataclass(frozen=True)
class Processes:
    """This process among those that train together."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process prints, writes and preprocesses."""
        return self.rank == 0

    def device(self, kind: str) -> torch.device:
        """The device of this process."""
        return torch.device("cuda", self.local_rank) if kind == "cuda" else torch.device(kind)

    def barrier(self) -> None:
        """Waits for all processes."""
        if self.count > 1:
            dist.barrier()

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Mean of a tensor over all processes."""
        if self.count > 1:
            dist.all_reduce(values)
            values = values / self.count
        return values

    def from_main(self, value: Any) -> Any:
        """A picklable value that the main process computed, on every process."""
        box = [value]
        if self.count > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]


@contextmanager
def process_group(kind: str) -> Iterator[Processes]:
    """Joins the processes that torchrun (or `spawn`) describes in the environment; alone if there are none.

    Args:
        kind: Type of the device: NCCL serves "cuda", gloo the others.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes()
        return
    processes = Processes(int(os.environ["RANK"]), count, int(os.environ.get("LOCAL_RANK", "0")))
    if kind == "cuda":
        torch.cuda.set_device(processes.local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:  # torchrun sets it; else the processes would compete for the cores
        here = int(os.environ.get("LOCAL_WORLD_SIZE", count))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // here))
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        yield processes
    finally:
        dist.destroy_process_group()


def spawn(function: Callable[..., None], args: tuple[Any, ...], count: int) -> None:
    """Runs ``function(*args)`` in ``count`` processes of this machine that train together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn_processes(_enter, (function, args, count, port), nprocs=count)


def _enter(rank: int, function: Callable[..., None], args: tuple[Any, ...], count: int, port: int) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    function(*args)
