"""nnU-Net's batches, each drawn by the seed of a run and its own number, whichever process draws it."""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter

WORKERS = "nnUNet_n_proc_DA"
TRAINING, VALIDATION = 1, 2  # not 0: numpy takes [..., 0] for the same seed as [...], which others are drawn by


class SeededBatches:
    """Batches of a loader whose random numbers follow from the seed and the number of the batch alone.

    A process that draws every n-th of them draws the same as one that draws them all, and a training that is continued
    draws what it would have drawn. The random state of the process is left as it was.

    Args:
        loader: nnU-Net's, which draws from torch, numpy and random.
        seed: What else the batches depend on: seed of the run, rank, training or validation.
        first: Number of the first batch.
        processes: How many share the batches; 0 and 1 are the same.
    """

    def __init__(self, loader: Any, seed: tuple[int, int, int], first: int, processes: int):
        self.loader, self.seed, self.number, self.stride = loader, seed, first, max(processes, 1)

    def set_thread_id(self, thread_id: int) -> None:
        """What a loading process of batchgenerators calls first."""
        self.number += thread_id
        torch.set_num_threads(1)  # as in nnU-Net's
        _end_with_the_parent()

    def __next__(self) -> Any:
        seed, rank, part = self.seed
        with _random_state(np.random.SeedSequence([seed, self.number, rank, part])):
            batch = next(self.loader)
        self.number += self.stride
        return batch


def seeded_batches(
    loader: Any, seed: tuple[int, int, int], first: int, processes: int, cached: int, pin_memory: bool
) -> MultiThreadedAugmenter | SingleThreadedAugmenter:
    """`SeededBatches` in the order of their numbers, from loading processes (0: from this one).

    Together these keep at least ``cached`` batches ready, in pinned memory for a GPU if asked.
    """
    batches = SeededBatches(loader, seed, first, processes)
    if not processes:
        return SingleThreadedAugmenter(batches, None)
    augmenter = MultiThreadedAugmenter(
        batches,
        None,
        processes,
        num_cached_per_queue=-(-cached // processes),
        pin_memory=pin_memory,
        wait_time=0.002,  # nnU-Net's
    )
    augmenter.restart()
    return augmenter


def make_augmentation_deterministic(transform: Any) -> None:
    """Stops nnU-Net's blur from measuring whether direct or Fourier convolution is faster: they differ in last bits."""
    if getattr(transform, "benchmark", False):
        transform.benchmark = False
    for inner in (*getattr(transform, "transforms", ()), *filter(None, [getattr(transform, "transform", None)])):
        make_augmentation_deterministic(inner)


@contextmanager
def _random_state(seed: np.random.SeedSequence) -> Iterator[None]:
    """Within, torch (on the CPU), numpy and random draw by the seed; their states are restored afterwards."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(int(seed.generate_state(1, np.uint64)[0]))
    np.random.seed(seed.generate_state(4))
    random.seed(seed.generate_state(4).tobytes())
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])


def _end_with_the_parent() -> None:
    """Ends this loading process when the training is killed: batchgenerators' would wait for it forever.

    The id of the process that started it is looked at as well, since others may hold what `join` waits for. That is
    the parent, or with "forkserver", Python's default from 3.14 on, its server, which ends with it.
    """
    parent, starter = multiprocessing.parent_process(), os.getppid()

    def wait_for_its_end() -> None:
        while parent is not None and parent.is_alive() and os.getppid() == starter:
            parent.join(timeout=1)
        os._exit(1)

    if parent is not None:
        threading.Thread(target=wait_for_its_end, daemon=True).start()
