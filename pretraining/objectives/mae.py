"""Masked autoencoding of convolutional networks as nnssl does it: reconstructing masked blocks (docs/method.md).

He et al. 2022; Wald et al., "Revisiting MAE pre-training for 3D medical image segmentation", 2025.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nnunetv2_pgl.networks import Segmenter
from pretraining.objectives.objective import Restoration
from pretraining.views import GeometryBatch
from pretraining.views.geometry import number_of_blocks


class MAEOutput(NamedTuple):
    """Loss of a batch and what to compare it with, both scalars.

    Attributes:
        loss: Mean squared error of the masked voxels, in units of the z-scored scans.
        mean_error: That of a network that knows only each view's mean over its masked voxels.
    """

    loss: Tensor
    mean_error: Tensor


class MAE(Restoration):
    """The segmenter reconstructs the masked blocks of views.

    The two views of a pair are just two samples. Masked voxels are set to 0, the mean of a z-scored scan; nothing
    else shows the network which they are, and visible voxels do not count in the loss.

    Args:
        segmenter: As many output as input channels. Its encoder is kept.
        block: Size of a block in voxels (z, y, x).
        mask_ratio: Share of masked blocks.
        precision: Autocast type of the network, None for float32. The loss is always float32.
    """

    output = MAEOutput

    def __init__(
        self, segmenter: Segmenter, block: Sequence[int], mask_ratio: float, precision: torch.dtype | None = None
    ):
        super().__init__(segmenter, precision)
        self.block, self.mask_ratio = tuple(block), mask_ratio

    def forward(self, views: Tensor, geometries: GeometryBatch, generator: torch.Generator | None = None) -> MAEOutput:
        """See `Objective.forward`; places do not matter, the generator decides which blocks are masked."""
        mask = draw_block_mask(len(views), views.shape[2:], self.block, self.mask_ratio, generator).to(views.device)
        with self.autocast(views.device):
            reconstructed = self.segmenter(views.masked_fill(mask, 0.0))
        return MAEOutput(masked_error(reconstructed.float(), views, mask), error_of_the_mean(views, mask))


def draw_block_mask(
    views: int, size: Sequence[int], block: Sequence[int], ratio: float, generator: torch.Generator | None = None
) -> Tensor:
    """Blocks to mask, drawn without replacement: the same number in every view.

    Args:
        views: Number of views.
        size: Size of the views in voxels (z, y, x).
        block: Size of a block; those at the ends are cut off by the view.
        ratio: Share of the blocks to mask, from 0 to 1; rounded, but at least one block stays.
        generator: Source of all randomness.

    Returns:
        (views, 1, *size) bool on the generator's device, True where masked.
    """
    device = generator.device if generator is not None else torch.device("cpu")
    grid = [-(-n // b) for n, b in zip(size, block, strict=True)]
    blocks, masked = number_of_blocks(size, block, ratio)
    ranks = torch.rand(views, blocks, generator=generator, device=device).argsort(dim=1).argsort(dim=1)
    mask = (ranks < masked).view(views, 1, *grid)
    for axis, (n, b) in enumerate(zip(size, block, strict=True), start=2):
        mask = mask.repeat_interleave(b, dim=axis).narrow(axis, 0, n)
    return mask


def masked_error(reconstructed: Tensor, views: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the masked voxels of all channels; 0 if none is masked.

    Args:
        reconstructed: (B, C, D, H, W).
        views: The same shape.
        mask: (B, 1, D, H, W) bool, True where masked.
    """
    return ((reconstructed - views).square() * mask).sum() / (mask.sum() * views.shape[1]).clamp(min=1)


def error_of_the_mean(views: Tensor, mask: Tensor) -> Tensor:
    """`masked_error` of the best constant: each view's and channel's own mean over its masked voxels."""
    masked = mask.sum(dim=(2, 3, 4), keepdim=True).clamp(min=1)
    return masked_error((views * mask).sum(dim=(2, 3, 4), keepdim=True) / masked, views, mask)
