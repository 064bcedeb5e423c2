"""One code path for one process and for many: launched by torchrun, or spawned here for ``-num_gpus``."""

from __future__ import annotations

import itertools
import os
import re
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from pretraining.training.errors import HOW_TO_GO_ON, STOPPED, ProcessLost, TrainingError
from pretraining.training.heartbeat import heartbeat
from pretraining.training.restart import tell_torchrun

T = TypeVar("T")

# The others wait while the main process preprocesses, perhaps for hours, and while it saves.
_WAIT_FOR_MAIN = timedelta(days=2)
_WAIT_FOR_ALL = timedelta(minutes=30)

_SILENT = "its machine is down or hangs, or the network between them"

# What gloo, NCCL and the store say when the process at the other end is gone.
_GONE = re.compile(
    r"connection (was )?(closed|reset|refused)|broken pipe|socket (closed|timeout)|remote process exited|"
    r"failed to (recv|send)|heartbeat|timed out|ncclRemoteError|NCCL communicator was aborted",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    Attributes:
        rank: Its number among all.
        count: How many there are.
        local_rank: Its number on this machine.
        local_count: How many there are on this machine.
        store: Where the main process says that it has done what the others wait for; None if there are no others.
        calls: Counts the calls of `from_main`.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1
    store: PrefixStore | None = None
    calls: Iterator[int] = field(default_factory=itertools.count)

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

    def from_main(self, function: Callable[[], T]) -> T:
        """What a function returns in the main process, picklable, on every process.

        Raises:
            Exception: In the main process, what the function raised.
            ProcessLost: In the others, if it raised anything; without a message, since the main process has one.
        """
        if self.store is None:
            return function()
        done = f"main_{next(self.calls)}"
        box: list[Any] = [None]
        try:
            if self.is_main:
                box = [(function(),)]
        finally:
            if self.is_main:
                self.store.set(done, "")
            self.store.wait([done], _WAIT_FOR_MAIN)
            dist.broadcast_object_list(box, src=0)
        if box[0] is None:
            raise ProcessLost
        return box[0][0]


@contextmanager
def process_group(kind: str) -> Iterator[Processes]:
    """Joins the processes that torchrun (or `spawn`) describes in the environment; alone if there are none.

    Args:
        kind: Type of the device: NCCL serves "cuda", gloo the others.

    Raises:
        ProcessLost: If another process ended, or if the launcher asks this one to end, as it does then.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes()
        return
    rank, local_rank = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", count))
    if kind == "cuda":
        torch.cuda.set_device(local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:  # torchrun sets it; else the processes would compete for the cores
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // here))
    handler = signal.getsignal(signal.SIGTERM)
    if "TORCHELASTIC_RUN_ID" in os.environ:  # `spawn` has its own message
        signal.signal(signal.SIGTERM, _told_to_end)
    try:
        store, rank, count = next(rendezvous("env://", timeout=_WAIT_FOR_ALL))
        if here == count:  # the counts of several nodes' agents may differ
            # torchrun keeps its store when it restarts, with the addresses of processes that are gone.
            store = PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        backend = "nccl" if kind == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=_WAIT_FOR_ALL, store=store, rank=rank, world_size=count)
        processes = Processes(rank, count, local_rank, here, PrefixStore("pgl_pretrain", store))
        attempt = processes.from_main(lambda: uuid.uuid4().hex)
        with heartbeat(store, attempt, rank, count, lambda lost: _end_without(lost, count)):
            yield processes
    except RuntimeError as error:
        if isinstance(error, TrainingError | ProcessLost) or not _GONE.search(str(error)):
            raise
        raise ProcessLost(
            f"process {rank} of {count} lost the connection to another one, which was killed (perhaps by the system, "
            f"for want of memory) or has failed; its own message, if any, stands above. {HOW_TO_GO_ON}"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, handler)
        if dist.is_initialized():
            dist.destroy_process_group()


def _end_without(lost: int, count: int) -> NoReturn:
    """Ends this process from a thread, since its main one may wait for the lost process where nothing interrupts it."""
    line = f"pgl_pretrain: nothing was heard of process {lost} of {count} for a minute: {_SILENT}. {HOW_TO_GO_ON}"
    tell_torchrun(line)
    print(f"\n{line}", file=sys.stderr, flush=True)  # below the progress bar
    os._exit(1)


def _told_to_end(*_: object) -> None:
    raise ProcessLost(STOPPED)
