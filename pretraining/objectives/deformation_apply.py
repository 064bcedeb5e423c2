"""Deforms a batch of views on their device, for Models Genesis, as was drawn in the loading processes.

The number of operations does not depend on the number of views, and nothing that was drawn decides on a shape: a GPU is
never waited for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_CURVE_POINTS = 2**12
_TABLE_SIZE = 2**14


@dataclass(frozen=True)
class DeformationBatch:
    """What happens to each of B views, in this order; see `deformation_draw.as_arrays`.

    Attributes:
        offsets: How many voxels further on in the flattened view a voxel's value is taken from, (B, D, H, W), signed
            integers; 0: it stays.
        curves: Control points of a cubic Bezier curve, (B, 4, 2): intensities before and after, in [0, 1]. All of them
            0: none.
        windows: First voxel of each window and the one after its last, (B, n, 2, 3); may be empty.
        outside: Whether all but the windows is painted, instead of the windows, (B,) bool.
    """

    offsets: Tensor
    curves: Tensor
    windows: Tensor
    outside: Tensor


def deform(views: Tensor, deformations: DeformationBatch, generator: torch.Generator | None = None) -> Tensor:
    """Shuffles, maps and paints.

    The curve and the noise are published for images in [0, 1]. Views are z-scored: the range of the view, per channel,
    stands for [0, 1], and is kept.

    Args:
        views: (B, C, D, H, W), floating point. All channels of a view are shuffled, mapped and painted alike.
        deformations: What to do, on the device of ``views``.
        generator: Source of the noise, on the device of ``views``.

    Returns:
        (B, C, D, H, W), a new tensor; views for which nothing was drawn are unchanged to the bit.
    """
    low, high = views.amin(dim=(2, 3, 4), keepdim=True), views.amax(dim=(2, 3, 4), keepdim=True)
    shuffled = _shuffle(views, deformations.offsets)
    curved = deformations.curves.flatten(1).any(dim=1).view(-1, 1, 1, 1, 1)
    deformed = torch.where(curved, _map_along(shuffled, deformations.curves, low, high), shuffled)
    noise = torch.rand(views.shape, generator=generator, dtype=views.dtype, device=views.device)
    painted = _covered(deformations.windows, views) != deformations.outside.view(-1, 1, 1, 1, 1)
    return torch.where(painted, noise.mul_(high - low).add_(low), deformed)


def _shuffle(views: Tensor, offsets: Tensor) -> Tensor:
    voxels = torch.arange(views[0, 0].numel(), device=views.device)
    sources = (offsets.flatten(1) + voxels).unsqueeze(1).expand(-1, views.shape[1], -1)
    return views.flatten(2).gather(2, sources).view(views.shape)


def _map_along(x: Tensor, points: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Maps [low, high] onto itself along each view's curve, by linear interpolation in a table."""
    table = _curve_tables(points.to(x.dtype))
    span = high - low
    place = (x - low).div_(span.clamp(min=torch.finfo(x.dtype).tiny)).clamp_(0, 1).mul_(_TABLE_SIZE - 1).flatten(1)
    index = place.long().clamp_(max=_TABLE_SIZE - 2)
    weight = place.sub_(index)
    mapped = torch.lerp(table.gather(1, index), table.gather(1, index.add_(1)), weight).view(x.shape)
    return torch.minimum(mapped.mul_(span).add_(low), high)


def _curve_tables(points: Tensor) -> Tensor:
    """Intensities after each curve for equidistant intensities before it, from 0 to 1: (B, 4, 2) -> (B, n)."""
    t = torch.linspace(0, 1, _CURVE_POINTS, dtype=points.dtype, device=points.device)
    bernstein = torch.stack([math.comb(3, i) * t**i * (1 - t) ** (3 - i) for i in range(4)])
    before, after = (points.transpose(1, 2) @ bernstein).unbind(dim=1)
    wanted = torch.linspace(0, 1, _TABLE_SIZE, dtype=points.dtype, device=points.device).expand(len(points), -1)
    right = torch.searchsorted(before.contiguous(), wanted.contiguous()).clamp_(1, _CURVE_POINTS - 1)
    left = right - 1
    start, end = before.gather(1, left), before.gather(1, right)
    share = ((wanted - start) / (end - start).clamp_(min=torch.finfo(points.dtype).tiny)).clamp_(0, 1)
    return torch.lerp(after.gather(1, left), after.gather(1, right), share)


def _covered(windows: Tensor, views: Tensor) -> Tensor:
    """Voxels inside any window, (B, 1, D, H, W) bool."""
    starts, stops = windows.unsqueeze(-1).unbind(dim=2)  # (B, n, 3, 1)
    in_z, in_y, in_x = (
        ((voxels >= starts[:, :, axis]) & (voxels < stops[:, :, axis])).to(views.dtype)
        for axis, voxels in enumerate(torch.arange(n, device=views.device) for n in views.shape[2:])
    )
    in_rows = (in_z.unsqueeze(3) * in_y.unsqueeze(2)).flatten(2)
    return (in_rows.transpose(1, 2) @ in_x > 0).view(len(views), 1, *views.shape[2:])
