"""Pairs of views to validate with, and what geometry alone says of them: which aligned cells lie at the same location.

A code of the position *in the view* says nothing of what is there, and a perfect code of the location *in the scan*
says all. How many cells are matched by either follows from the crops, the flips and the feature grid, without an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretraining.alignment import FeatureGrid, sampled_places
from pretraining.views import GeometryBatch, ViewPairBatch, ViewPairDataset, ViewSettings
from pretraining.views.pairs import StoredScan

_SAME = 1e-6  # of a cell in the view, of a voxel in the scan; what is nearer is at one location
_MAX_POSITION_ONLY_SHARE = 0.5  # of the cells, matched to the right location by their position in the view alone
# Below this overlap the aligned cells lie closer together than the cells of the feature maps can tell apart.
_MIN_OVERLAP = 0.3
_FIRST_DRAW = 1 << 40  # far from every training draw
_FLIPS_DRAWN = 1000


def validation_batches(
    scans: Sequence[StoredScan], views: ViewSettings, seed: int, pairs: int = 64, batch_size: int = 8
) -> list[ViewPairBatch]:
    """A fixed set of pairs, see `validation_samples`."""
    samples = validation_samples(scans, views, seed, pairs)
    return [ViewPairBatch.collate(samples[i : i + batch_size]) for i in range(0, pairs, batch_size)]


def validation_samples(
    scans: Sequence[StoredScan], views: ViewSettings, seed: int, pairs: int = 64
) -> list[dict[str, Any]]:
    """Samples of `ViewPairDataset`, drawn as in training but overlapping by at least 30 %.

    Every other pair has a relative flip, as far as the settings have flips; the others have none.
    """
    settings = replace(views, min_overlap=max(views.min_overlap, _MIN_OVERLAP))
    dataset = ViewPairDataset(scans, settings, seed)
    samples = []
    for number in range(pairs):
        sample = dataset[_FIRST_DRAW + number, number // 2 % len(scans)]
        flips = sample["flips"]
        if number % 2 == 0:
            flips[1] = flips[0]
        elif (flips[0] == flips[1]).all():
            rng = np.random.default_rng((seed, _FIRST_DRAW + number, 1))
            probability = settings.flip_probability_of(scans[sample["index"][0]])
            drawn = rng.random((_FLIPS_DRAWN, 2, 3)) < np.asarray(probability)
            relative = (drawn[:, 0] != drawn[:, 1]).any(axis=1)
            sample["flips"] = drawn[relative.argmax()] if relative.any() else flips
        samples.append(sample)
    return samples


@dataclass(frozen=True)
class GeometryBaselines:
    """Shares of aligned cells that a code of positions matches to the right location, None where there are no pairs.

    Attributes:
        position_code: In pairs with a relative flip, by a code of the position in the view.
        unflipped_position_code: The same in pairs without one.
        ceiling: In pairs with a relative flip, by a perfect code of the location in the scan: below 1, because points
            beyond the outermost cell centres get the outermost cell's features.
        unflipped_ceiling: The same in pairs without one.
    """

    position_code: float | None
    unflipped_position_code: float | None
    ceiling: float | None
    unflipped_ceiling: float | None

    @classmethod
    def from_cells(cls, batches: Sequence[AlignedCells]) -> GeometryBaselines:
        """Expected shares over the pairs of all batches."""
        flipped = torch.cat([cells.flips.any(dim=1) for cells in batches])
        in_view = torch.cat([expected_accuracy(cells.nearest_in_view) for cells in batches])
        in_scan = torch.cat([expected_accuracy(cells.nearest_in_scan) for cells in batches])
        return cls(*(mean_of(shares[pairs]) for shares in (in_view, in_scan) for pairs in (flipped, ~flipped)))

    def lines(self) -> list[str]:
        """Lines for the user, and a warning where the position in the view alone is right for many cells."""
        kinds = (
            ("with a relative flip", self.position_code, self.ceiling),
            ("without a relative flip", self.unflipped_position_code, self.unflipped_ceiling),
        )
        lines = [
            f"Pairs {kind}: of the cells, {in_view:.1%} can be matched to the right location by their position in the "
            f"view alone (position-only baseline), {in_scan:.1%} at most (upper bound)"
            for kind, in_view, in_scan in kinds
            if in_view is not None and in_scan is not None
        ]
        return lines + position_warnings(vars(self))


def position_warnings(record: Mapping[str, float | None]) -> list[str]:
    """A line where the views of a run or of a preview are so alike that the position in the view suffices."""
    position_only = record.get("unflipped_position_code") or 0.0
    if position_only <= _MAX_POSITION_ONLY_SHARE:
        return []
    return [
        f"WARNING: the scans are little larger than the views: in pairs without a relative flip, {position_only:.0%} "
        "of the cells can be matched to the right location by their position in the view alone, so such pairs teach "
        "little about anatomy. Use a smaller -patch or a finer -spacing, and keep flips and -padding replicate"
    ]


def geometry_of_pairs(
    geometries: Sequence[GeometryBatch], grid: FeatureGrid, cells: Sequence[int]
) -> GeometryBaselines:
    """What codes of positions reach in pairs of views.

    Args:
        geometries: Batches of views, the first of all pairs, then the second.
        grid: Where the cells of the maps lie in a view.
        cells: Size of the maps.
    """
    return GeometryBaselines.from_cells(
        [AlignedCells.from_geometries(*halves(batch), grid, cells) for batch in geometries]
    )


def halves(geometries: GeometryBatch) -> tuple[GeometryBatch, GeometryBatch]:
    """Geometries of the first and of the second views of the pairs of a batch."""
    parts = [t.chunk(2) for t in (geometries.starts, geometries.sizes, geometries.flips)]
    return GeometryBatch(*(part[0] for part in parts)), GeometryBatch(*(part[1] for part in parts))


@dataclass(frozen=True)
class AlignedCells:
    """Which aligned cells of the second views lie nearest to each of the first, per axis.

    Attributes:
        size: Of the aligned maps.
        nearest_in_view, nearest_in_scan: For each axis (B, n, n) bool: for the first view's points i the second's
            points j that are nearest, in the view and in the scan. There may be several.
        flips: Whether the views are flipped against each other, (B, 3).
        steps: Source voxels between aligned cells, (B, 3).
    """

    size: tuple[int, ...]
    nearest_in_view: list[Tensor]
    nearest_in_scan: list[Tensor]
    flips: Tensor
    steps: Tensor

    @classmethod
    def from_geometries(
        cls, one: GeometryBatch, two: GeometryBatch, grid: FeatureGrid, cells: Sequence[int]
    ) -> AlignedCells:
        """The cells of the first and second views of pairs."""
        size = tuple(cells)
        firsts, seconds = sampled_places(one, two, grid, size), sampled_places(two, one, grid, size)
        view, scan = (
            [_nearest(a.cpu(), b.cpu()) for a, b in zip(of_one, of_two, strict=True)]
            for of_one, of_two in zip(firsts, seconds, strict=True)
        )
        overlap = torch.minimum(one.starts + one.sizes, two.starts + two.sizes) - torch.maximum(one.starts, two.starts)
        return cls(size, view, scan, (one.flips != two.flips).cpu(), (overlap / overlap.new_tensor(size)).cpu())

    def indices(self) -> Tensor:
        """Indices of each cell, (d * h * w, 3); the right match has the same."""
        d, h, w = self.size
        return torch.stack(torch.unravel_index(torch.arange(d * h * w), (d, h, w)), dim=-1)


def expected_accuracy(nearest: Sequence[Tensor]) -> Tensor:
    """Share of the cells that nearness gets right, (B,): an axis at a time, several nearest points share."""
    per_axis = [n.diagonal(dim1=1, dim2=2) / n.sum(dim=2) for n in nearest]
    return torch.stack([share.double().mean(dim=1) for share in per_axis]).prod(dim=0)


def _nearest(first: Tensor, second: Tensor) -> Tensor:
    """(B, n), (B, n) -> (B, n, n) bool: the second's points at the smallest distance from each of the first's."""
    apart = (first.unsqueeze(2) - second.unsqueeze(1)).abs()
    return apart <= apart.amin(dim=2, keepdim=True) + _SAME


def mean_of(values: Tensor) -> float | None:
    """None if there are none."""
    return float(values.double().mean()) if len(values) else None
