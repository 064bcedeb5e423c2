"""The label-free validation: do features of the same place find each other in the other view?

A code of the place *in the view*, which says nothing of what is there, passes for knowledge wherever two views are
flipped alike and show much the same part of a scan. So pairs with a relative flip are counted apart, and what such a
code and a perfect one would reach in these very pairs is told beside what was measured (docs/method.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from nnunetv2_pgl.networks import Encoder
from pretraining.alignment import FeatureGrid, align, sampled_places
from pretraining.views import GeometryBatch, ViewPairBatch, ViewPairDataset, ViewSettings
from pretraining.views.pairs import StoredScan

# Below this overlap the aligned cells lie closer together than the cells of the feature maps can tell apart.
_MIN_OVERLAP = 0.3
_FIRST_DRAW = 1 << 40  # far from every training draw
_TRIES = 64
_SAME = 1e-6  # cells; closer places are one


@dataclass(frozen=True)
class AxisShares:
    """What becomes of one axis in the pairs that are flipped against each other along it, as shares of their cells.

    Attributes:
        right: The found cell is right along this axis.
        mirrored: It lies where the same place of the view does. Cells for which both are the same are left out.
    """

    right: float
    mirrored: float


@dataclass(frozen=True)
class Correspondence:
    """How well places are recognised; shares of aligned cells, None where there are no such pairs.

    A cell's match is its nearest neighbour among the other view's aligned cells, by the cosine of the features less
    their mean over all cells looked at.

    Attributes:
        flipped_right: In pairs with a relative flip: the match is the right place.
        unflipped_right: The same in pairs without one.
        decoy: In pairs with a relative flip: the match is not right, but at the same place of the view.
        position_code: ``flipped_right`` of a code of the place in the view, by geometry.
        unflipped_position_code: Its ``unflipped_right``.
        ceiling: ``flipped_right`` of a perfect code of the place in the scan, by geometry: below 1, because points
            beyond the outermost cell centres get the outermost cell's features.
        unflipped_ceiling: Its ``unflipped_right``.
        axes: For z, y and x.
        miss_distance: Mean distance in source voxels between match and right place where they differ.
        cells: Number of cells that were looked up.
    """

    flipped_right: float | None
    unflipped_right: float | None
    decoy: float | None
    position_code: float | None
    unflipped_position_code: float | None
    ceiling: float | None
    unflipped_ceiling: float | None
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


def correspondence_lines(record: dict[str, float]) -> list[str]:
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
    """A fixed set of pairs from held-out scans, drawn as in training but overlapping by at least 30 %.

    Every other pair has a relative flip, as far as the settings have flips; the others have none.
    """
    settings = replace(views, min_overlap=max(views.min_overlap, _MIN_OVERLAP))
    dataset = ViewPairDataset(scans, settings, seed)
    samples = []
    for number in range(pairs):
        index = number // 2 % len(scans)
        for attempt in range(_TRIES):
            sample = dataset[_FIRST_DRAW + number + pairs * attempt, index]
            if number % 2 == 0:
                sample["flips"][1] = sample["flips"][0]
            if number % 2 == 0 or (sample["flips"][0] != sample["flips"][1]).any():
                break
        samples.append(sample)
    return [ViewPairBatch.collate(samples[i : i + batch_size]) for i in range(0, pairs, batch_size)]


@torch.no_grad()
def measure_correspondence(
    encoder: Encoder,
    batches: Sequence[ViewPairBatch],
    view_size: Sequence[int],
    device: torch.device,
    precision: torch.dtype | None = None,
    level: int = -1,
) -> Correspondence:
    """Looks up every aligned cell of the first views among those of the second, with the encoder in eval mode.

    The cells are those of one of the encoder's maps, by default the deepest.
    """
    was_training = encoder.training
    encoder.eval()
    generator = torch.Generator(device).manual_seed(0)
    maps = []
    for batch in batches:
        batch = batch.to(device)
        views = batch.render(view_size, generator).contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast(device.type, dtype=precision, enabled=precision is not None):
            features = encoder(views, level)[-1]
        maps.append((features.float(), batch.geometries))
    encoder.train(was_training)
    return compare_maps(maps, encoder.feature_grid(view_size, level))


def compare_maps(maps: Sequence[tuple[Tensor, GeometryBatch]], grid: FeatureGrid) -> Correspondence:
    """The correspondence of feature maps, by batch (2 B, C, d, h, w), first views first, and their geometries."""
    pairs = [_aligned_pair(features, geometries, grid) for features, geometries in maps]
    first, second = (torch.cat(parts).cpu() for parts in zip(*(pair[:2] for pair in pairs), strict=True))
    # Features after a ReLU share a large common part, which would make every cosine close to one.
    mean = torch.cat((first, second)).mean(dim=(0, 2, 3, 4), keepdim=True)
    counts = _Counts()
    at = 0
    for one, two in ((pair[2], pair[3]) for pair in pairs):
        places = _Places.of(one, two, grid, first.shape[2:])
        size = len(one.starts)
        found = nearest(first[at : at + size] - mean, second[at : at + size] - mean)
        counts.add(found, places)
        at += size
    return counts.result()


def _aligned_pair(
    features: Tensor, geometries: GeometryBatch, grid: FeatureGrid
) -> tuple[Tensor, Tensor, GeometryBatch, GeometryBatch]:
    """Aligned maps of first and second views, (B, C, ...) each, and the geometries of both."""
    one, two = (
        GeometryBatch(*(t.chunk(2)[half] for t in (geometries.starts, geometries.sizes, geometries.flips)))
        for half in (0, 1)
    )
    first, _ = align(features.chunk(2)[0], one, two, grid)
    second, _ = align(features.chunk(2)[1], two, one, grid)
    return first, second, one, two


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


@dataclass(frozen=True)
class _Places:
    """Which aligned cells of the second views lie nearest to each of the first, per axis, by geometry.

    Attributes:
        size: Of the aligned maps.
        near_in_view, near_in_scan: For each axis (B, n, n) bool: for the first view's points i the second's points j
            that are nearest, in the view and in the scan. There may be several.
        flips: Whether the views are flipped against each other, (B, 3).
        steps: Source voxels between aligned cells, (B, 3).
    """

    size: torch.Size
    near_in_view: list[Tensor]
    near_in_scan: list[Tensor]
    flips: Tensor
    steps: Tensor

    @classmethod
    def of(cls, one: GeometryBatch, two: GeometryBatch, grid: FeatureGrid, size: torch.Size) -> _Places:
        """Of pairs of views."""
        firsts, seconds = sampled_places(one, two, grid, size), sampled_places(two, one, grid, size)
        view, scan = (
            [_nearest_places(a.cpu(), b.cpu()) for a, b in zip(of_one, of_two, strict=True)]
            for of_one, of_two in zip(firsts, seconds, strict=True)
        )
        overlap = torch.minimum(one.starts + one.sizes, two.starts + two.sizes) - torch.maximum(one.starts, two.starts)
        return cls(size, view, scan, (one.flips != two.flips).cpu(), (overlap / overlap.new_tensor(size)).cpu())

    def right(self) -> Tensor:
        """Indices of the right cells, (d * h * w, 3)."""
        d, h, w = self.size
        return torch.stack(torch.unravel_index(torch.arange(d * h * w), (d, h, w)), dim=-1)

    @staticmethod
    def share(near: Sequence[Tensor]) -> Tensor:
        """Share of the cells that nearness gets right, (B,): an axis at a time, several nearest points share."""
        per_axis = [n.diagonal(dim1=1, dim2=2) / n.sum(dim=2) for n in near]
        return torch.stack([share.double().mean(dim=1) for share in per_axis]).prod(dim=0)


def _nearest_places(first: Tensor, second: Tensor) -> Tensor:
    """(B, n), (B, n) -> (B, n, n) bool: the second's points at the smallest distance from each of the first's."""
    apart = (first.unsqueeze(2) - second.unsqueeze(1)).abs()
    return apart <= apart.amin(dim=2, keepdim=True) + _SAME


class _Counts:
    """Adds up what became of the cells of all pairs."""

    def __init__(self) -> None:
        self.hits: list[tuple[bool, float]] = []  # of each pair: whether it has a relative flip, share that is right
        self.decoys: list[Tensor] = []
        self.of_axes: tuple[list[tuple[Tensor, Tensor]], ...] = ([], [], [])
        self.by_place: list[tuple[bool, float, float]] = []
        self.misses: list[Tensor] = []
        self.cells = 0

    def add(self, found: Tensor, places: _Places) -> None:
        """``found`` are the matches of a batch, (B, cells, 3)."""
        right = places.right()
        by_view, by_scan = places.share(places.near_in_view), places.share(places.near_in_scan)
        for pair, (matches, flips) in enumerate(zip(found, places.flips.tolist(), strict=True)):
            same = matches == right  # (cells, 3)
            hit = same.all(dim=1)
            flipped = any(flips)
            self.cells += len(hit)
            self.hits.append((flipped, float(hit.double().mean())))
            self.by_place.append((flipped, float(by_view[pair]), float(by_scan[pair])))
            self.misses.append((((matches - right) * places.steps[pair]).norm(dim=1))[~hit])
            near = [n[pair] for n in places.near_in_view]
            at_match = torch.stack([n[right[:, a], matches[:, a]] for a, n in enumerate(near)], dim=1)
            at_right = torch.stack([n[right[:, a], right[:, a]] for a, n in enumerate(near)], dim=1)
            if flipped:
                self.decoys.append((at_match.all(dim=1) & ~hit)[~at_right.all(dim=1)])
            for axis in (a for a in range(3) if flips[a]):
                apart = ~at_right[:, axis]
                self.of_axes[axis].append((same[apart, axis], at_match[apart, axis]))

    def result(self) -> Correspondence:
        """All pairs together."""
        misses = torch.cat(self.misses)
        axes = tuple(
            AxisShares(_mean([right for right, _ in axis]), _mean([mirrored for _, mirrored in axis])) if axis else None
            for axis in self.of_axes
        )
        return Correspondence(
            flipped_right=_average(share for flipped, share in self.hits if flipped),
            unflipped_right=_average(share for flipped, share in self.hits if not flipped),
            decoy=_mean(self.decoys) if self.decoys else None,
            position_code=_average(view for flipped, view, _ in self.by_place if flipped),
            unflipped_position_code=_average(view for flipped, view, _ in self.by_place if not flipped),
            ceiling=_average(scan for flipped, _, scan in self.by_place if flipped),
            unflipped_ceiling=_average(scan for flipped, _, scan in self.by_place if not flipped),
            axes=(axes[0], axes[1], axes[2]),
            miss_distance=float(misses.mean()) if len(misses) else 0.0,
            cells=self.cells,
        )


def _average(shares: Iterator[float]) -> float | None:
    values = list(shares)
    return sum(values) / len(values) if values else None


def _mean(parts: Sequence[Tensor]) -> float:
    """Share of True; 0 if there is nothing."""
    joined = torch.cat(list(parts)).double()
    return float(joined.mean()) if len(joined) else 0.0
