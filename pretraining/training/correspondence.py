"""The label-free validation: do features of the same place find each other in the other view?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from nnunetv2_pgl.networks import Encoder
from pretraining.alignment import FeatureGrid, align
from pretraining.views import GeometryBatch, ViewPairBatch, ViewPairDataset, ViewSettings
from pretraining.views.pairs import StoredScan

# Below this overlap the aligned cells lie closer together than the cells of the feature maps can tell apart.
_MIN_OVERLAP = 0.3
_FIRST_DRAW = 1 << 40  # far from every training draw


@dataclass(frozen=True)
class Correspondence:
    """How well places are recognised.

    Attributes:
        share: Share of aligned cells whose nearest neighbour among the other view's is the right place, by the cosine
            of the features less their mean over all cells looked at.
        distance: Mean distance in source voxels between found and right place where they differ.
        chance: The share that guessing would reach.
        cells: Number of cells that were looked up.
    """

    share: float
    distance: float
    chance: float
    cells: int

    def __str__(self) -> str:
        return (
            f"{self.share:.1%} of {self.cells} cells find their place (chance {self.chance:.1%}); the others miss it "
            f"by {self.distance:.1f} voxels"
        )


def validation_batches(
    scans: Sequence[StoredScan], views: ViewSettings, seed: int, pairs: int = 64, batch_size: int = 8
) -> list[ViewPairBatch]:
    """A fixed set of pairs from held-out scans, drawn as in training but overlapping by at least 30 %."""
    settings = replace(views, min_overlap=max(views.min_overlap, _MIN_OVERLAP))
    dataset = ViewPairDataset(scans, settings, seed)
    samples = [dataset[_FIRST_DRAW + i, i % len(scans)] for i in range(pairs)]
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
    pairs = []
    for batch in batches:
        batch = batch.to(device)
        views = batch.render(view_size, generator).contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast(device.type, dtype=precision, enabled=precision is not None):
            features = encoder(views, level)[-1]
        pairs.append(_aligned_pair(features.float(), batch.geometries, encoder.feature_grid(view_size, level)))
    encoder.train(was_training)
    first, second, steps = (torch.cat(parts).cpu() for parts in zip(*pairs, strict=True))
    # Features after a ReLU share a large common part, which would make every cosine close to one.
    mean = torch.cat((first, second)).mean(dim=(0, 2, 3, 4), keepdim=True)
    hit, miss = look_up(first - mean, second - mean, steps)
    distance = float(miss[~hit].mean()) if bool((~hit).any()) else 0.0
    return Correspondence(float(hit.float().mean()), distance, 1.0 / first[0, 0].numel(), len(hit))


def _aligned_pair(features: Tensor, geometries: GeometryBatch, grid: FeatureGrid) -> tuple[Tensor, Tensor, Tensor]:
    """Aligned maps of first and second views, (B, C, ...) each, and source voxels between aligned cells, (B, 3)."""
    one, two = (
        GeometryBatch(*(t.chunk(2)[half] for t in (geometries.starts, geometries.sizes, geometries.flips)))
        for half in (0, 1)
    )
    first, _ = align(features.chunk(2)[0], one, two, grid)
    second, _ = align(features.chunk(2)[1], two, one, grid)
    overlap = torch.minimum(one.starts + one.sizes, two.starts + two.sizes) - torch.maximum(one.starts, two.starts)
    return first, second, overlap / overlap.new_tensor(first.shape[2:])


def look_up(first: Tensor, second: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest neighbours of one map's cells among another's that holds the same places in the same order.

    Args:
        first: (B, C, d, h, w).
        second: (B, C, d, h, w).
        steps: Source voxels between neighbouring cells, (B, 3).

    Returns:
        For all cells, (B * d * h * w,): whether the right place was found, and the distance to it in source voxels.
    """
    b, _, d, h, w = first.shape
    a = F.normalize(first.flatten(2), dim=1)
    c = F.normalize(second.flatten(2), dim=1)
    found = (a.transpose(1, 2) @ c).argmax(dim=2)
    right = torch.arange(d * h * w, device=first.device).expand(b, -1)
    places = torch.stack(torch.unravel_index(torch.arange(d * h * w, device=first.device), (d, h, w)), dim=1)
    apart = (places[found] - places[right]) * steps.to(first.dtype).unsqueeze(1)
    return (found == right).flatten(), apart.norm(dim=2).flatten()
