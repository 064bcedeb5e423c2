"""Deformed views, which Models Genesis learns to restore: drawn per view, applied on its device.

Figures from Zhou et al., "Models Genesis", Medical Image Analysis 2021, and the authors' code for 3D
(github.com/MrGiovanni/ModelsGenesis, pytorch/config.py and pytorch/utils.py), whose cubes have 64 x 64 x 32 voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_CURVE_POINTS = 2**12
_TABLE_SIZE = 2**14


@dataclass(frozen=True)
class Deformation:
    """Probabilities and sizes; the defaults are the published ones unless stated. Sizes are shares of a view's axis.

    Attributes:
        curve_probability: Of mapping the intensities along a monotonic cubic Bezier curve.
        decreasing_probability: Of such a curve falling instead of rising.
        shuffle_probability: Of shuffling the voxels inside small blocks.
        block_size: Longest edge of a block; edges are uniform from one voxel on. At least two voxels are allowed for
            on every axis (our choice): the published share leaves one voxel of our 16 slices.
        shuffle_coverage: Number of blocks that hold a voxel, on average: as with the published 10,000 blocks, whose
            edges are up to 6, 6 and 3 voxels of 64, 64 and 32. The number of blocks follows from it.
        paint_probability: Of painting over voxels with noise.
        inpaint_probability: Of painting inside windows, if painted at all; otherwise all but the windows is painted.
        inpaint_size: Smallest and largest edge of a window that is painted.
        outpaint_size: Smallest and largest edge of a window that is kept.
        window_probability: Of another window after each (the first that is kept is certain).
        max_windows: Largest number of windows.
        margin: Smallest distance of a window from the view's faces, in voxels; less where there is no room for it.
    """

    curve_probability: float = 0.9
    decreasing_probability: float = 0.5
    shuffle_probability: float = 0.5
    block_size: float = 1 / 10
    shuffle_coverage: float = 10_000 * (3.5 * 3.5 * 2.0) / (64 * 64 * 32)
    paint_probability: float = 0.9
    inpaint_probability: float = 0.2
    inpaint_size: tuple[float, float] = (1 / 6, 1 / 3)
    outpaint_size: tuple[float, float] = (3 / 7, 4 / 7)
    window_probability: float = 0.95
    max_windows: int = 5
    margin: int = 3


@dataclass(frozen=True)
class Boxes:
    """Boxes of whole voxels in a view: starts and sizes, (n, 3) each."""

    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def covered(self, view_size: Sequence[int]) -> NDArray[np.bool_]:
        """The voxels inside any of the boxes, (D, H, W)."""
        covered = np.zeros(tuple(view_size), dtype=np.bool_)
        for (z, y, x), (depth, height, width) in zip(self.starts, self.sizes, strict=True):
            covered[z : z + depth, y : y + height, x : x + width] = True
        return covered


@dataclass(frozen=True)
class ViewDeformation:
    """What happens to one view, in this order; None: this does not.

    Attributes:
        blocks: To shuffle, each from the voxels as they were; where blocks overlap, the last one counts.
        curve: Control points of the Bezier curve, (4, 2): intensities before and after, both in [0, 1].
        inside: Windows to paint.
        outside: Windows to keep, all else is painted.
    """

    blocks: Boxes | None = None
    curve: NDArray[np.float64] | None = None
    inside: Boxes | None = None
    outside: Boxes | None = None


def draw_deformation(view_size: Sequence[int], settings: Deformation, rng: np.random.Generator) -> ViewDeformation:
    """Draws all that happens to one view of ``view_size`` voxels (z, y, x) but the values of noise and the shuffles."""
    shuffled = rng.random() < settings.shuffle_probability
    curved = rng.random() < settings.curve_probability
    painted = rng.random() < settings.paint_probability
    inside = painted and rng.random() < settings.inpaint_probability
    return ViewDeformation(
        blocks=_draw_blocks(view_size, settings, rng) if shuffled else None,
        curve=_draw_curve(settings, rng) if curved else None,
        inside=_draw_painted(view_size, settings, rng) if inside else None,
        outside=_draw_kept(view_size, settings, rng) if painted and not inside else None,
    )


def deform(view: Tensor, draw: ViewDeformation, generator: torch.Generator | None = None) -> Tensor:
    """Applies a deformation.

    The curve and the noise are published for images in [0, 1]. Views are z-scored: the range of the view, per channel,
    stands for [0, 1], and is kept.

    Args:
        view: (C, D, H, W), floating point. All channels are shuffled, mapped and painted alike.
        draw: What to do.
        generator: Source of the shuffles and of the noise, on the device of ``view``.

    Returns:
        (C, D, H, W), a new tensor; equal to the bit if nothing was drawn.
    """
    low, high = view.amin(dim=(1, 2, 3), keepdim=True), view.amax(dim=(1, 2, 3), keepdim=True)
    deformed = view.clone() if draw.blocks is None else _shuffle(view, draw.blocks, generator)
    if draw.curve is not None:
        deformed = _map_along(deformed, draw.curve, low, high)
    windows = draw.outside if draw.inside is None else draw.inside
    if windows is None:
        return deformed
    mask = torch.from_numpy(windows.covered(view.shape[1:])).to(view.device, non_blocking=True)
    noise = torch.rand(view.shape, generator=generator, dtype=view.dtype, device=view.device)
    noise = noise.mul_(high - low).add_(low)
    return torch.where(mask if draw.outside is None else ~mask, noise, deformed)


def _draw_curve(settings: Deformation, rng: np.random.Generator) -> NDArray[np.float64]:
    """A cubic curve whose two inner control points are uniform in the unit square.

    Both coordinates then rise all along the curve, or one falls, so that it is a monotonic map of [0, 1] onto itself.
    """
    points = np.concatenate((np.zeros((1, 2)), rng.random((2, 2)), np.ones((1, 2))))
    if rng.random() < settings.decreasing_probability:
        points[:, 1] = points[::-1, 1].copy()
    return points


def _draw_blocks(view_size: Sequence[int], settings: Deformation, rng: np.random.Generator) -> Boxes:
    largest = [min(n, max(2, _floor(n * settings.block_size))) for n in view_size]
    mean_volume = math.prod((1 + edge) / 2 for edge in largest)
    count = round(settings.shuffle_coverage * math.prod(view_size) / mean_volume)
    return _draw_boxes(count, view_size, (1, 1, 1), largest, 0, rng)


def _draw_painted(view_size: Sequence[int], settings: Deformation, rng: np.random.Generator) -> Boxes:
    smallest, largest = ([max(1, _floor(n * share)) for n in view_size] for share in settings.inpaint_size)
    count = _draw_count(settings.max_windows, settings.window_probability, rng)
    return _draw_boxes(count, view_size, smallest, largest, settings.margin, rng)


def _draw_kept(view_size: Sequence[int], settings: Deformation, rng: np.random.Generator) -> Boxes:
    smallest, largest = ([-_floor(-n * share) for n in view_size] for share in settings.outpaint_size)  # rounded up
    count = 1 + _draw_count(settings.max_windows - 1, settings.window_probability, rng)
    return _draw_boxes(count, view_size, smallest, largest, settings.margin, rng)


def _draw_count(most: int, probability: float, rng: np.random.Generator) -> int:
    """Number of successes before the first failure, at most ``most``."""
    return int(np.argmin(np.append(rng.random(most) < probability, False)))


def _draw_boxes(
    count: int,
    view_size: Sequence[int],
    smallest: Sequence[int],
    largest: Sequence[int],
    margin: int,
    rng: np.random.Generator,
) -> Boxes:
    """Boxes of uniform size, each uniform where it fits."""
    sizes = rng.integers(smallest, largest, size=(count, 3), endpoint=True)
    room = np.array(view_size) - sizes
    first = np.minimum(margin, room // 2)
    return Boxes(rng.integers(first, room - first, endpoint=True), sizes)


def _floor(x: float) -> int:
    """Rounded down; shares such as 3/7 of a multiple of 7 are taken for the whole numbers they stand for."""
    return math.floor(x + 1e-9)


def _map_along(x: Tensor, points: NDArray[np.float64], low: Tensor, high: Tensor) -> Tensor:
    """Maps [low, high] onto itself along the curve, by linear interpolation in a table."""
    table = torch.from_numpy(_curve_table(points)).to(x.device, x.dtype, non_blocking=True)
    span = high - low
    place = (x - low).div_(span.clamp(min=torch.finfo(x.dtype).tiny)).clamp_(0, 1).mul_(_TABLE_SIZE - 1)
    index = place.long().clamp_(max=_TABLE_SIZE - 2)
    mapped = torch.lerp(table[index], table[index + 1], place - index)
    return torch.minimum(mapped.mul_(span).add_(low), high)


def _curve_table(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intensities after the curve for equidistant intensities before it, from 0 to 1."""
    t = np.linspace(0, 1, _CURVE_POINTS)
    bernstein = np.stack([math.comb(3, i) * t**i * (1 - t) ** (3 - i) for i in range(4)])
    before, after = points.T @ bernstein
    table: NDArray[np.float64] = np.interp(np.linspace(0, 1, _TABLE_SIZE), before, after)
    return table


