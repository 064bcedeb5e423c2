"""Rendering of views: crop, resize and flip as linear interpolation along each axis, exact and on any device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pretraining.views.geometry import ViewGeometry
from pretraining.views.sampling import (
    apply_per_axis,
    bin_centres,
    linear_neighbours,
    linear_sampling_matrix,
    row_neighbours,
)


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
    z, y, x = (max(math.floor(s) - 1, 0) for s in geometry.start)
    z1, y1, x1 = (min(math.ceil(e) + 1, n) for e, n in zip(geometry.end, volume_shape, strict=True))
    return (z, y, x), (z1, y1, x1)


def largest_source_box(view_size: Sequence[int], scale: tuple[float, float]) -> tuple[int, int, int]:
    """Size in voxels that `source_box` never exceeds, for boxes of at most ``scale[1]`` times the view."""
    z, y, x = (math.ceil(n * scale[1]) + 3 for n in view_size)
    return (z, y, x)


def render_crops(
    crops: Tensor, origins: Tensor, extents: Tensor, geometries: GeometryBatch, view_size: Sequence[int]
) -> Tensor:
    """Renders one view from each crop of a batch, with linear interpolation between voxel centres.

    Args:
        crops: Parts of scans, padded at their ends to a common size, (B, C, D, H, W), of any type.
        origins: First voxel of each crop in its scan, (B, 3).
        extents: Voxels of each crop that are not padding, (B, 3).
        geometries: One per crop, in voxels of its scan.
        view_size: Size of the views (z, y, x).

    Returns:
        (B, C, *view_size), float64 if the crops are, otherwise float32. Beyond the centres of a crop's outermost voxels
        the nearest value continues.
    """
    starts = geometries.starts - origins
    positions = []
    for axis, bins in enumerate(view_size):
        centres = bin_centres(starts[:, axis], geometries.sizes[:, axis], bins) - 0.5
        centres = torch.minimum(centres.clamp(min=0), extents[:, axis : axis + 1] - 1)
        positions.append(torch.where(geometries.flips[:, axis : axis + 1], centres.flip(-1), centres))
    render = render_by_rows if crops.device.type == "cpu" else render_by_matrices
    dtype = torch.float64 if crops.dtype == torch.float64 else torch.float32
    return render(crops, (positions[0], positions[1], positions[2]), extents, dtype)


def render_by_matrices(
    crops: Tensor, positions: tuple[Tensor, Tensor, Tensor], extents: Tensor, dtype: torch.dtype
) -> Tensor:
    """All views at once by three batched matrix products: few kernels, which is fastest on a GPU.

    Args:
        crops: See `render_crops`.
        positions: Where to sample each crop along z, y and x, in its voxels, 0 being the centre of the first: (B, n),
            (B, m) and (B, k), within 0 .. ``extents`` - 1.
        extents: See `render_crops`.
        dtype: Of the views.

    Returns:
        (B, C, n, m, k).
    """
    in_z, in_y, in_x = (
        linear_sampling_matrix(points, cells) for points, cells in zip(positions, crops.shape[2:], strict=True)
    )
    return apply_per_axis(crops.to(dtype), (in_z, in_y, in_x)).contiguous()


def render_by_rows(
    crops: Tensor, positions: tuple[Tensor, Tensor, Tensor], extents: Tensor, dtype: torch.dtype
) -> Tensor:
    """The same, view by view and without touching the padding, so that what is in work stays in a CPU's cache.

    Along z and y only the four rows with a weight are added up (a sixth of the time of two matrix products); x, along
    which they lie in memory, is a matrix product.
    """
    in_z, in_y, in_x = positions
    rows, weights = row_neighbours(in_z, in_y, extents[:, 1], dtype)
    cells, weights_x = linear_neighbours(in_x, dtype)
    matrices = torch.zeros((len(crops), crops.shape[4], in_x.shape[1]), dtype=dtype)
    for side in (0, 1):
        matrices.scatter_add_(1, cells[:, None, :, side], weights_x[:, None, :, side])
    size = (in_z.shape[1], in_y.shape[1], in_x.shape[1])
    views = torch.empty((*crops.shape[:2], *size), dtype=dtype)
    for number, (d, h, w) in enumerate(extents.to(torch.int64).tolist()):
        for channel in range(crops.shape[1]):
            table = crops[number, channel, :d, :h, :w].to(dtype).reshape(d * h, w)
            sums = F.embedding_bag(rows[number], table, per_sample_weights=weights[number], mode="sum")
            views[number, channel] = (sums @ matrices[number, :w]).view(size)
    return views


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
