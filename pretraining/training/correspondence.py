"""The label-free validation: do features of the same place find each other in the other view?

A code of the place *in the view*, which says nothing of what is there, passes for knowledge wherever two views are
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
from pretraining.training.geometry_baselines import GeometryBaselines, Places, halves, mean_of
from pretraining.views import GeometryBatch, ViewPairBatch

_CALIBRATION_BATCHES = 4


@dataclass(frozen=True)
class AxisShares:
    """What happens along one axis in the pairs that are flipped against each other along it, as shares of their cells.

    Cells whose right place is also the same place of the view are left out.

    Attributes:
        right: The found cell is right along this axis.
        mirrored: It lies where the same place of the view does.
    """

    right: float
    mirrored: float


@dataclass(frozen=True)
class Correspondence(GeometryBaselines):
    """How well places are recognised; shares of aligned cells, None where there are no such pairs.

    A cell's match is its nearest neighbour among the other view's aligned cells, by the cosine of the features less
    their mean over all cells looked at.

    Attributes:
        flipped_right: In pairs with a relative flip: the match is the right place.
        unflipped_right: The same in pairs without one.
        decoy: In pairs with a relative flip: the match is at the same place of the view. Cells for which that is the
            right place are left out; 0 if these are all.
        axes: For z, y and x; None where no cell of a flipped pair counts.
        miss_distance: Mean distance in source voxels between match and right place where they differ.
        cells: Number of cells that were looked up.
    """

    flipped_right: float | None
    unflipped_right: float | None
    decoy: float | None
    axes: tuple[AxisShares | None, AxisShares | None, AxisShares | None]
    miss_distance: float
    cells: int

    def to_record(self) -> dict[str, float]:
        """What an epoch's record keeps: the values that are not None."""
        names = (
            "flipped_right",
            "unflipped_right",
            "decoy",
            "position_code",
            "unflipped_position_code",
            "ceiling",
            "unflipped_ceiling",
            "miss_distance",
        )
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}


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
        device: Of the encoder.
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
    pairs = [_aligned_pair(features, *halves(geometries), grid) for features, geometries in maps]
    first, second = (torch.cat(parts).cpu() for parts in zip(*pairs, strict=True))
    # Features after a ReLU share a large common part, which would make every cosine close to one.
    mean = torch.cat((first, second)).mean(dim=(0, 2, 3, 4), keepdim=True)
    places = [Places.of(*halves(geometries), grid, first.shape[2:]) for _, geometries in maps]
    counts = _Counts()
    at = 0
    for part in places:
        size = len(part.flips)
        counts.add(nearest(first[at : at + size] - mean, second[at : at + size] - mean), part)
        at += size
    return counts.result(GeometryBaselines.of(places))


def _aligned_pair(features: Tensor, one: GeometryBatch, two: GeometryBatch, grid: FeatureGrid) -> tuple[Tensor, Tensor]:
    """Aligned maps of first and second views, (B, C, ...) each."""
    first, _ = align(features.chunk(2)[0], one, two, grid)
    second, _ = align(features.chunk(2)[1], two, one, grid)
    return first, second


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


class _Counts:
    """Collects the matches of the cells of all pairs."""

    def __init__(self) -> None:
        self.hits: list[Tensor] = []  # of the pairs of a batch, the share of cells that is right
        self.flipped: list[Tensor] = []
        self.decoys: list[Tensor] = []
        self.of_axes: tuple[list[tuple[Tensor, Tensor]], ...] = ([], [], [])
        self.misses: list[Tensor] = []
        self.cells = 0

    def add(self, found: Tensor, places: Places) -> None:
        """``found`` are the matches of a batch, (B, cells, 3)."""
        right = places.right()
        hits = (found == right).all(dim=2)
        self.hits.append(hits.double().mean(dim=1))
        self.flipped.append(places.flips.any(dim=1))
        self.cells += hits.numel()
        for pair, (matches, flips) in enumerate(zip(found, places.flips.tolist(), strict=True)):
            self.misses.append(((matches - right) * places.steps[pair]).norm(dim=1)[~hits[pair]])
            near = [n[pair] for n in places.near_in_view]
            at_match = torch.stack([n[right[:, a], matches[:, a]] for a, n in enumerate(near)], dim=1)
            at_right = torch.stack([n[right[:, a], right[:, a]] for a, n in enumerate(near)], dim=1)
            if any(flips):
                self.decoys.append(at_match.all(dim=1)[~at_right.all(dim=1)])
            for axis in (a for a in range(3) if flips[a]):
                apart = ~at_right[:, axis]
                same = matches[:, axis] == right[:, axis]
                self.of_axes[axis].append((same[apart], at_match[apart, axis]))

    def result(self, by_geometry: GeometryBaselines) -> Correspondence:
        """All pairs together."""
        hits, flipped = torch.cat(self.hits), torch.cat(self.flipped)
        z, y, x = map(_shares, self.of_axes)
        return Correspondence(
            **vars(by_geometry),
            flipped_right=mean_of(hits[flipped]),
            unflipped_right=mean_of(hits[~flipped]),
            decoy=(mean_of(torch.cat(self.decoys)) or 0.0) if self.decoys else None,
            axes=(z, y, x),
            miss_distance=mean_of(torch.cat(self.misses)) or 0.0,
            cells=self.cells,
        )


def _shares(axis: Sequence[tuple[Tensor, Tensor]]) -> AxisShares | None:
    """Shares over all pairs that are flipped along an axis, from one (right, mirrored) per pair."""
    right, mirrored = (mean_of(torch.cat([pair[i] for pair in axis])) if axis else None for i in (0, 1))
    return None if right is None or mirrored is None else AxisShares(right, mirrored)