def _shuffle(view: Tensor, blocks: Boxes, generator: torch.Generator | None) -> Tensor:
    """Shuffles the voxels of each block; all blocks at once, as one list of the voxels they hold, block by block."""
    voxels, block = _list_voxels(blocks, view.shape[1:], view.device)
    bits = 31 - len(blocks.sizes).bit_length()  # the rest of an int32, whose sort takes half the time of an int64's
    keys = torch.randint(2**bits, voxels.shape, generator=generator, dtype=torch.int32, device=view.device)
    order = torch.argsort(keys.add_(block, alpha=2**bits))  # blocks stay in place, their voxels are shuffled
    before = view.flatten(1)
    # The last place of each voxel in the list: unlike an assignment with repeated indices, this is always the same.
    last = torch.full((before.shape[1],), -1, device=view.device)
    last.scatter_reduce_(0, voxels, torch.arange(len(voxels), device=view.device), "amax")
    source = voxels.index_select(0, order.index_select(0, last.clamp(min=0)))
    return torch.where(last >= 0, before.index_select(1, source), before).view_as(view)


def _list_voxels(blocks: Boxes, view_size: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Flat index of every voxel of every block (int64), and the number of its block (int32), block by block.

    Blocks are listed row by row on the host, rows voxel by voxel on the device.
    """
    strides = np.array((view_size[1] * view_size[2], view_size[2], 1))
    rows = blocks.sizes[:, 0] * blocks.sizes[:, 1]
    block = np.repeat(np.arange(len(rows), dtype=np.int32), rows)
    number = np.arange(len(block)) - np.repeat(np.cumsum(rows) - rows, rows)  # of each row in its block
    z, y = np.divmod(number, blocks.sizes[block, 1])
    lengths = blocks.sizes[block, 2]
    starts = (blocks.starts @ strides)[block] + z * strides[0] + y * strides[1]
    offsets = starts - (np.cumsum(lengths) - lengths)  # from the place in the list to the voxel
    total = int(lengths.sum())
    repeats = torch.from_numpy(lengths).to(device, non_blocking=True)

    def of_voxels(of_rows: NDArray[np.int64] | NDArray[np.int32]) -> Tensor:
        return torch.repeat_interleave(torch.from_numpy(of_rows).to(device), repeats, output_size=total)

    return of_voxels(offsets).add_(torch.arange(total, device=device)), of_voxels(block)
