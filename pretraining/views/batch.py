"""The batch of pairs of views that the device renders."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from pretraining.views.intensity import apply_intensity_
from pretraining.views.rendering import GeometryBatch, render_crops


@dataclass(frozen=True)
class ViewPairBatch:
    """A batch of pairs as tensors; views 0 .. B - 1 are the first of each pair, B .. 2 B - 1 the second.

    Attributes:
        crops: (2 B, C, D, H, W) in the stored dtype, padded at the end to a common size.
        origins: First voxel of each crop in its scan, (2 B, 3).
        extents: Size of each crop without the padding, (2 B, 3).
        starts, sizes, flips: See `GeometryBatch`, (2 B, 3).
        mean, std: Of the scan's channels as stored, (2 B, C).
        intensity: See `draw_intensity`, (2 B, C, 4); always on the host, where it decides what is computed.
        drawn: What else was drawn for the views, by name, (2 B, ...) each; see `ViewPairDataset`.
    """

    crops: Tensor
    origins: Tensor
    extents: Tensor
    starts: Tensor
    sizes: Tensor
    flips: Tensor
    mean: Tensor
    std: Tensor
    intensity: Tensor
    drawn: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def collate(cls, samples: Sequence[dict[str, Any]]) -> ViewPairBatch:
        """Stacks the samples of `ViewPairDataset`; scans stored in different types are joined as float32.

        All must have the same number of channels.
        """
        names = [f.name for f in fields(cls) if f.name not in ("crops", "drawn")]
        tensors = {name: _stacked([sample[name] for sample in samples]) for name in names}
        drawn = {name: _stacked([sample["drawn"][name] for sample in samples]) for name in samples[0]["drawn"]}
        crops = [sample["crops"][view] for view in (0, 1) for sample in samples]
        return cls(crops=_padded(crops, samples[0]["padded_size"]), **tensors, drawn=drawn)

    @classmethod
    def joined(cls, batches: Sequence[ViewPairBatch]) -> ViewPairBatch:
        """One batch of all pairs, in their order."""
        return batches[0] if len(batches) == 1 else cls._of(batches, _joined)

    def to(self, device: torch.device) -> ViewPairBatch:
        """The same batch on another device."""

        def move(tensor: Tensor) -> Tensor:
            if tensor is self.intensity:
                return tensor
            if device.type == "mps" and tensor.dtype == torch.float64:
                tensor = tensor.float()
            return tensor.to(device, non_blocking=True)

        return self._of([self], lambda own: move(own[0]))

    def pin_memory(self) -> ViewPairBatch:
        """The same batch in pinned memory, from which a GPU copies while it computes."""
        return self._of([self], lambda own: own[0].pin_memory())

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keeps the memory of a batch that was copied on one CUDA stream until another has used it."""
        for tensor in (*(getattr(self, f.name) for f in fields(self) if f.name != "drawn"), *self.drawn.values()):
            if tensor.is_cuda:
                tensor.record_stream(stream)

    @classmethod
    def _of(cls, batches: Sequence[ViewPairBatch], make: Callable[[list[Tensor]], Tensor]) -> ViewPairBatch:
        """A batch of which each tensor is made of those of the same name."""
        names = [f.name for f in fields(cls) if f.name != "drawn"]
        own = {name: make([getattr(batch, name) for batch in batches]) for name in names}
        return cls(**own, drawn={name: make([batch.drawn[name] for batch in batches]) for name in batches[0].drawn})

    @property
    def geometries(self) -> GeometryBatch:
        """Geometry of all 2 B views."""
        return GeometryBatch(self.starts, self.sizes, self.flips)

    def render(
        self, view_size: Sequence[int], generator: torch.Generator | None = None, changes_intensity: bool = True
    ) -> Tensor:
        """All 2 B views, z-scored, with or without their intensity changes, (2 B, C, *view_size), float32.

        Each channel is changed like a separate view, by its own draws and within its own range: channels have
        no common scale, and nnU-Net's augmentation treats them alike.
        """
        mean, std = (values[:, :, None, None, None] for values in (self.mean, self.std))
        with torch.autocast(self.crops.device.type, enabled=False):
            views = render_crops(self.crops, self.origins, self.extents, self.geometries, view_size)
            views.sub_(mean).div_(std)  # after rendering, which is linear, there are fewer voxels
            if changes_intensity:
                alone = views.view(-1, 1, *views.shape[2:])  # channels as views, in the same memory
                apply_intensity_(alone, self.intensity.view(len(alone), -1), generator)
            return views


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """(2 B, ...) tensors, of first views, then of second ones, to one whose first half are all first views."""
    return torch.cat([part.unflatten(0, (2, -1)) for part in parts], dim=1).flatten(0, 1)


def _stacked(pairs: Sequence[NDArray[Any]]) -> Tensor:
    """What samples hold of their two views, in the order of the batch: (2, ...) each -> (2 B, ...)."""
    stacked = np.stack(pairs, axis=1)
    return torch.from_numpy(stacked.reshape(-1, *stacked.shape[2:]))


def _padded(crops: Sequence[Sequence[NDArray[Any]]], size: tuple[int, int, int]) -> Tensor:
    """Stacks crops padded with zeros at their ends, (len(crops), C, *size).

    In a loading process they are written to shared memory right away (as torch's own collate function does), so that
    the training process gets them without another copy.
    """
    dtypes = {channel.dtype for crop in crops for channel in crop}
    dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)
    shape = (len(crops), len(crops[0]), *size)
    if get_worker_info() is None:
        batch = torch.from_numpy(np.zeros(shape, dtype=dtype))
    else:
        shared = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)
        batch = torch.from_numpy(np.empty(0, dtype=dtype)).set_(shared).view(shape)
    for crop, places in zip(crops, batch.numpy(), strict=True):
        for channel, place in zip(crop, places, strict=True):
            d, h, w = channel.shape
            place[:d, :h, :w] = channel
    return batch
