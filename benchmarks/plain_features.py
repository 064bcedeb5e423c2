"""Features that need no network: the voxels of a cell, and its place in the view."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nnunetv2_pgl.networks import FeatureGrid

Features = Callable[[Tensor], Tensor]  # views (B, C, D, H, W) -> maps (B, C', d, h, w)


def cells_of(grid: FeatureGrid) -> tuple[int, int, int]:
    """Size of an encoder's map: cells that are cut off by the end of the view count."""
    d, h, w = (-(-size // round(stride)) for size, stride in zip(grid.view_size, grid.stride, strict=True))
    return d, h, w


def cell_voxels(grid: FeatureGrid) -> list[Tensor]:
    """Which voxels of a view each cell stands for: as many as its stride, around its place.

    Returns:
        For each axis (cells, stride), int64, to at most half a voxel. Beyond a view's ends its last voxel is repeated.
    """
    found = []
    for size, stride, offset, cells in zip(grid.view_size, grid.stride, grid.offset, cells_of(grid), strict=True):
        edge = round(stride)
        first = round(offset - edge / 2)
        found.append((torch.arange(cells * edge) + first).clamp(0, size - 1).view(cells, edge))
    return found


def patches(grid: FeatureGrid) -> Features:
    """The voxels that a cell stands for, as channels."""
    in_z, in_y, in_x = cell_voxels(grid)

    def features(views: Tensor) -> Tensor:
        cells = views[:, :, in_z][:, :, :, :, in_y][:, :, :, :, :, :, in_x]  # (B, C, d, edge, h, edge, w, edge)
        patches = cells.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)
        return patches - patches.mean(dim=1, keepdim=True)

    return features


def position_code(grid: FeatureGrid) -> Features:
    """A code of the cell's place in the view alone: for each axis a bump at its index."""
    sizes = cells_of(grid)

    def features(views: Tensor) -> Tensor:
        bumps = []
        for axis, cells in enumerate(sizes):
            index = torch.arange(cells, dtype=torch.float32)
            code = torch.exp(-0.5 * ((index[:, None] - index[None]) / 0.75) ** 2)  # (channels, cells)
            shape = [cells, 1, 1, 1]
            shape[1 + axis] = cells
            bumps.append(code.view(shape).expand(cells, *sizes))
        return torch.cat(bumps).expand(len(views), -1, -1, -1, -1)

    return features
