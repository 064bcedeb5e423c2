"""The paper's segmentation network: ResNet-50, ASPP and a light decoder (section 5.1, appendix B.1, figure 6)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from nnunetv2_pgl.networks.aspp import ASPP, SepConv
from nnunetv2_pgl.networks.hardware import lay_out
from nnunetv2_pgl.networks.padding import PaddingName
from nnunetv2_pgl.networks.resnet3d import (
    PAPER_STRIDES,
    PAPER_WIDTHS,
    NormName,
    ResNet50Encoder,
    initialise_kaiming_uniform,
    make_norm,
)
from nnunetv2_pgl.networks.strided import Triple

_ASPP_WIDTH = 160
_DECODER_WIDTHS = (128, 96, 32)


class UpsamplingModule(nn.Module):
    """Transposed convolution, sum with the encoder's features, residual block of two separable convolutions.

    Args:
        in_channels: Channels of the coarser map.
        skip_channels: Channels of the encoder's map; a 1x1x1 convolution brings them to ``out_channels``.
        out_channels: Channels of the output.
        stride: Ratio of the two maps' cells per axis, kernel and stride of the transposed convolution.
        norm: "batch" or "instance".
    """

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int, stride: Triple, norm: NormName):
        super().__init__()
        self.up = nn.Sequential(
            nn.ConvTranspose3d(in_channels, out_channels, stride, stride, bias=False), make_norm(norm, out_channels)
        )
        self.skip = nn.Sequential(nn.Conv3d(skip_channels, out_channels, 1, bias=False), make_norm(norm, out_channels))
        self.conv1 = SepConv(out_channels, out_channels, norm)
        self.conv2 = SepConv(out_channels, out_channels, norm)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, in_channels, d, h, w), (B, skip_channels, D, H, W) -> (B, out_channels, D, H, W)."""
        depth, height, width = skip.shape[2:]
        # An odd map was halved to the next larger size: the last upsampled cell lies outside.
        y = F.relu(self.up(x)[:, :, :depth, :height, :width] + self.skip(skip))
        return F.relu(y + self.conv2(F.relu(self.conv1(y), inplace=True)), inplace=True)


class PGLSegmenter(nn.Module):
    """ResNet-50 encoder, ASPP and a light decoder; logits at the size of the input, whatever the size.

    The paper fixes the parts and the sum: ASPP and decoder have 2.38 M parameters, the network has 48.54 M. Many
    layouts fit. Chosen here: ASPP of width 160; upsampling modules of width 128, 96 and 32; transposed convolutions
    whose kernel equals their stride; skips brought to the decoder's width by a 1x1x1 convolution and added; a
    convolution from 32 channels to the classes; trilinear upsampling from the stem's resolution. With one input channel
    and two classes that is 2,382,114 parameters, and 48,537,186 in all.

    No deep supervision. The output is a new float32 tensor of raw logits.

    Args:
        num_input_channels: Number of image channels.
        num_classes: Number of segmentation heads.
        strides: Total stride per axis (z, y, x) of the encoder.
        norm: "batch" (the paper) or "instance".
        centred: See `ResNet50Encoder`.
        cpu_bfloat16: Run under bfloat16 autocast when the input is on a CPU. nnU-Net uses autocast on CUDA only, in
            training and in prediction; inside the network it serves both.
        padding, widths: The encoder's, see `ResNet50Encoder`; ASPP and decoder have fixed ones.
    """

    def __init__(
        self,
        num_input_channels: int,
        num_classes: int,
        strides: Sequence[int] = PAPER_STRIDES,
        norm: NormName = "batch",
        centred: bool = True,
        cpu_bfloat16: bool = False,
        padding: PaddingName = "zeros",
        widths: Sequence[int] = PAPER_WIDTHS,
    ):
        super().__init__()
        self.cpu_bfloat16 = cpu_bfloat16
        self.encoder = ResNet50Encoder(num_input_channels, strides, norm, centred, padding, widths=widths)
        *skip_channels, deepest_channels = self.encoder.stage_channels
        self.aspp = ASPP(deepest_channels, _ASPP_WIDTH, norm)
        in_channels = _ASPP_WIDTH
        modules = []
        for stage, out_channels in zip((2, 1, 0), _DECODER_WIDTHS, strict=True):
            finer, coarser = self.encoder.stage_strides[stage], self.encoder.stage_strides[stage + 1]
            stride = (coarser[0] // finer[0], coarser[1] // finer[1], coarser[2] // finer[2])
            modules.append(UpsamplingModule(in_channels, skip_channels[stage], out_channels, stride, norm))
            in_channels = out_channels
        self.decoder = nn.ModuleList(modules)
        self.head = nn.Conv3d(in_channels, num_classes, 1)
        for part in (self.aspp, self.decoder, self.head):
            part.apply(initialise_kaiming_uniform)
        self.to(memory_format=self.encoder.memory_format)

    def forward(self, x: Tensor) -> Tensor:
        """(B, num_input_channels, D, H, W) -> logits (B, num_classes, D, H, W), float32."""
        uses_bfloat16 = self.cpu_bfloat16 and x.device.type == "cpu"
        with torch.autocast("cpu", torch.bfloat16) if uses_bfloat16 else nullcontext():
            features = self.encoder(lay_out(x, self.encoder.memory_format))
            logits = self.decode(features)
        return upsample(logits.float(), x.shape[2:])

    def decode(self, features: Sequence[Tensor]) -> Tensor:
        """The encoder's maps, deepest last -> logits at the resolution of the first one."""
        *skips, deepest = features
        y = self.aspp(deepest)
        for module, skip in zip(self.decoder, reversed(skips), strict=True):
            y = module(y, skip)
        return self.head(y)

    def decoder_weights(self) -> dict[str, Tensor]:
        """ASPP and decoder as named in the state dict: what fits whatever the classes and the encoder."""
        return {key: value for key, value in self.state_dict().items() if key.startswith(("aspp.", "decoder."))}


def upsample(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Trilinear interpolation, half-pixel centres: (B, C, d, h, w) -> (B, C, *size), contiguous.

    Where the slices stay as they are (the paper's stem has no stride in z) it is a bilinear interpolation of each,
    which is faster.
    """
    logits = logits.contiguous()
    classes, depth = logits.shape[1:3]
    if depth != size[0]:
        return F.interpolate(logits, size=tuple(size), mode="trilinear", align_corners=False)
    slices = F.interpolate(logits.flatten(1, 2), size=tuple(size[1:]), mode="bilinear", align_corners=False)
    return slices.unflatten(1, (classes, depth))
