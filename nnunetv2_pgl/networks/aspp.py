"""Atrous spatial pyramid pooling and the separable convolution it shares with the decoder (appendix B.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from nnunetv2_pgl.networks.resnet3d import NormName, make_norm


class DepthwiseConv(nn.Conv3d):
    """Depthwise 3x3x3 convolution, in float32 on a CPU whatever the autocast.

    The backward pass of oneDNN's depthwise convolution takes 3 to 4.5 times as long in bfloat16 as in float32 (measured
    for the decoder's maps, torch 2.14, AVX512-BF16).
    """

    def __init__(self, channels: int, dilation: int = 1):
        super().__init__(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> the same shape."""
        if x.device.type != "cpu":
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


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
