"""Deformed views, which Models Genesis learns to restore: what is drawn of them, per view, in the loading processes.

`objectives.deformation_apply` applies it to a batch on its device.

Figures from Zhou et al., "Models Genesis", Medical Image Analysis 2021, and the authors' code for 3D
(github.com/MrGiovanni/ModelsGenesis, pytorch/config.py and pytorch/utils.py), whose cubes have 64 x 64 x 32 voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class DeformationSettings:
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


def draw_deformation(
    view_size: Sequence[int], settings: DeformationSettings, rng: np.random.Generator
) -> ViewDeformation:
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


def as_arrays(
    draw: ViewDeformation, view_size: Sequence[int], settings: DeformationSettings, rng: np.random.Generator
) -> dict[str, NDArray[Any]]:
    """What was drawn, with the shuffles, as arrays whose shapes and types do not depend on chance.

    Args:
        draw: For a view of ``view_size`` voxels, with these settings.
        view_size: (z, y, x).
        settings: Bounds of what may be drawn.
        rng: Source of the shuffles.

    Returns:
        For one view, the arrays that `deformation_apply.DeformationBatch` holds for a batch, under the same names.
    """
    windows = np.zeros((settings.max_windows, 2, 3), dtype=np.int64)
    for boxes in (draw.inside, draw.outside):
        if boxes is not None:
            windows[: len(boxes.starts)] = np.stack((boxes.starts, boxes.starts + boxes.sizes), axis=1)
    farthest = np.ravel_multi_index([edge - 1 for edge in _longest_edges(view_size, settings)], tuple(view_size))
    offsets = np.zeros(tuple(view_size), dtype=np.min_scalar_type(-1 - farthest))  # to move little to the device
    if draw.blocks is not None:
        offsets[:] = draw_shuffles(draw.blocks, view_size, rng)
    return {
        "offsets": offsets,
        "curves": np.zeros((4, 2), np.float32) if draw.curve is None else draw.curve.astype(np.float32),
        "windows": windows,
        "outside": np.array(draw.outside is not None),
    }


def draw_shuffles(blocks: Boxes, view_size: Sequence[int], rng: np.random.Generator) -> NDArray[np.int64]:
    """Shuffles the voxels of each block, all orders being equally likely.

    Blocks of one size are worked through together, whatever their place in the order: a voxel goes by the largest
    number of a block, and what it gets there is in the lower bits of that number.

    Returns:
        For every voxel, how many voxels further on in the flattened view its value is taken from, (D, H, W).
    """
    voxels = np.arange(math.prod(view_size), dtype=np.int64)
    places = voxels.reshape(tuple(view_size))
    taken = voxels.copy()
    corners, ends = places[tuple(blocks.starts.T)], places[tuple(blocks.sizes.T - 1)]
    by_size = np.argsort(ends, kind="stable")
    for alike in np.split(by_size, np.flatnonzero(np.diff(ends[by_size])) + 1):
        depth, height, width = blocks.sizes[alike[0]]
        inside = corners[alike, None] + places[:depth, :height, :width].ravel()
        moved = rng.permuted(inside, axis=1) | ((alike[:, None] + 1) << 32)
        np.maximum.at(taken, inside.ravel(), moved.ravel())
    return ((taken & 0xFFFFFFFF) - voxels).reshape(places.shape)


def _draw_curve(settings: DeformationSettings, rng: np.random.Generator) -> NDArray[np.float64]:
    """A cubic curve whose two inner control points are uniform in the unit square.

    Both coordinates then rise all along the curve, or one falls, so that it is a monotonic map of [0, 1] onto itself.
    """
    points = np.concatenate((np.zeros((1, 2)), rng.random((2, 2)), np.ones((1, 2))))
    if rng.random() < settings.decreasing_probability:
        points[:, 1] = points[::-1, 1].copy()
    return points


def _draw_blocks(view_size: Sequence[int], settings: DeformationSettings, rng: np.random.Generator) -> Boxes:
    largest = _longest_edges(view_size, settings)
    mean_volume = math.prod((1 + edge) / 2 for edge in largest)
    count = round(settings.shuffle_coverage * math.prod(view_size) / mean_volume)
    return _draw_boxes(count, view_size, (1, 1, 1), largest, 0, rng)


def _longest_edges(view_size: Sequence[int], settings: DeformationSettings) -> list[int]:
    """Longest edge per axis of the blocks to shuffle, in voxels."""
    return [min(n, max(2, math.floor(n * settings.block_size))) for n in view_size]


def _draw_painted(view_size: Sequence[int], settings: DeformationSettings, rng: np.random.Generator) -> Boxes:
    smallest, largest = ([max(1, math.floor(n * share)) for n in view_size] for share in settings.inpaint_size)
    count = _draw_count(settings.max_windows, settings.window_probability, rng)
    return _draw_boxes(count, view_size, smallest, largest, settings.margin, rng)


def _draw_kept(view_size: Sequence[int], settings: DeformationSettings, rng: np.random.Generator) -> Boxes:
    smallest, largest = ([math.ceil(n * share) for n in view_size] for share in settings.outpaint_size)
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
