"""From the loading processes to the device: their shared memory, and the copies on a stream of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice

import torch

from pretraining.launching.errors import TrainingError
from pretraining.views import ViewPairBatch

_MIB = 2**20
_SHARED_MEMORY = "/dev/shm"


def require_shared_memory(needed: int) -> None:
    """Refuses to start loading processes that would die of a full ``/dev/shm``: Docker gives a container 64 MB.

    Args:
        needed: Bytes that the batches under way take.

    Raises:
        TrainingError: Names what is needed and how to get it.
    """
    if not hasattr(os, "statvfs") or not os.path.isdir(_SHARED_MEMORY):
        return
    free = os.statvfs(_SHARED_MEMORY)
    available = free.f_bavail * free.f_frsize
    if needed > available:
        raise TrainingError(
            f"the data loading processes need {needed / _MIB:.0f} MiB of shared memory, but {_SHARED_MEMORY} has "
            f"{available / _MIB:.0f} MiB free: start the container with --shm-size={-(-needed * 2 // 2**30)}g (or "
            "--ipc=host), or lower nnUNet_n_proc_DA (0 loads in the training process)"
        )


def parts_on_device(units: Iterator[ViewPairBatch], per_part: int, device: torch.device) -> Iterator[ViewPairBatch]:
    """Joins units to the parts of steps, on the device.

    On CUDA they are copied from pinned memory on a stream of their own, beside the step before, which is still being
    computed when the next part is asked for.

    Args:
        units: As they are loaded.
        per_part: How many make a part.
        device: Of the training.
    """
    if device.type != "cuda":
        while part := list(islice(units, per_part)):
            yield ViewPairBatch.joined(part).to(device)
        return
    stream = torch.cuda.Stream(device)
    while True:
        with torch.cuda.stream(stream):
            copies = [unit.pin_memory().to(device) for unit in islice(units, per_part)]
            if not copies:
                return
            batch = ViewPairBatch.joined(copies)
            del copies
        current = torch.cuda.current_stream(device)
        current.wait_stream(stream)
        batch.record_stream(current)
        yield batch
        del batch  # before room is made for the next
