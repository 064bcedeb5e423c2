"""Which scan each pair is drawn from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise

import numpy as np
from torch.utils.data import Sampler

from nnunetv2_pgl.errors import PGLError
from pretraining.data import DataError

_MAX_DRAWS_PER_PASS = 100_000  # weights are rounded to that, by less than 0.001 %
_MAX_UNIT_PAIRS = 16  # pairs that a loading process reads at a time; of the paper's views some 32 MB


class PairSampler(Sampler[list[tuple[int, int]]]):
    """A shuffled stream of scans, cut into the steps of a run, processes, parts of a step and units to load.

    Draws are numbered over the whole run. Draw ``d`` belongs to pass ``d // scans`` over the pool, each pass in
    another order, so that every scan is drawn equally often whatever the batch size. Step ``s`` takes the draws
    ``s * batch .. (s + 1) * batch - 1``, and process ``r`` of ``n`` the ``r``-th of ``n`` equal parts of them: together
    the processes see what a single one would.

    Args:
        scans: Number of training scans.
        steps: Steps of the run.
        batch_size: Pairs per step, over all processes.
        accumulate: Parts of a step per process.
        seed: Seed of the run.
        rank: Number of this process.
        world_size: How many processes train together.
        weighted: Which scan a draw takes where sources have weights; None: all scans equally often, as above.

    Attributes:
        first_step: Where the stream begins, from 0.

    Raises:
        PGLError: If a step's pairs cannot be divided evenly.
    """

    def __init__(
        self,
        scans: int,
        steps: int,
        batch_size: int,
        accumulate: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        weighted: WeightedOrder | None = None,
    ):
        if batch_size % (world_size * accumulate):
            raise PGLError(
                f"a batch of {batch_size} pairs cannot be divided evenly over {world_size} processes and {accumulate} "
                "accumulated parts; choose -b as a multiple of both"
            )
        self.scans, self.steps, self.batch_size = scans, steps, batch_size
        self.seed, self.rank, self.world_size, self.weighted = seed, rank, world_size, weighted
        self.part = batch_size // (world_size * accumulate)
        self.units_per_part = -(-self.part // _MAX_UNIT_PAIRS)
        self.first_step = 0
        self._order = lru_cache(maxsize=1)(self._new_order)

    def __len__(self) -> int:
        own = self.batch_size // self.world_size
        return (self.steps - self.first_step) * (own // self.part) * self.units_per_part

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Units of the steps from ``first_step`` on, each a list of (number of the draw, index of the scan)."""
        own = self.batch_size // self.world_size
        edges = [self.part * unit // self.units_per_part for unit in range(self.units_per_part + 1)]
        for step in range(self.first_step, self.steps):
            first = step * self.batch_size + self.rank * own
            for start in range(first, first + own, self.part):
                for a, b in pairwise(edges):
                    yield [(draw, self._scan(draw)) for draw in range(start + a, start + b)]

    def _scan(self, draw: int) -> int:
        if self.weighted is not None:
            return self.weighted.scan(draw)
        pass_number, place = divmod(draw, self.scans)
        return int(self._order(pass_number)[place])

    def _new_order(self, pass_number: int) -> np.ndarray:
        return np.random.default_rng((self.seed, pass_number, 1)).permutation(self.scans)


class WeightedOrder:
    """Draws in passes that give each source its share, and each of its scans the same number of draws.

    Every pass has the same length and the same number of draws of each source, in another order. So the draws of a
    source can be numbered over the whole run without going through it, and its ``k``-th one belongs to its own pass
    ``k // scans`` over its scans. Weights are taken as the decimal numbers they are written as: in a pass the shares
    are exact, unless their common denominator exceeds 100,000.

    Args:
        sources: Number of each scan's source.
        weights: Weight of each source, in any unit; those of weight 0 are never drawn.
        seed: Seed of the run.

    Raises:
        DataError: If a source has a weight and no scan.
    """

    def __init__(self, sources: Sequence[int], weights: Sequence[float], seed: int):
        self.seed = seed
        self._scans = [np.flatnonzero(np.array(sources) == number) for number in range(len(weights))]
        for number, (scans, weight) in enumerate(zip(self._scans, weights, strict=True), start=1):
            if weight > 0 and not len(scans):
                raise DataError(
                    f"-weights: source {number} of -d has a weight of {weight:g} and no scan to train on (they are "
                    "skipped or held out): leave it out, or give it 0"
                )
        self.counts = draws_per_pass(weights, len(sources))
        self.length = sum(self.counts)
        self._pass = lru_cache(maxsize=2)(self._new_pass)
        self._order = lru_cache(maxsize=2 * len(weights))(self._new_order)

    def scan(self, draw: int) -> int:
        """Index of the scan that a draw of the run takes."""
        number, place = divmod(draw, self.length)
        source, before = (int(values[place]) for values in self._pass(number))
        scans = self._scans[source]
        own_pass, own_place = divmod(number * self.counts[source] + before, len(scans))
        return int(scans[self._order(source, own_pass)[own_place]])

    def _new_pass(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Source of each draw of a pass, and how many draws before it had the same."""
        sources = np.repeat(np.arange(len(self.counts)), self.counts)
        sources = np.random.default_rng((self.seed, number, 3)).permutation(sources)
        before = np.empty(len(sources), dtype=np.int64)
        for source, count in enumerate(self.counts):
            before[sources == source] = np.arange(count)
        return sources, before

    def _new_order(self, source: int, own_pass: int) -> np.ndarray:
        return np.random.default_rng((self.seed, own_pass, 4, source)).permutation(len(self._scans[source]))


def draws_per_pass(weights: Sequence[float], scans: int) -> list[int]:
    """Draws of each source in a pass of at least about one draw per scan: as few as give the exact shares."""
    exact = [Fraction(str(float(weight))) for weight in weights]
    shares = [weight / sum(exact) for weight in exact]
    length = math.lcm(*(share.denominator for share in shares))
    if length > _MAX_DRAWS_PER_PASS:
        return [max(1, round(share * _MAX_DRAWS_PER_PASS)) if share else 0 for share in shares]
    length *= -(-scans // length)
    return [int(share * length) for share in shares]
