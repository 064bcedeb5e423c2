"""Projector and predictor (section 3.3)."""

from __future__ import annotations

from torch import nn


class ConvHead(nn.Sequential):
    """Conv-BN-ReLU-Conv, the paper's projector and predictor: no pooling, so that places are kept.

    The paper gives 4096 and 256 channels; kernels of 1x1x1 are our choice: a head that mixes neighbours would learn
    alignment instead of the encoder.
    """

    def __init__(self, in_channels: int, hidden_channels: int = 4096, out_channels: int = 256):
        super().__init__(
            nn.Conv3d(in_channels, hidden_channels, 1, bias=False),
            nn.BatchNorm3d(hidden_channels),
            nn.ReLU(inplace=True),
            nn.Conv3d(hidden_channels, out_channels, 1),
        )
