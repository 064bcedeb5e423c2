"""Atrous spatial pyramid pooling and the separable convolution it shares with the decoder (appendix B.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from nnunetv2_pgl.networks.resnet3d import NormName, make_norm
from nnunetv2_pgl.networks.strided import Triple


class DepthwiseConv(nn.Conv3d):
    """Depthwise 3x3x3 convolution, dilated on request.

    Along an axis that has no more cells than the dilation, all taps but the centre only meet padding: they are left out
    (dilation 8 on a map of 6 x 6 x 6 cells is a factor per channel). On a CPU the rest is arranged so that oneDNN's
    fast depthwise kernels serve both directions, see `_PlainDepthwise`; the numbers are those of the plain formulation.
    """

    def __init__(self, channels: int, dilation: int = 1):
        super().__init__(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> the same shape."""
        weight, dilation = self._taps_that_meet(x.shape[2:])
        if weight.shape[2:].numel() == 1:
            return x * weight.to(x.dtype).reshape(1, -1, 1, 1, 1)
        if x.device.type != "cpu":
            padding = [d * (k // 2) for d, k in zip(dilation, weight.shape[2:], strict=True)]
            return F.conv3d(x, weight, None, 1, padding, dilation, self.groups)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        grids = _split_into_grids(x.to(dtype), dilation)
        return _join_grids(_PlainDepthwise.apply(grids, weight.to(dtype)), dilation, x.shape)

    def _taps_that_meet(self, size: Sequence[int]) -> tuple[Tensor, Triple]:
        """The kernel without taps that can only meet padding, and its dilation per axis."""
        weight, dilation = self.weight, [1, 1, 1]
        for axis, cells in enumerate(size):
            if self.dilation[axis] >= cells:
                weight = weight.narrow(2 + axis, 1, 1)
            else:
                dilation[axis] = self.dilation[axis]
        return weight, (dilation[0], dilation[1], dilation[2])


class _PlainDepthwise(torch.autograd.Function):
    """Undilated depthwise convolution on a CPU, with a backward pass made of oneDNN's fast kernels.

    oneDNN has fast kernels for the forward pass (3D, channels last) and for the gradient of 2D kernels, but none for
    the two gradients in 3D, where it takes 10 to 100 times as long, nor for dilated 3D convolutions. So the gradient of
    the input is computed as the convolution it is, with the kernel reversed, and the gradient of the kernel slice by
    slice in 2D.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """(B, C, D, H, W), (C, 1, kz, ky, kx) of odd sizes -> (B, C, D, H, W)."""
        ctx.save_for_backward(x, weight)
        return _convolve(x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of input and kernel."""
        x, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last_3d)
        input_gradient = _convolve(gradient, weight.flip(2, 3, 4)) if ctx.needs_input_grad[0] else None
        weight_gradient = _weight_gradient(x, gradient, weight.shape) if ctx.needs_input_grad[1] else None
        return input_gradient, weight_gradient


def _convolve(x: Tensor, weight: Tensor) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last_3d)
    return F.conv3d(x, weight, None, 1, [k // 2 for k in weight.shape[2:]], 1, x.shape[1])


def _weight_gradient(x: Tensor, gradient: Tensor, shape: torch.Size) -> Tensor:
    """Gradient of a (C, 1, kz, ky, kx) kernel: for each of its kz slices that of a 2D convolution of all slices of x.

    Padding in z separates the samples, so that samples and slices together are one batch and a step in z is a shift in
    it. In plane, maps smaller than the kernel are padded to its size: oneDNN has no fast kernel for them.
    """
    channels, _, depth, *plane = shape
    rows, columns = (max(0, k - n) for k, n in zip(plane, x.shape[3:], strict=True))
    images = _slices(F.pad(x, [0, columns, 0, rows, depth // 2, depth // 2]))
    errors = _slices(F.pad(gradient, [0, columns, 0, rows, 0, depth - 1]))
    count = len(images) - depth + 1
    kernel, padding = [channels, 1, *plane], [k // 2 for k in plane]
    taps = [
        conv2d_weight(images[z : z + count], kernel, errors[:count], padding=padding, groups=channels)
        for z in range(depth)
    ]
    return torch.stack(taps, dim=2)


def _slices(x: Tensor) -> Tensor:
    """(B, C, D, H, W) -> (B * D, C, H, W), without copying where the channels are last."""
    return x.transpose(1, 2).flatten(0, 1)


def _split_into_grids(x: Tensor, dilation: Triple) -> Tensor:
    """(B, C, D, H, W) -> (B * dz * dy * dx, C, D / dz, H / dy, W / dx): cells that a dilated kernel joins, as one map.

    A dilated convolution is an undilated one on each of these maps. Sizes are padded with zeros to multiples.
    """
    if dilation == (1, 1, 1):
        return x
    (depth, height, width), (dz, dy, dx) = x.shape[2:], dilation
    cells = F.pad(x, [0, -width % dx, 0, -height % dy, 0, -depth % dz]).permute(0, 2, 3, 4, 1)
    parts = cells.unflatten(3, (-1, dx)).unflatten(2, (-1, dy)).unflatten(1, (-1, dz))
    return parts.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(0, 3).permute(0, 4, 1, 2, 3)


def _join_grids(grids: Tensor, dilation: Triple, shape: torch.Size) -> Tensor:
    """Undoes `_split_into_grids` for an input of ``shape``."""
    if dilation == (1, 1, 1):
        return grids
    parts = grids.permute(0, 2, 3, 4, 1).unflatten(0, (shape[0], *dilation)).permute(0, 4, 1, 5, 2, 6, 3, 7)
    cells = parts.flatten(5, 6).flatten(3, 4).flatten(1, 2)
    return cells[:, : shape[2], : shape[3], : shape[4]].permute(0, 4, 1, 2, 3)


class SepConv(nn.Sequential):
    """Depthwise 3x3x3 convolution (dilated on request), then pointwise 1x1x1 convolution and norm."""

    def __init__(self, in_channels: int, out_channels: int, norm: NormName, dilation: int = 1):
        super().__init__(
            DepthwiseConv(in_channels, dilation),
            nn.Conv3d(in_channels, out_channels, 1, bias=False),
            make_norm(norm, out_channels),
        )


class ASPP(nn.Module):
    """Three plain convolutions, image pooling, and three separable convolutions with dilation 2, 4 and 8.

    The plain ones are the 1x1x1 branch, the 1x1x1 convolution after the pooling, and the 1x1x1 fusion of the five
    concatenated branches: the usual place of such convolutions in ASPP (the paper only gives their number). The
    pooling branch has a bias and no norm, because one value per channel cannot be normalised at batch size 1.

    Args:
        in_channels: Channels of the encoder's deepest map.
        width: Channels of each branch and of the output.
        norm: "batch" or "instance".
        dilations: Dilation of each separable branch.
    """

    def __init__(self, in_channels: int, width: int, norm: NormName, dilations: Sequence[int] = (2, 4, 8)):
        super().__init__()
        self.point = nn.Sequential(nn.Conv3d(in_channels, width, 1, bias=False), make_norm(norm, width))
        self.atrous = nn.ModuleList([SepConv(in_channels, width, norm, dilation) for dilation in dilations])
        self.image = nn.Conv3d(in_channels, width, 1)
        branches = 2 + len(self.atrous)
        self.fuse = nn.Sequential(nn.Conv3d(branches * width, width, 1, bias=False), make_norm(norm, width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, d, h, w) -> (B, width, d, h, w)."""
        pooled = self.image(x.mean(dim=(2, 3, 4), keepdim=True)).expand(-1, -1, *x.shape[2:])
        branches = [self.point(x), *(branch(x) for branch in self.atrous), pooled]
        return F.relu(self.fuse(F.relu(torch.cat(branches, dim=1))), inplace=True)
