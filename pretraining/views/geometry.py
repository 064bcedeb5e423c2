"""The geometry of a pair of views: which box of the scan each one shows, and how it is flipped (section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from nnunetv2_pgl.errors import PGLError

_Triple: TypeAlias = tuple[float, float, float]

_TRIES = 64
_CANDIDATES = 64


@dataclass(frozen=True)
class ViewGeometry:
    """What turns a scan into a view, as data: crop the box, resize it to the view's size, then flip.

    Attributes:
        start: First edge of the box per axis (z, y, x) in source voxels; voxel edges lie at the integers.
        size: Extent of the box per axis in source voxels, a real number.
        flip: Whether the view is flipped along each axis.
    """

    start: tuple[float, float, float]
    size: tuple[float, float, float]
    flip: tuple[bool, bool, bool]

    @property
    def end(self) -> tuple[float, float, float]:
        """Last edge of the box per axis in source voxels."""
        return (self.start[0] + self.size[0], self.start[1] + self.size[1], self.start[2] + self.size[2])

    @property
    def volume(self) -> float:
        """Volume of the box in source voxels."""
        return self.size[0] * self.size[1] * self.size[2]


def overlap_box(a: ViewGeometry, b: ViewGeometry) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Start and size per axis of the intersection of two boxes (paper, eq. 5); sizes are 0 where they do not meet."""
    start = np.maximum(a.start, b.start)
    return start, np.maximum(np.minimum(a.end, b.end) - start, 0.0)


def overlap_fraction(a: ViewGeometry, b: ViewGeometry) -> float:
    """Volume of the intersection over the volume of the larger box: what each of the two views shows of the other."""
    return float(np.prod(overlap_box(a, b)[1])) / max(a.volume, b.volume)


def sample_view_pair(
    volume_shape: Sequence[int],
    view_size: Sequence[int],
    rng: np.random.Generator,
    *,
    scale: tuple[float, float] = (1.1, 1.4),
    flip_probability: float | tuple[float, float, float] = 0.5,
    min_overlap: float = 0.1,
) -> tuple[ViewGeometry, ViewGeometry]:
    """Draws two views of one scan (section 3.2, steps 1 and 2).

    Per view and axis the box measures ``scale`` times the view, uniformly; places are uniform among those where the
    boxes lie inside the scan and overlap enough. Where the scan is too small along an axis for the smallest box, the
    box shrinks to at most the scan's extent, keeping the ratio of largest to smallest.

    Args:
        volume_shape: Spatial size of the scan in voxels (z, y, x).
        view_size: Size of the views in voxels (z, y, x).
        rng: Source of all randomness.
        scale: Smallest and largest size of a box relative to the view.
        flip_probability: Probability of a flip, per view and axis: one for all axes, or three (z, y, x). What else is
            drawn does not depend on it.
        min_overlap: Smallest volume of the intersection, as a fraction of the larger of the two boxes.

    Raises:
        ValueError: If an argument is out of range, or no pair with the asked-for overlap is found.
    """
    extent = [float(n) for n in volume_shape]
    smallest, largest = _size_range(extent, view_size, scale)
    if not 0 <= min_overlap <= 1:
        raise ValueError(f"min_overlap must lie between 0 and 1, got {min_overlap}")
    probabilities = np.asarray(flip_probability, dtype=np.float64)
    if probabilities.shape not in ((), (3,)) or not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError(f"flip_probability must be one or three numbers between 0 and 1, got {flip_probability}")
    for _ in range(_TRIES):
        sizes = (_uniform(smallest, largest, rng.random(3)), _uniform(smallest, largest, rng.random(3)))
        starts = _draw_starts(extent, sizes, min_overlap, rng)
        if starts is not None:
            first, second = (rng.random((2, 3)) < probabilities).tolist()
            return (
                ViewGeometry(starts[0], sizes[0], (first[0], first[1], first[2])),
                ViewGeometry(starts[1], sizes[1], (second[0], second[1], second[2])),
            )
    raise PGLError(
        f"no pair of views of a {tuple(volume_shape)} scan overlaps by {min_overlap:.0%}: boxes of {scale[0]} to "
        f"{scale[1]} times the view differ too much in size; lower -min_overlap or narrow -scale"
    )


def _size_range(extent: Sequence[float], view: Sequence[int], scale: tuple[float, float]) -> tuple[_Triple, _Triple]:
    """Smallest and largest box per axis."""
    if len(extent) != 3 or len(view) != 3 or min(extent) < 1 or min(view) < 1:
        raise ValueError(f"scan and view need three positive sizes (z, y, x), got {extent} and {view}")
    if not 0 < scale[0] <= scale[1]:
        raise ValueError(f"scale must be two positive numbers in rising order, got {scale}")
    ranges = [
        (v * scale[0] if n >= v * scale[0] else n * (scale[0] / scale[1]), min(v * scale[1], n))
        for n, v in zip(extent, view, strict=True)
    ]
    return _triple(low for low, _ in ranges), _triple(high for _, high in ranges)


def _draw_starts(
    extent: Sequence[float], sizes: tuple[_Triple, _Triple], min_overlap: float, rng: np.random.Generator
) -> tuple[_Triple, _Triple] | None:
    """Places for two boxes of given sizes, or None if none of the candidates overlaps enough.

    The first is uniform. The second is uniform among the places that meet the bound: drawn from the window in which
    each single axis meets it (a necessary condition), accepted if the volume does.
    """
    one, two = sizes
    first = _uniform((0.0,) * 3, [n - size for n, size in zip(extent, one, strict=True)], rng.random(3))
    needed = min_overlap * max(math.prod(one), math.prod(two))
    shorter = [min(pair) for pair in zip(one, two, strict=True)]
    share = needed / math.prod(shorter)
    low, high = [], []
    for place, a, b, common, n in zip(first, one, two, shorter, extent, strict=True):
        needed_here = min(share * common, common)
        low.append(max(place + needed_here - b, 0.0))
        high.append(min(place + a - needed_here, n - b))
        high[-1] = max(high[-1], low[-1])  # only rounding brings it below
    for drawn in rng.random((_CANDIDATES, 3)).tolist():
        second = _uniform(low, high, drawn)
        overlap = 1.0
        for p, a, q, b in zip(first, one, second, two, strict=True):
            overlap *= max(min(p + a, q + b) - max(p, q), 0.0)
        if overlap >= needed:
            return first, second
    return None


def _uniform(low: Sequence[float], high: Sequence[float], drawn: Iterable[float]) -> _Triple:
    """Carries numbers drawn from [0, 1) into three intervals."""
    return _triple(a + (b - a) * float(u) for a, b, u in zip(low, high, drawn, strict=True))


def _triple(values: Iterable[float]) -> _Triple:
    z, y, x = values
    return (z, y, x)


def number_of_blocks(size: Sequence[int], block: Sequence[int], ratio: float) -> tuple[int, int]:
    """How many blocks a view of ``size`` voxels has, and how many make up the share ``ratio``: rounded, never all."""
    z, y, x = (-(-n // b) for n, b in zip(size, block, strict=True))
    blocks = z * y * x
    return blocks, min(round(ratio * blocks), blocks - 1)
