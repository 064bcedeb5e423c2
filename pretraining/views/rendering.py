"""Rendering of views: crop, resize and flip as three small matrix products, exact and on any device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pretraining.views.geometry import ViewGeometry
from pretraining.views.sampling import apply_per_axis, bin_centres, linear_sampling_matrix


@dataclass(frozen=True)
class GeometryBatch:
    """`ViewGeometry` of a batch of views as tensors: starts, sizes (B, 3) in source voxels, and flips (B, 3) bool."""

    starts: Tensor
    sizes: Tensor
    flips: Tensor

    @classmethod
    def from_geometries(cls, geometries: Sequence[ViewGeometry], device: torch.device | str = "cpu") -> GeometryBatch:
        """Stacks geometries, in double precision where the device has it."""
        dtype = torch.float32 if torch.device(device).type == "mps" else torch.float64
        starts = torch.tensor([g.start for g in geometries], dtype=dtype, device=device).reshape(-1, 3)
        sizes = torch.tensor([g.size for g in geometries], dtype=dtype, device=device).reshape(-1, 3)
        flips = torch.tensor([g.flip for g in geometries], dtype=torch.bool, device=device).reshape(-1, 3)
        return cls(starts, sizes, flips)


def source_box(
    geometry: ViewGeometry, volume_shape: Sequence[int]
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Start and stop, in whole voxels, of the part of a scan that rendering a view reads.

    It covers the geometry's box and one voxel around it, as far as the scan has them.
    """
    z, y, x = (max(int(np.floor(s)) - 1, 0) for s in geometry.start)
    z1, y1, x1 = (min(int(np.ceil(e)) + 1, n) for e, n in zip(geometry.end, volume_shape, strict=True))
    return (z, y, x), (z1, y1, x1)


def largest_source_box(view_size: Sequence[int], scale: tuple[float, float]) -> tuple[int, int, int]:
    """Size in voxels that `source_box` never exceeds, for boxes of at most ``scale[1]`` times the view."""
    z, y, x = (int(np.ceil(n * scale[1])) + 3 for n in view_size)
    return (z, y, x)


def render_crops(
    crops: Tensor, origins: Tensor, extents: Tensor, geometries: GeometryBatch, view_size: Sequence[int]
) -> Tensor:
    """Renders one view from each crop of a batch, with linear interpolation between voxel centres.

    Args:
        crops: Parts of scans, padded at their ends to a common size, (B, C, D, H, W), floating point.
        origins: First voxel of each crop in its scan, (B, 3).
        extents: Voxels of each crop that are not padding, (B, 3).
        geometries: One per crop, in voxels of its scan.
        view_size: Size of the views (z, y, x).

    Returns:
        (B, C, *view_size). Beyond the centres of a crop's outermost voxels the nearest value goes on.
    """
    starts = geometries.starts - origins
    matrices = []
    for axis, (cells, bins) in enumerate(zip(crops.shape[2:], view_size, strict=True)):
        positions = bin_centres(starts[:, axis], geometries.sizes[:, axis], bins) - 0.5
        positions = torch.minimum(positions.clamp(min=0), extents[:, axis : axis + 1] - 1)
        positions = torch.where(geometries.flips[:, axis : axis + 1], positions.flip(-1), positions)
        matrices.append(linear_sampling_matrix(positions, cells))
    return apply_per_axis(crops, (matrices[0], matrices[1], matrices[2]))


def render_views(volume: Tensor, geometries: Sequence[ViewGeometry], view_size: Sequence[int]) -> Tensor:
    """Views of one scan.

    Args:
        volume: (C, D, H, W), floating point.
        geometries: One per view; boxes must lie inside the volume.
        view_size: Size of the views (z, y, x).

    Returns:
        (len(geometries), C, *view_size).

    Raises:
        ValueError: If a box leaves the volume, or the volume is not floating point.
    """
    if not volume.is_floating_point():
        raise ValueError(f"render_views needs a floating point volume, got {volume.dtype}")
    shape = tuple(volume.shape[1:])
    for geometry in geometries:
        if min(geometry.start) < -1e-6 or any(e > n + 1e-6 for e, n in zip(geometry.end, shape, strict=True)):
            raise ValueError(f"the box [{geometry.start}, {geometry.end}) leaves the volume of {shape} voxels")
    views = []
    for geometry in geometries:
        start, stop = source_box(geometry, shape)
        crop = volume[:, start[0] : stop[0], start[1] : stop[1], start[2] : stop[2]].unsqueeze(0)
        batch = GeometryBatch.from_geometries([geometry], volume.device)
        origin = batch.starts.new_tensor([start])
        extent = batch.starts.new_tensor([crop.shape[2:]])
        views.append(render_crops(crop, origin, extent, batch, view_size))
    if not views:
        return volume.new_zeros((0, volume.shape[0], *view_size))
    return torch.cat(views)
