"""Whether memory suffices: counted before a run, tried after a GPU's memory has run out."""

from __future__ import annotations

import gc
import os
import re
import traceback
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.networks.hardware import autocast_type
from pretraining.launching.distributed import Processes
from pretraining.settings.config import PretrainConfig
from pretraining.training.footprint import available_memory, bytes_of_step
from pretraining.training.state import initial_state
from pretraining.views.rendering import largest_source_box

_MIB, _GIB = 2**20, 2**30
_SHARED_MEMORY = "/dev/shm"
_OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|unable to mmap|ALLOC_FAILED", re.IGNORECASE
)


def require_fitting_batch(config: PretrainConfig, device: str, processes: Processes, workers: int) -> None:
    """Refuses a batch that the memory of this machine cannot hold, on a CPU, before any scan is read.

    There the system would kill the process or, worse, another one, without a message. A GPU raises an error, after
    which `suggesting_a_smaller_batch` tries what fits: that is more exact, since convolutions there take as much
    workspace as they find.

    Raises:
        PGLError: Names the largest batch that fits.
    """
    available = available_memory()
    if device != "cpu" or available is None:
        return
    available //= processes.local_world_size
    fixed, per_pair = bytes_of_step(config, workers, processes.world_size)
    needed = fixed + _pairs_of_part(config, processes) * per_pair
    if needed > available:
        each = f" in each of {processes.local_world_size} processes" if processes.local_world_size > 1 else ""
        reason = (
            f"A step needs about {needed / _GIB:.1f} GiB of memory{each}, of which {available / _GIB:.1f} are free."
        )
        raise _too_large(config, processes, int((available - fixed) // per_pair), reason)


def require_shared_memory(needed: int) -> None:
    """Refuses to start loading processes that would die of a full ``/dev/shm``: Docker gives a container 64 MB.

    Args:
        needed: Bytes that the batches take between loading and use.

    Raises:
        PGLError: Names what is needed and how to get it.
    """
    if not hasattr(os, "statvfs") or not os.path.isdir(_SHARED_MEMORY):
        return
    free = os.statvfs(_SHARED_MEMORY)
    available = free.f_bavail * free.f_frsize
    if needed > available:
        raise PGLError(
            f"the data loading processes need {needed / _MIB:.0f} MiB of shared memory, but {_SHARED_MEMORY} has "
            f"{available / _MIB:.0f} MiB free: start the container with --shm-size={-(-needed * 2 // 2**30)}g (or "
            "--ipc=host), or lower nnUNet_n_proc_DA (0 loads in the training process)"
        )


@contextmanager
def suggesting_a_smaller_batch(
    config: PretrainConfig, device: str, processes: Processes, workers: int
) -> Iterator[None]:
    """Turns an error for lack of memory, raised by training, into one that names the largest batch that fits.

    Raises:
        PGLError: Instead of that error, in the first process that runs out of memory.
        ProcessLost: In the others that do.
    """
    try:
        yield
        return
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = _reason(error)
        traceback.clear_frames(error.__traceback__)  # they hold the run and its tensors
    gc.collect()
    fits = processes.run_on_first("out_of_memory", lambda: _largest_part(config, device, processes, workers))
    raise _too_large(config, processes, fits, reason)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error was raised for lack of memory, on whatever device."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None


def largest_that_runs(run: Callable[[int], None], most: int) -> int:
    """Largest number up to ``most`` for which a function does not run out of memory, by bisection; 0 if none.

    Other errors of the function are passed on.
    """

    def runs_out(number: int) -> bool:
        try:
            run(number)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            traceback.clear_frames(error.__traceback__)
            return True
        return False

    return bisect_left(range(1, most + 1), True, key=runs_out)


def _largest_part(config: PretrainConfig, device: str, processes: Processes, workers: int) -> int:
    """Pairs of a part that fit, fewer than those of the part that did not; 0 if none.

    Raises:
        PGLError: If not even the networks fit.
    """
    most = _pairs_of_part(config, processes) - 1
    if device == "cuda":
        torch.backends.cudnn.benchmark = False  # it would search for each size
        try:
            step = _step_of(config, processes.device(device), processes.world_size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise PGLError(
                "the networks alone do not fit into the memory that the device has left; is another job there? "
                + _reason(error)
            ) from error
        return largest_that_runs(step, most)
    fixed, per_pair = bytes_of_step(config, workers, processes.world_size)
    left = (available_memory() or 0) // processes.local_world_size
    return min(most, int((left - fixed) // per_pair))


def _step_of(config: PretrainConfig, device: torch.device, world_size: int) -> Callable[[int], None]:
    """A step of a number of pairs on new networks, which no other process has to join."""
    state = initial_state(config, device, autocast_type(device))
    size, channels = config.views.size, config.encoder_channels
    crop = largest_source_box(size, config.views.scale)
    buckets = sum(p.numel() for p in state.objective.parameters() if p.requires_grad) if world_size > 1 else 0

    def run(pairs: int) -> None:
        state.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        # Crops of this step and, while they are joined, twice those of the next one.
        crops = torch.empty(3 * 2 * pairs, channels, *crop, dtype=torch.int16, device=device)
        exchanged = torch.empty(buckets, device=device)  # the gradients of all processes
        views = torch.randn(2 * pairs, channels, *size, device=device)
        state.objective.dry_forward(views).backward()
        state.optimizer.step()
        del crops, exchanged

    return run


def _reason(error: BaseException) -> str:
    """What torch says of the memory; of several lines the first, up to how its allocator works."""
    return str(error).splitlines()[0].split(" Including non-PyTorch memory")[0]


def _pairs_of_part(config: PretrainConfig, processes: Processes) -> int:
    """Pairs that a process computes at once."""
    return config.batch_size // (config.accumulate * processes.world_size)


def _too_large(config: PretrainConfig, processes: Processes, part: int, reason: str) -> PGLError:
    """The error for a part of which ``part`` pairs would fit."""
    tried = f"-b {config.batch_size} does not fit"
    if part < 1:
        return PGLError(f"{tried}, nor does one pair at a time: use a smaller -patch. {reason}")
    advice = f"The largest batch that fits is -b {part * processes.world_size * config.accumulate}"
    pairs = config.batch_size // processes.world_size
    for parts in range(config.accumulate + 1, pairs + 1):
        if pairs % parts == 0 and pairs // parts <= part:
            advice += f"; -b {config.batch_size} -accumulate {parts} computes the same batch in parts that fit"
            break
    return PGLError(f"{tried}. {advice}. {reason}")
