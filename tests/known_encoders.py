"""Scans whose voxels tell where they are, and encoders that know one thing only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor, nn

from nnunetv2_pgl.networks import FeatureGrid

FAR = 500.0  # a constant channel this large, of either sign, makes the nearest by the cosine the nearest place


@dataclass(frozen=True)
class CoordinateScan:
    """Channels: z, y and x of the voxel's centre, seen from the middle of the scan, and a constant of either sign."""

    size: tuple[int, int, int]
    sign: int = 1
    lateral_axis: int | None = None
    channels: int = 4

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (self.channels, *self.size)

    @property
    def mean(self) -> tuple[float, ...]:
        return (0.0,) * self.channels

    @property
    def std(self) -> tuple[float, ...]:
        return (1.0,) * self.channels

    def read(self, channel: int, start: Sequence[int], stop: Sequence[int]) -> NDArray[Any]:
        shape = [high - low for low, high in zip(start, stop, strict=True)]
        if channel == 3:
            return np.full(shape, self.sign * FAR, np.float32)
        line = np.arange(start[channel], stop[channel], dtype=np.float32) + 0.5 - self.size[channel] / 2
        along = [1, 1, 1]
        along[channel] = -1
        return np.broadcast_to(line.reshape(along), shape).copy()


class KnownEncoder(nn.Module):
    """A stand-in for an encoder with centred cells; ``stride`` divides the views."""

    memory_format = torch.contiguous_format

    def __init__(self, stride: tuple[int, int, int]):
        super().__init__()
        self.stride = stride

    def feature_grid(self, view_size: Sequence[int], stage: int = -1) -> FeatureGrid:
        z, y, x = view_size
        a, b, c = self.stride
        return FeatureGrid((z, y, x), (float(a), float(b), float(c)), (a / 2, b / 2, c / 2))

    def cells(self, views: Tensor) -> list[int]:
        return [n // s for n, s in zip(views.shape[2:], self.stride, strict=True)]

    def forward(self, views: Tensor, stage: int = -1) -> list[Tensor]:
        raise NotImplementedError


class PlaceInScan(KnownEncoder):
    """The perfect code: what the voxels of a `CoordinateScan` tell, averaged over the cell."""

    def forward(self, views: Tensor, stage: int = -1) -> list[Tensor]:
        return [F.avg_pool3d(views, self.stride, self.stride)]


class MirroredPlaceInScan(PlaceInScan):
    """As far as features that are flipped with the scan can tell: how far the cell lies from the middle."""

    def forward(self, views: Tensor, stage: int = -1) -> list[Tensor]:
        (code,) = super().forward(views)
        return [torch.cat((code[:, :3].abs(), code[:, 3:]), dim=1)]


class PlaceInView(KnownEncoder):
    """Never looks: index of the cell along each axis; views take turns with the sign of the large constant."""

    def forward(self, views: Tensor, stage: int = -1) -> list[Tensor]:
        lines = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in self.cells(views)]
        code = torch.stack((*torch.meshgrid(*lines, indexing="ij"), torch.full(self.cells(views), FAR)))
        signs = torch.ones(len(views)).view(2, -1) if len(views) % 2 == 0 else torch.ones(len(views))
        signs[..., 1::2] = -1
        return [code * signs.reshape(-1, 1, 1, 1, 1)]


class Constant(KnownEncoder):
    def forward(self, views: Tensor, stage: int = -1) -> list[Tensor]:
        return [torch.full((len(views), 5, *self.cells(views)), 3.7)]


class RandomFeatures(KnownEncoder):
    def __init__(self, stride: tuple[int, int, int]):
        super().__init__(stride)
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, views: Tensor, stage: int = -1) -> list[Tensor]:
        return [torch.randn(len(views), 16, *self.cells(views), generator=self.generator)]
