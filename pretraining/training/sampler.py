"""Which scan each pair is drawn from."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from torch.utils.data import Sampler

from pretraining.training.shares import SharedOrder

LARGEST_UNIT = 16  # pairs that a loading process reads at a time; of the paper's views some 32 MB


class PairSampler(Sampler[list[tuple[int, int]]]):
    """A shuffled stream of scans, cut into the steps of a run, processes, parts of a step and units to load.

    Draws are numbered over the whole run. Draw ``d`` belongs to pass ``d // scans`` over the pool, each pass in
    an order of its own, so that every scan is drawn equally often whatever the batch size. Step ``s`` takes the draws
    ``s * batch .. (s + 1) * batch - 1``, and process ``r`` of ``n`` the ``r``-th of ``n`` equal parts of them: together
    the processes see what a single one would.

    Args:
        scans: Number of training scans.
        steps: Steps of the run.
        batch_size: Pairs per step, over all processes.
        accumulate: Parts of a step per process.
        seed: Seed of the run.
        rank: This process.
        processes: Number of processes.
        shares: Which scan a draw takes where sources have weights; None: all scans equally often, as above.

    Attributes:
        first_step: Where the stream begins, from 0.

    Raises:
        ValueError: If a step's pairs cannot be divided evenly.
    """

    def __init__(
        self,
        scans: int,
        steps: int,
        batch_size: int,
        accumulate: int,
        seed: int,
        rank: int = 0,
        processes: int = 1,
        shares: SharedOrder | None = None,
    ):
        if batch_size % (processes * accumulate):
            raise ValueError(
                f"a batch of {batch_size} pairs cannot be divided evenly over {processes} processes and {accumulate} "
                "accumulated parts; choose -b as a multiple of both"
            )
        self.scans, self.steps, self.batch_size = scans, steps, batch_size
        self.seed, self.rank, self.processes, self.shares = seed, rank, processes, shares
        self.part = batch_size // (processes * accumulate)
        self.units_per_part = -(-self.part // LARGEST_UNIT)
        self.first_step = 0

    def __len__(self) -> int:
        own = self.batch_size // self.processes
        return (self.steps - self.first_step) * (own // self.part) * self.units_per_part

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Units of the steps from ``first_step`` on, each a list of (number of the draw, index of the scan)."""
        own = self.batch_size // self.processes
        edges = [self.part * unit // self.units_per_part for unit in range(self.units_per_part + 1)]
        for step in range(self.first_step, self.steps):
            first = step * self.batch_size + self.rank * own
            for start in range(first, first + own, self.part):
                for a, b in pairwise(edges):
                    yield [(draw, self._scan(draw)) for draw in range(start + a, start + b)]

    def _scan(self, draw: int) -> int:
        if self.shares is not None:
            return self.shares.scan(draw)
        pass_number, place = divmod(draw, self.scans)
        return int(self._order(pass_number)[place])

    def _order(self, pass_number: int) -> np.ndarray:
        cached = getattr(self, "_cached_order", None)
        if cached is None or cached[0] != pass_number:
            rng = np.random.default_rng((self.seed, pass_number, 1))
            cached = self._cached_order = (pass_number, rng.permutation(self.scans))
        return cached[1]
