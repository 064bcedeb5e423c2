"""The label-free validation: do features of the same place find each other in the other view?

A code of the place *in the view*, which says nothing of what is there, passes for knowledge wherever two views are
flipped alike and show much the same part of a scan. So pairs with a relative flip are counted apart, and what such a
code and a perfect one would reach in these very pairs is told beside what was measured (docs/method.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from nnunetv2_pgl.networks import Encoder
from nnunetv2_pgl.networks.hardware import lay_out
from pretraining.alignment import FeatureGrid, align
from pretraining.training.places import ByGeometry, Places, halves, mean_of
from pretraining.views import GeometryBatch, ViewPairBatch, ViewPairDataset, ViewSettings
from pretraining.views.pairs import StoredScan

# Below this overlap the aligned cells lie closer together than the cells of the feature maps can tell apart.
_MIN_OVERLAP = 0.3
_FIRST_DRAW = 1 << 40  # far from every training draw
_FLIPS_DRAWN = 1000


@dataclass(frozen=True)
class AxisShares:
    """What becomes of one axis in the pairs that are flipped against each other along it, as shares of their cells.

    Cells whose right place is also the same place of the view are left out.

    Attributes:
        right: The found cell is right along this axis.
        mirrored: It lies where the same place of the view does.
    """

    right: float
    mirrored: float


@dataclass(frozen=True)
class Correspondence(ByGeometry):
    """How well places are recognised; shares of aligned cells, None where there are no such pairs.

    A cell's match is its nearest neighbour among the other view's aligned cells, by the cosine of the features less
    their mean over all cells looked at.

    Attributes:
        flipped_right: In pairs with a relative flip: the match is the right place.
        unflipped_right: The same in pairs without one.
        decoy: In pairs with a relative flip: the match is at the same place of the view. Cells for which that is the
            right place are left out; 0 if these are all.
        axes: For z, y and x; None where no cell of a flipped pair tells.
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
        """What an epoch's record keeps: the numbers that there are."""
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


def correspondence_lines(record: Mapping[str, float]) -> list[str]:
    """A record's correspondence in words; nothing of records of earlier versions."""
    lines = []
    if "flipped_right" in record:
        lines.append(
            f"flipped pairs: {record['flipped_right']:.1%} of the cells find their place (code of the place in the "
            f"view {record['position_code']:.1%}, at most {record['ceiling']:.1%}), {record['decoy']:.1%} the same "
            "place of the view"
        )
    if "unflipped_right" in record:
        lines.append(
            f"pairs without a flip: {record['unflipped_right']:.1%} (code of the place in the view "
            f"{record['unflipped_position_code']:.1%}, at most {record['unflipped_ceiling']:.1%})"
        )
    return lines


def validation_batches(
    scans: Sequence[StoredScan], views: ViewSettings, seed: int, pairs: int = 64, batch_size: int = 8
) -> list[ViewPairBatch]:
    """A fixed set of pairs from held-out scans, see `validation_samples`."""
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


def measure_correspondence(
    encoder: Encoder,
    batches: Sequence[ViewPairBatch],
    view_size: Sequence[int],
    device: torch.device,
    precision: torch.dtype | None = None,
    level: int = -1,
    views_at_once: int | None = None,
) -> Correspondence:
    """Looks up every aligned cell of the first views among those of the second, with the encoder in eval mode.

    Args:
        encoder: Any encoder.
        batches: See `validation_batches`.
        view_size: Size of the views (z, y, x).
        device: Of the encoder.
        precision: Autocast type, None for float32.
        level: Which of the encoder's maps the cells are of, by default the deepest.
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
                features = [encoder(part, level)[-1] for part in views.split(views_at_once or len(views))]
            maps.append((torch.cat(features).float(), batch.geometries))
    encoder.train(was_training)
    return compare_maps(maps, encoder.feature_grid(view_size, level))


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
    return counts.result(ByGeometry.of(places))


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
    """Adds up what became of the cells of all pairs."""

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

    def result(self, by_geometry: ByGeometry) -> Correspondence:
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
    """Of the cells of all pairs that are flipped along an axis, (right, mirrored) each."""
    right, mirrored = (mean_of(torch.cat([pair[i] for pair in axis])) if axis else None for i in (0, 1))
    return None if right is None or mirrored is None else AxisShares(right, mirrored)
