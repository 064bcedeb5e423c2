"""A scan in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class NoiseScan:
    """Noise, the same in every scan of a shape."""

    shape: tuple[int, int, int, int] = (1, 16, 16, 16)
    dtype: str = "int16"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (100.0,)
    lateral_axis: int | None = None
    is_ct: tuple[bool, ...] = (True,)

    def read(self, channel: int, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        z, y, x = (slice(a, b) for a, b in zip(start, stop, strict=True))
        voxels = np.random.default_rng(channel).normal(0, 100, self.shape[1:])
        return voxels[z, y, x].astype(self.dtype)
