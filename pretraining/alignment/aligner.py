"""The prior-guided aligner: FlipAlign and CSAlign in one sampling step per axis (section 3.3, eq. 4 to 7)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from nnunetv2_pgl.networks import FeatureGrid
from pretraining.views.geometry import ViewGeometry
from pretraining.views.rendering import GeometryBatch
from pretraining.views.sampling import apply_per_axis, bin_centres, linear_sampling_matrix


def align(
    features: Tensor,
    geometries: Sequence[ViewGeometry] | GeometryBatch,
    partners: Sequence[ViewGeometry] | GeometryBatch,
    grid: FeatureGrid,
    output_size: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Samples feature maps on the part of the scan that each view shares with its partner, flips undone.

    The overlap of the two boxes (eq. 5) is divided into ``output_size`` equal bins. Each bin's centre is carried from
    the scan into the view (crop, scale and flip) and from the view into the cells of the feature map, whose places
    ``grid`` knows (eq. 6); there the map is interpolated linearly (3D RoIAlign with one sample per bin and half-pixel
    centres). So ``align(f1, g1, g2, grid)`` and ``align(f2, g2, g1, grid)`` are the same places in the same order.
    Undoing the flip of the map (eq. 4) and resizing the aligned map to ``output_size`` (eq. 7) are part of the same
    sampling.

    Args:
        features: (B, C, d, h, w), maps of views with ``geometries``.
        geometries: Geometry of each view.
        partners: Geometry of the other view of each pair; its flip does not matter.
        grid: Where the cells of ``features`` lie in a view.
        output_size: Bins per axis; by default the size of the feature maps.

    Returns:
        The aligned maps, (B, C, *output_size), and (B, *output_size) bool: whether the point lies between cell centres,
        so that its value is interpolated. Elsewhere the outermost cell's value is taken.

    Raises:
        ValueError: If a view and its partner do not overlap, or the numbers of maps and geometries differ.
    """
    views = _as_batch(geometries, features.device)
    others = _as_batch(partners, features.device)
    if not len(features) == len(views.starts) == len(others.starts):
        raise ValueError(
            f"{len(features)} feature maps, {len(views.starts)} geometries and {len(others.starts)} partners: "
            "one of each is needed per view"
        )
    start = torch.maximum(views.starts, others.starts)
    size = torch.minimum(views.starts + views.sizes, others.starts + others.sizes) - start
    # Elsewhere the check would wait for the device, and fake tensors, which count memory, have no values.
    if features.device.type == "cpu" and not isinstance(features, FakeTensor) and bool((size <= 0).any()):
        raise ValueError("a view and its partner do not overlap: there is nothing to align")

    matrices, inside = [], []
    for axis, cells in enumerate(features.shape[2:]):
        bins = cells if output_size is None else output_size[axis]
        in_scan = bin_centres(start[:, axis], size[:, axis], bins)
        in_cells = _cells_from_scan(in_scan, views, grid, axis)
        matrices.append(linear_sampling_matrix(in_cells, cells))
        inside.append((in_cells >= 0) & (in_cells <= cells - 1))
    aligned = apply_per_axis(features, (matrices[0], matrices[1], matrices[2]))
    in_z, in_y, in_x = inside
    return aligned, in_z[:, :, None, None] & in_y[:, None, :, None] & in_x[:, None, None, :]


def sampled_places(
    geometries: GeometryBatch, partners: GeometryBatch, grid: FeatureGrid, cells: Sequence[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """Where the values that `align` gives come from: its points, those beyond the outermost centres moved onto them.

    Args:
        geometries: Of B views.
        partners: Of the other view of each pair.
        grid: Where the cells of the maps lie in a view.
        cells: Size of the maps, and of the aligned maps.

    Returns:
        For each axis (z, y, x) the places of its n points in the view, in cells of the map, and in the scan, in source
        voxels, (B, n) each.
    """
    start = torch.maximum(geometries.starts, partners.starts)
    size = torch.minimum(geometries.starts + geometries.sizes, partners.starts + partners.sizes) - start
    in_view, in_scan = [], []
    for axis, count in enumerate(cells):
        points = bin_centres(start[:, axis], size[:, axis], count)
        in_view.append(_cells_from_scan(points, geometries, grid, axis).clamp(0, count - 1))
        in_scan.append(_scan_from_cells(in_view[-1], geometries, grid, axis))
    return in_view, in_scan


def _scan_from_cells(cells: Tensor, views: GeometryBatch, grid: FeatureGrid, axis: int) -> Tensor:
    """The inverse of `_cells_from_scan`."""
    length = grid.view_size[axis]
    in_view = cells * grid.stride[axis] + grid.offset[axis]
    in_view = torch.where(views.flips[:, axis : axis + 1], length - in_view, in_view)
    return in_view / length * views.sizes[:, axis : axis + 1] + views.starts[:, axis : axis + 1]


def _cells_from_scan(points: Tensor, views: GeometryBatch, grid: FeatureGrid, axis: int) -> Tensor:
    """Carries points (B, n) on one axis of the scan into cell indices of each view's feature map."""
    length = grid.view_size[axis]
    in_view = (points - views.starts[:, axis : axis + 1]) / views.sizes[:, axis : axis + 1] * length
    in_view = torch.where(views.flips[:, axis : axis + 1], length - in_view, in_view)
    return (in_view - grid.offset[axis]) / grid.stride[axis]


def _as_batch(geometries: Sequence[ViewGeometry] | GeometryBatch, device: torch.device) -> GeometryBatch:
    if isinstance(geometries, GeometryBatch):
        return geometries
    return GeometryBatch.from_geometries(geometries, device)
