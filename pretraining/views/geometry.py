"""The geometry of a pair of views: which box of the scan each one shows, and how it is flipped (section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
    flip_probability: float = 0.5,
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
        flip_probability: Probability of a flip, per view and axis.
        min_overlap: Smallest volume of the intersection, as a fraction of the larger of the two boxes.

    Raises:
        ValueError: If an argument is out of range, or no pair with the asked-for overlap is found.
    """
    extent = np.asarray(volume_shape, dtype=np.float64)
    low, high = _size_range(extent, np.asarray(view_size, dtype=np.float64), scale)
    if not 0 <= min_overlap <= 1:
        raise ValueError(f"min_overlap must lie between 0 and 1, got {min_overlap}")
    for _ in range(_TRIES):
        sizes = rng.uniform(low, high, size=(2, 3))
        starts = _draw_starts(extent, sizes, min_overlap, rng)
        if starts is not None:
            flips = rng.random((2, 3)) < flip_probability
            first, second = (_geometry(*drawn) for drawn in zip(starts, sizes, flips, strict=True))
            return first, second
    raise ValueError(
        f"no pair of views of a {tuple(volume_shape)} scan overlaps by {min_overlap:.0%}: boxes of {scale[0]} to "
        f"{scale[1]} times the view differ too much in size; lower min_overlap or narrow scale"
    )


def _size_range(
    extent: NDArray[np.float64], view: NDArray[np.float64], scale: tuple[float, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smallest and largest box per axis."""
    if extent.shape != (3,) or view.shape != (3,) or extent.min() < 1 or view.min() < 1:
        raise ValueError(f"scan and view need three positive sizes (z, y, x), got {extent} and {view}")
    if not 0 < scale[0] <= scale[1]:
        raise ValueError(f"scale must be two positive numbers in rising order, got {scale}")
    high = np.minimum(view * scale[1], extent)
    fits = extent >= view * scale[0]
    return np.where(fits, view * scale[0], extent * (scale[0] / scale[1])), high


def _draw_starts(
    extent: NDArray[np.float64], sizes: NDArray[np.float64], min_overlap: float, rng: np.random.Generator
) -> NDArray[np.float64] | None:
    """Places for two boxes of given sizes, (2, 3), or None if none of the candidates overlaps enough.

    The first is uniform. The second is uniform among the places that meet the bound: drawn from the window in which
    each single axis meets it (a necessary condition), accepted if the volume does.
    """
    room = extent - sizes
    first = rng.uniform(0, room[0])
    needed = min_overlap * sizes.prod(axis=1).max()
    shorter = sizes.min(axis=0)
    needed_per_axis = np.minimum(needed / shorter.prod() * shorter, shorter)
    low = np.maximum(first + needed_per_axis - sizes[1], 0)
    high = np.minimum(first + sizes[0] - needed_per_axis, room[1])
    if np.any(low > high + 1e-9):
        return None
    seconds = rng.uniform(low, np.maximum(high, low), size=(_CANDIDATES, 3))
    overlap = np.minimum(first + sizes[0], seconds + sizes[1]) - np.maximum(first, seconds)
    accepted = np.flatnonzero(np.prod(np.maximum(overlap, 0), axis=1) >= needed)
    return np.stack([first, seconds[accepted[0]]]) if len(accepted) else None


def _geometry(start: NDArray[np.float64], size: NDArray[np.float64], flip: NDArray[np.bool_]) -> ViewGeometry:
    z, y, x = (float(value) for value in start)
    d, h, w = (float(value) for value in size)
    return ViewGeometry((z, y, x), (d, h, w), (bool(flip[0]), bool(flip[1]), bool(flip[2])))
