"""One code path for one process and for many, whoever has launched them."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from nnunetv2_pgl.errors import PGLError
from pretraining.launching.errors import HOW_TO_CONTINUE, ProcessLost
from pretraining.launching.heartbeat import exit_after_losing, heartbeat

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

_NUMBERS = ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")


@dataclass(frozen=True)
class Processes:
    """This process among those that train together, and what they do in common.

    Attributes:
        rank: Number of this process among all.
        world_size: How many there are.
        local_rank: Number of this process on its machine.
        local_world_size: How many there are on this machine.
        store: Where the main process notes that it has done what the others wait for; None if there are no others.
        calls: Counts the calls of `run_on_main`.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    store: PrefixStore | None = None
    calls: Iterator[int] = field(default_factory=itertools.count, compare=False)

    @classmethod
    def from_environment(cls) -> Processes:
        """What torchrun's variables say of this process; alone if there are none, or WORLD_SIZE is 1.

        Schedulers and job scripts set some of them too. A process that does not know which of several it is must not
        train alone: so would the others.

        Raises:
            PGLError: Some of the variables are missing or impossible; the message names them.
        """
        given = [name for name in ("WORLD_SIZE", "RANK") if name in os.environ]
        if not given or (os.environ.get("WORLD_SIZE"), os.environ.get("RANK", "0")) == ("1", "0"):
            return cls()
        for names in (("WORLD_SIZE", "RANK"), ("MASTER_ADDR", "MASTER_PORT")):
            if missing := [name for name in names if not os.environ.get(name)]:
                are = "is" if len(missing) == 1 else "are"
                why = f"but {' and '.join(missing)} {are} not set, so that this process cannot join the others"
                raise _environment_error(given, given, why)
        try:
            rank, world_size, port = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
            local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
            local_rank = int(os.environ.get("LOCAL_RANK", 0))
            is_possible = 0 <= local_rank < local_world_size <= world_size and 0 <= rank < world_size
        except ValueError:
            is_possible = False
        if not is_possible or not 0 < port < 2**16:
            numbers = [name for name in _NUMBERS if name in os.environ]
            raise _environment_error(numbers, given, "which is impossible: ranks are whole numbers below the sizes")
        return cls(rank, world_size, local_rank, local_world_size)

    @property
    def is_main(self) -> bool:
        """Whether this process prints, writes and preprocesses."""
        return self.rank == 0

    def device(self, kind: str) -> torch.device:
        """The device of this process."""
        return torch.device("cuda", self.local_rank) if kind == "cuda" else torch.device(kind)

    def barrier(self) -> None:
        """Waits for all processes."""
        if self.world_size > 1:
            dist.barrier()

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Mean of a tensor over all processes."""
        if self.world_size > 1:
            dist.all_reduce(values)
            values = values / self.world_size
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


def _environment_error(names: Sequence[str], to_unset: Sequence[str], why: str) -> PGLError:
    return PGLError(
        f"the environment has {' and '.join(f'{name}={os.environ[name]}' for name in names)}, {why}; unset "
        f"{' and '.join(to_unset)} to train with this process alone or with -num_gpus N, or start all processes with "
        "torchrun, which sets what is needed"
    )


@contextmanager
def process_group(kind: str) -> Iterator[Processes]:
    """Joins the processes that the launcher describes in the environment; alone if there are none.

    Args:
        kind: Type of the device: NCCL serves "cuda", gloo the others.

    Raises:
        PGLError: If the environment says only part of what is needed.
        ProcessLost: If another process ended.
    """
    processes = Processes.from_environment()
    if processes.world_size == 1:
        yield processes
        return
    device = None
    if kind == "cuda":
        device = processes.device(kind)  # given to the group, which would guess it from the rank
        torch.cuda.set_device(device)
    elif "OMP_NUM_THREADS" not in os.environ:  # torchrun sets it; else the processes would compete for the cores
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes.local_world_size))
    rank, world_size = processes.rank, processes.world_size
    try:
        store, rank, world_size = next(rendezvous("env://", timeout=_WAIT_FOR_ALL))
        if processes.local_world_size == world_size:  # the counts of several nodes' agents may differ
            # torchrun keeps its store when it restarts, with the addresses of processes that are gone.
            store = PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        dist.init_process_group(
            "nccl" if kind == "cuda" else "gloo",
            timeout=_WAIT_FOR_ALL,
            store=store,
            rank=rank,
            world_size=world_size,
            device_id=device,
        )
        store = PrefixStore("pgl_pretrain", store)
        processes = replace(processes, rank=rank, world_size=world_size, store=store)
        with heartbeat(rank, world_size, lambda lost: exit_after_losing(lost, world_size)):
            yield processes
            processes.barrier()  # else the first to leave would be missed
        dist.destroy_process_group()  # not after an error: NCCL would wait for what the others will never send
    except RuntimeError as error:
        if isinstance(error, ProcessLost) or not _GONE.search(str(error)):
            raise
        raise ProcessLost(
            f"process {rank} of {world_size} lost the connection to another one, which was killed (perhaps by the "
            f"system, for lack of memory) or has failed; its message, if any, is above. {HOW_TO_CONTINUE}"
        ) from error
