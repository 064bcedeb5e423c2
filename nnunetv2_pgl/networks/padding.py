"""What a convolution sees beyond the edge of its input: zeros, or the outermost cells again.

Zeros reveal to a network how far a cell lies from the border of the view, and self-supervised training learns that
place instead of what is there (Islam et al., arXiv:2101.12322; docs/method.md). Replicated cells do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

PaddingName = Literal["zeros", "replicate"]
Pads = Sequence[tuple[int, int]]


def require_padding(name: str) -> PaddingName:
    """The name itself; a ValueError if it is neither "zeros" nor "replicate"."""
    if name not in ("zeros", "replicate"):
        raise ValueError(f"padding must be 'zeros' or 'replicate', got '{name}'")
    return cast(PaddingName, name)


def replicate_pad(x: Tensor, pads: Pads) -> Tensor:
    """Repeats the outermost cells.

    Args:
        x: (B, C, D, H, W).
        pads: Cells to add before and after, per axis (z, y, x).

    Returns:
        (B, C, D', H', W'), channels last in memory where ``x`` is. On a CPU this is torch's own, which keeps the memory
        layout; on a GPU torch's would return the channels first, so that the convolution that follows has to copy.
    """
    if not any(before or after for before, after in pads):
        return x
    # Images of one channel are in both layouts; their strides say in which one they must stay.
    if x.device.type == "cpu" or x.stride(1) > 1 or not x.is_contiguous(memory_format=torch.channels_last_3d):
        return F.pad(x, [cells for pair in reversed(pads) for cells in pair], mode="replicate")
    padded: Tensor = ReplicateChannelsLast.apply(x, tuple(pads))
    return padded


class ReplicateChannelsLast(torch.autograd.Function):
    """Replicate padding as one gather of rows of channels; its gradient folds each face onto the outermost cells."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pads: Pads) -> Tensor:
        """See `replicate_pad`."""
        ctx.pads = pads
        depth, height, width = (
            torch.arange(-before, cells + after, device=x.device).clamp_(0, cells - 1)
            for cells, (before, after) in zip(x.shape[2:], pads, strict=True)
        )
        rows = (depth[:, None, None] * x.shape[3] + height[:, None]) * x.shape[4] + width
        cells = x.permute(0, 2, 3, 4, 1).flatten(1, 3).index_select(1, rows.flatten())
        return cells.unflatten(1, rows.shape).permute(0, 4, 1, 2, 3)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Each cell gets the gradients of all its copies."""
        (gradient,) = gradients
        whole = gradient.clone(memory_format=torch.channels_last_3d)
        for axis, (before, after) in enumerate(ctx.pads, start=2):
            whole = _fold(whole, axis, before, after)
        return whole.contiguous(memory_format=torch.channels_last_3d), None


def _fold(gradient: Tensor, axis: int, before: int, after: int) -> Tensor:
    """Adds what lies beyond both ends of an axis to the outermost cells, in place, and returns the view without it."""
    inner = gradient.narrow(axis, before, gradient.shape[axis] - before - after)
    for beyond, outermost in (
        (gradient.narrow(axis, 0, before), inner.narrow(axis, 0, 1)),
        (gradient.narrow(axis, gradient.shape[axis] - after, after), inner.narrow(axis, inner.shape[axis] - 1, 1)),
    ):
        if beyond.shape[axis]:
            outermost.add_(beyond.sum(axis, keepdim=True))
    return inner


class ReplicateConv3d(nn.Conv3d):
    """A convolution that repeats the outermost cells where `torch.nn.Conv3d` would pad with zeros."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> the size that the plain convolution gives."""
        z, y, x_cells = cast(tuple[int, int, int], self.padding)
        padded = replicate_pad(x, [(z, z), (y, y), (x_cells, x_cells)])
        return F.conv3d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def pad_by_replication(network: nn.Module) -> None:
    """Makes every padded convolution of a network replicate; weights and their names stay as they are."""
    for module in network.modules():
        if type(module) is nn.Conv3d and any(cast(tuple[int, int, int], module.padding)):
            module.__class__ = ReplicateConv3d
