"""nnU-Net's resampling, a part of the scan at a time: the same values for a fraction of memory and time.

nnU-Net resamples with cubic splines (``resample_data_or_seg``, order 3). That is linear and acts on each axis alone, so
it is one matrix per axis. The matrices come from nnU-Net's function. They are multiplied here, in float64 as there,
with the few planes that a block of new voxels needs: voxels more than about 25 away have no influence on a spline. On a
whole scan, the function itself holds up to four copies in float64.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from nnunetv2.preprocessing.resampling.default_resampling import (
    compute_new_shape,
    determine_do_sep_z_and_axis,
    resample_data_or_seg,
)

from nnunetv2_pgl.errors import size_text
from pretraining.data.scan import BadScan

Index = tuple[slice, slice, slice]

_BAND = 32  # new voxels computed together
_PLANES = 4  # planes resampled together
_NEGLIGIBLE = 1e-14  # weight; with some thousand HU it changes less than the eleventh digit


@dataclass(frozen=True)
class _Band:
    """Some new voxels of an axis: ``weights @ old[first:last]``."""

    new: slice
    first: int
    last: int
    weights: np.ndarray


def resampled_shape(
    shape: tuple[int, ...], spacing: tuple[float, ...], target: tuple[float, ...]
) -> tuple[int, int, int]:
    """Shape after resampling from one spacing to another, all (z, y, x).

    Raises:
        BadScan: If less than two voxels are left along an axis.
    """
    z, y, x = (int(size) for size in compute_new_shape(shape, spacing, target))
    if min(z, y, x) < 2:
        raise BadScan(f"only {z} x {y} x {x} voxels are left at a spacing of {size_text(target)} mm")
    return z, y, x


def resampled(
    scan: np.ndarray,
    spacing: tuple[float, ...],
    target: tuple[float, ...],
    limits: tuple[float, float] = (-np.inf, np.inf),
) -> Iterator[tuple[Index, np.ndarray]]:
    """Resample a scan with the settings of nnU-Net's default plans (order 3, order 0 across thick slices).

    Args:
        scan: float32 (z, y, x).
        spacing: (z, y, x) in mm.
        target: The same, to resample to.
        limits: Range that the scan is clipped to before.

    Yields:
        Where a block lies in the new scan, and its values, float32. Together they fill ``resampled_shape``.
    """
    shape = resampled_shape(scan.shape, spacing, target)
    separate, axis = determine_do_sep_z_and_axis(None, spacing, target)
    if shape == scan.shape:
        for start in range(0, len(scan), _PLANES):
            yield np.s_[start : start + _PLANES, :, :], np.clip(scan[start : start + _PLANES], *limits)
        return
    resample_along = _slice_by_slice
    if not separate or axis is None:
        resample_along, axis = _with_neighbours, int(np.argmax(scan.shape))  # the longest: the planes held are smallest
    height, width = (size for other, size in enumerate(shape) if other != axis)
    for new, block in resample_along(np.moveaxis(scan, axis, 0), (shape[axis], height, width), limits):
        where = [slice(None)] * 3
        where[axis] = new
        yield (where[0], where[1], where[2]), np.moveaxis(block.astype(np.float32), 0, axis)


def _slice_by_slice(
    planes: np.ndarray, shape: tuple[int, int, int], limits: tuple[float, float]
) -> Iterator[tuple[slice, np.ndarray]]:
    """Resample in plane, and repeat or drop slices across; like nnU-Net, clip to the range of each slice."""
    # Which slice nnU-Net takes for each new one (order_z 0): it resamples a column of slice numbers.
    numbers = np.arange(len(planes), dtype=np.float64).reshape(1, -1, 1, 1)
    picked = resample_data_or_seg(numbers, (shape[0], 1, 1), axis=0, order=0, do_separate_z=True, order_z=0).ravel()
    for source in np.unique(picked).astype(np.intp):
        plane = np.clip(planes[source : source + 1].astype(np.float64, order="C"), *limits)
        low, high = plane.min(), plane.max()
        plane = np.clip(_in_plane(plane, shape[1], shape[2]), low, high)
        for index in np.flatnonzero(picked == source):
            yield slice(index, index + 1), plane


def _with_neighbours(
    planes: np.ndarray, shape: tuple[int, int, int], limits: tuple[float, float]
) -> Iterator[tuple[slice, np.ndarray]]:
    """Resample along all axes: first the planes that a band needs in plane, then across them."""
    low, high = np.clip((planes.min(), planes.max()), *limits)
    bands = _bands(len(planes), shape[0])
    held = np.empty((max(band.last - band.first for band in bands), *shape[1:]))
    first = last = 0  # range of the planes that are held
    for band in bands:
        kept = max(0, last - band.first)
        held[:kept] = held[last - first - kept : last - first]
        first = band.first
        for start in range(first + kept, band.last, _PLANES):
            stop = min(start + _PLANES, band.last)
            loaded = np.clip(planes[start:stop].astype(np.float64, order="C"), *limits)
            held[start - first : stop - first] = _in_plane(loaded, shape[1], shape[2])
        last = band.last
        block = band.weights @ held[: last - first].reshape(last - first, -1)
        yield band.new, np.clip(block, low, high, out=block).reshape(-1, *shape[1:])


def _in_plane(planes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resample planes, float64 (planes, y, x)."""
    count, old_height, old_width = planes.shape
    wide = np.empty((count, old_height, width))
    for band in _bands(old_width, width):
        wide[:, :, band.new] = planes[:, :, band.first : band.last] @ band.weights.T
    out = np.empty((count, height, width))
    for band in _bands(old_height, height):
        out[:, band.new] = band.weights @ wide[:, band.first : band.last]
    return out


@lru_cache(maxsize=16)
def _bands(count: int, new_count: int) -> tuple[_Band, ...]:
    """The weights of an axis of ``count`` voxels resampled to ``new_count``."""
    weights = _weights(count, new_count)
    bands = []
    for start in range(0, new_count, _BAND):
        rows = weights[start : start + _BAND]
        used = np.flatnonzero((np.abs(rows) > _NEGLIGIBLE).any(axis=0))
        first, last = int(used[0]), int(used[-1]) + 1
        bands.append(_Band(slice(start, start + len(rows)), first, last, np.ascontiguousarray(rows[:, first:last])))
    return tuple(bands)


def _weights(count: int, new_count: int) -> np.ndarray:
    """How much each of ``count`` voxels contributes to each new one, (new_count, count).

    Each column is what nnU-Net's function makes of a line with a single 1. It clips to the range of its input, which
    two more lines widen, so that the splines' negative weights stay.
    """
    if new_count == count:
        return np.eye(count)
    lines = np.concatenate([np.eye(count), np.full((count, 1), 2.0), np.full((count, 1), -2.0)], axis=1)
    shape = (new_count, count + 2, 1)
    return resample_data_or_seg(lines[None, :, :, None], shape, axis=2, order=3, do_separate_z=True)[0, :, :count, 0]
