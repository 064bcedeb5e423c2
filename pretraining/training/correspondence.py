"""The label-free validation: do features of the same location find each other in the other view?

A code of the position *in the view*, which says nothing of what is there, passes for knowledge wherever two views are
flipped alike and show much the same part of a scan. So pairs with a relative flip are counted separately, and what such
a code and a perfect one would reach in the same pairs is reported with what was measured (docs/method.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from nnunetv2_pgl.networks import Encoder
from nnunetv2_pgl.networks.hardware import lay_out
from pretraining.alignment import FeatureGrid, align
from pretraining.training.geometry_baselines import AlignedCells, GeometryBaselines, halves, mean_of
from pretraining.views import GeometryBatch, ViewPairBatch

_CALIBRATION_BATCHES = 4


@dataclass(frozen=True)
class AxisShares:
    """Matches along one axis, in pairs that are flipped against each other along it, as shares of their cells.

    Cells whose right location is also the same position of the view are left out.

    Attributes:
        right: The match is right along this axis.
        mirrored: It is at the same position of the view.
    """

    right: float
    mirrored: float


@dataclass(frozen=True)
class Correspondence(GeometryBaselines):
    """How well locations are recognised; shares of aligned cells, None where there are no such pairs.

    A cell's match is its nearest neighbour among the other view's aligned cells, by the cosine of the features less
    their mean over all cells.

    Attributes:
        flipped_right: In pairs with a relative flip: the match is at the right location.
        unflipped_right: The same in pairs without one.
        decoy: In pairs with a relative flip: the match is at the same position of the view. Cells for which that is the
            right location are left out; 0 if these are all.
        axes: For z, y and x; None where no cell of a flipped pair counts.
        miss_distance: Mean distance in source voxels between match and right location where they differ.
        cells: Number of cells that were looked up.
    """

    flipped_right: float | None
    unflipped_right: float | None
    decoy: float | None
    axes: tuple[AxisShares | None, AxisShares | None, AxisShares | None]
    miss_distance: float
    cells: int

    def to_record(self) -> dict[str, float]:
        """What an epoch's record keeps."""
        return {name: value for name, value in vars(self).items() if isinstance(value, float)}


def measure_correspondence(
    encoder: Encoder,
    batches: Sequence[ViewPairBatch],
    view_size: Sequence[int],
    device: torch.device,
    precision: torch.dtype | None = None,
    stage: int = -1,
    views_at_once: int | None = None,
) -> Correspondence:
    """Looks up every aligned cell of the first views among those of the second, with the encoder in eval mode.

    Args:
        encoder: Any encoder.
        batches: See `validation_batches`.
        view_size: Size of the views (z, y, x).
        device: Where the encoder is.
        precision: Autocast type, None for float32.
        stage: Which of the encoder's maps the cells are of, by default the deepest.
        views_at_once: How many views the encoder gets at a time, by default those of a batch.
    """
    was_training = encoder.training
    encoder.eval()
    generator = torch.Generator(device).manual_seed(0)
    maps = []
    with torch.no_grad():
        for batch in batches:
            batch = batch.to(device)
            views = lay_out(batch.render(view_size, generator), encoder.memory_format)
            with torch.autocast(device.type, dtype=precision, enabled=precision is not None):
                features = [encoder(part, stage)[-1] for part in views.split(views_at_once or len(views))]
            maps.append((torch.cat(features).float(), batch.geometries))
    encoder.train(was_training)
    return compare_maps(maps, encoder.feature_grid(view_size, stage))


def calibrate_norms(
    encoder: Encoder,
    batches: Sequence[ViewPairBatch],
    view_size: Sequence[int],
    device: torch.device,
    precision: torch.dtype | None,
) -> None:
    """Shows an untrained encoder a few batches, so that norms with running statistics have some."""
    if next(encoder.buffers(), None) is None:
        return
    with torch.no_grad(), torch.autocast(device.type, dtype=precision, enabled=precision is not None):
        for batch in batches[:_CALIBRATION_BATCHES]:
            for views in batch.to(device).render(view_size).split(2):  # whatever the settings
                encoder(views)


def compare_maps(maps: Sequence[tuple[Tensor, GeometryBatch]], grid: FeatureGrid) -> Correspondence:
    """The correspondence of feature maps, by batch (2 B, C, d, h, w), first views first, and their geometries."""
    aligned: list[tuple[Tensor, Tensor]] = []
    for features, geometries in maps:
        (one, two), (of_one, of_two) = halves(geometries), features.chunk(2)
        aligned.append((align(of_one, one, two, grid)[0], align(of_two, two, one, grid)[0]))
    first, second = (torch.cat(parts).cpu() for parts in zip(*aligned, strict=True))
    # Features after a ReLU share a large common part, which would make every cosine close to one.
    mean = torch.cat((first, second)).mean(dim=(0, 2, 3, 4), keepdim=True)
    batches = [AlignedCells.from_geometries(*halves(geometries), grid, first.shape[2:]) for _, geometries in maps]
    sizes = [len(batch.flips) for batch in batches]
    found = map(nearest, (first - mean).split(sizes), (second - mean).split(sizes))

    hits: list[Tensor] = []
    misses: list[Tensor] = []
    decoys: list[Tensor] = []
    of_axes: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for matches, cells in zip(found, batches, strict=True):
        right, flips = cells.indices(), cells.flips
        is_right = matches == right
        hits.append(is_right.all(dim=2))
        misses.append(((matches - right) * cells.steps.unsqueeze(1)).norm(dim=2)[~hits[-1]])
        # Per axis, whether the match, and whether the right cell, is at the same position of the view.
        pair = torch.arange(len(matches)).unsqueeze(1)
        near = list(zip(cells.nearest_in_view, right.unbind(dim=1), matches.unbind(dim=2), strict=True))
        of_match = torch.stack([n[pair, i, match] for n, i, match in near], dim=2)
        of_right = torch.stack([n[:, i, i] for n, i, _ in near], dim=2)
        decoys.append(of_match.all(dim=2)[~of_right.all(dim=2) & flips.any(dim=1, keepdim=True)])
        for axis, collected in enumerate(of_axes):
            counts = ~of_right[..., axis] & flips[:, axis, None]
            collected.append(torch.stack((is_right[..., axis][counts], of_match[..., axis][counts])))

    shares, flipped = torch.cat(hits).double().mean(dim=1), torch.cat([cells.flips.any(dim=1) for cells in batches])
    z, y, x = (
        AxisShares(*counted.double().mean(dim=1).tolist()) if counted.numel() else None
        for counted in (torch.cat(parts, dim=1) for parts in of_axes)
    )
    return Correspondence(
        **vars(GeometryBaselines.from_cells(batches)),
        flipped_right=mean_of(shares[flipped]),
        unflipped_right=mean_of(shares[~flipped]),
        decoy=(mean_of(torch.cat(decoys)) or 0.0) if flipped.any() else None,
        axes=(z, y, x),
        miss_distance=mean_of(torch.cat(misses)) or 0.0,
        cells=sum(part.numel() for part in hits),
    )


def nearest(first: Tensor, second: Tensor) -> Tensor:
    """For each cell of one map the cell of another whose features are nearest by the cosine, as indices per axis.

    Args:
        first: (B, C, d, h, w).
        second: The same size.

    Returns:
        (B, d * h * w, 3), int64.
    """
    a, b = (F.normalize(features.flatten(2), dim=1) for features in (first, second))
    found = (a.transpose(1, 2) @ b).argmax(dim=2)
    return torch.stack(torch.unravel_index(found, first.shape[2:]), dim=-1)
