"""Which scan a draw takes where each source has a share of the draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np

from pretraining.data import DataError

_LONGEST = 100_000  # draws in which weights of any digits come true; their rounding is below a thousandth of a per cent


class SharedOrder:
    """Draws in passes that give each source its share, and each of its scans the same number of draws.

    Every pass has the same length and the same number of draws of each source, in an order of its own. So the draws of
    a source can be numbered over the whole run without going through it, and its ``k``-th one belongs to its own pass
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
    if length > _LONGEST:
        return [max(1, round(share * _LONGEST)) if share else 0 for share in shares]
    length *= -(-scans // length)
    return [int(share * length) for share in shares]
