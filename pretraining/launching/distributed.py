"""One code path for one process and for many, whoever has launched them."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from pretraining.launching.errors import HOW_TO_CONTINUE, ProcessLost
from pretraining.launching.heartbeat import end_without, heartbeat
from pretraining.launching.torchrun_environment import ProcessRank, read_torchrun_environment

T = TypeVar("T")

# The others wait while the main process preprocesses, perhaps for hours, and while it saves.
_WAIT_FOR_MAIN = timedelta(days=2)
_WAIT_FOR_ALL = timedelta(minutes=30)

# What gloo, NCCL and the store say when the process at the other end is gone.
_GONE = re.compile(
    r"connection (was )?(closed|reset|refused)|broken pipe|socket (closed|timeout)|remote process exited|"
    r"failed to (recv|send)|heartbeat|timed out|ncclRemoteError|NCCL communicator was aborted",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Processes(ProcessRank):
    """This process among those that train together, and what they do in common.

    Attributes:
        store: Where the main process notes that it has done what the others wait for; None if there are no others.
        calls: Counts the calls of `run_on_main`.
    """

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

    def run_on_main(self, function: Callable[[], T]) -> T:
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

    def run_on_first(self, name: str, function: Callable[[], T]) -> T:
        """What a function returns in the process that calls this first; the others end when it has.

        Args:
            name: Of what is done, once in a run.
            function: Needs no other process.

        Raises:
            ProcessLost: In the others, without a message, since the first one has one.
        """
        if self.store is None:
            return function()
        if self.store.add(name, 1) > 1:
            self.store.wait([f"{name}_done"], _WAIT_FOR_ALL)
            raise ProcessLost
        try:
            return function()
        finally:
            self.store.set(f"{name}_done", "")


@contextmanager
def process_group(kind: str) -> Iterator[Processes]:
    """Joins the processes that the launcher describes in the environment; alone if there are none.

    Args:
        kind: Type of the device: NCCL serves "cuda", gloo the others.

    Raises:
        PGLError: If what the environment says of them is incomplete or contradictory.
        ProcessLost: If another process ended.
    """
    place = read_torchrun_environment()
    if place.count == 1:
        yield Processes()
        return
    device = None
    if kind == "cuda":
        device = torch.device("cuda", place.local_rank)  # given to the group, which would guess it from the rank
        torch.cuda.set_device(device)
    elif "OMP_NUM_THREADS" not in os.environ:  # torchrun sets it; else the processes would compete for the cores
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // place.local_count))
    rank, count = place.rank, place.count
    try:
        store, rank, count = next(rendezvous("env://", timeout=_WAIT_FOR_ALL))
        if place.local_count == count:  # the counts of several nodes' agents may differ
            # torchrun keeps its store when it restarts, with the addresses of processes that are gone.
            store = PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        dist.init_process_group(
            "nccl" if kind == "cuda" else "gloo",
            timeout=_WAIT_FOR_ALL,
            store=store,
            rank=rank,
            world_size=count,
            device_id=device,
        )
        processes = Processes(rank, count, place.local_rank, place.local_count, PrefixStore("pgl_pretrain", store))
        with heartbeat(rank, count, lambda lost: end_without(lost, count)):
            yield processes
            processes.barrier()  # else the first to leave would be missed
        dist.destroy_process_group()  # not after an error: NCCL would wait for what the others will never send
    except RuntimeError as error:
        if isinstance(error, ProcessLost) or not _GONE.search(str(error)):
            raise
        raise ProcessLost(
            f"process {rank} of {count} lost the connection to another one, which was killed (perhaps by the system, "
            f"for lack of memory) or has failed; its message, if any, is above. {HOW_TO_CONTINUE}"
        ) from error
