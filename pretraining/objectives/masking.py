"""Blocks of voxels that are hidden from a network, and the error of their restoration."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def number_of_blocks(size: Sequence[int], block: Sequence[int], ratio: float) -> tuple[int, int]:
    """How many blocks a view of ``size`` voxels has, and how many of them are hidden: see `draw_block_mask`."""
    z, y, x = (-(-n // b) for n, b in zip(size, block, strict=True))
    blocks = z * y * x
    return blocks, min(round(ratio * blocks), blocks - 1)


def draw_block_mask(
    views: int, size: Sequence[int], block: Sequence[int], ratio: float, generator: torch.Generator | None = None
) -> Tensor:
    """Blocks to hide, drawn without replacement: the same number in every view.

    Args:
        views: Number of views.
        size: Size of the views in voxels (z, y, x).
        block: Size of a block; those at the ends are cut off by the view.
        ratio: Share of the blocks to hide, from 0 to 1; rounded, but at least one block stays.
        generator: Source of all randomness.

    Returns:
        (views, 1, *size) bool on the generator's device, True where hidden.
    """
    device = generator.device if generator is not None else torch.device("cpu")
    grid = [-(-n // b) for n, b in zip(size, block, strict=True)]
    blocks, hidden = number_of_blocks(size, block, ratio)
    ranks = torch.rand(views, blocks, generator=generator, device=device).argsort(dim=1).argsort(dim=1)
    mask = (ranks < hidden).view(views, 1, *grid)
    for axis, (n, b) in enumerate(zip(size, block, strict=True), start=2):
        mask = mask.repeat_interleave(b, dim=axis).narrow(axis, 0, n)
    return mask


def hidden_error(restored: Tensor, views: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the hidden voxels of all channels; 0 if none is hidden.

    Args:
        restored: (B, C, D, H, W).
        views: The same shape.
        mask: (B, 1, D, H, W) bool, True where hidden.
    """
    return ((restored - views).square() * mask).sum() / (mask.sum() * views.shape[1]).clamp(min=1)


def error_of_the_mean(views: Tensor, mask: Tensor) -> Tensor:
    """`hidden_error` of the best constant: each view's and channel's own mean over its hidden voxels."""
    hidden = mask.sum(dim=(2, 3, 4), keepdim=True).clamp(min=1)
    return hidden_error((views * mask).sum(dim=(2, 3, 4), keepdim=True) / hidden, views, mask)
