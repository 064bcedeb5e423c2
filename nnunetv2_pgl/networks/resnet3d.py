"""The encoder of the paper: a 3D ResNet-50 (section 3.3, appendix B.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from nnunetv2_pgl.networks.feature_grid import FeatureGrid
from nnunetv2_pgl.networks.hardware import InstanceNorm3d, memory_format_for
from nnunetv2_pgl.networks.padding import PaddingName, require_padding
from nnunetv2_pgl.networks.strided import StridedConv, StridedMaxPool, Triple

NormName = Literal["batch", "instance"]

PAPER_STRIDES: Triple = (8, 16, 16)
PAPER_WIDTHS = (64, 128, 256, 512)
_BLOCKS = (3, 4, 6, 3)
_EXPANSION = 4

# The strided layers in the order in which an axis uses them: an axis with a total stride of 2^k strides in the first k.
# In z the paper's stem has stride 1 (16 slices must survive), in plane every one of the four halves the map.
_STRIDED_LAYERS = (
    ("pool", "stage2", "stage3", "stem"),
    ("stem", "pool", "stage2", "stage3"),
    ("stem", "pool", "stage2", "stage3"),
)
_FORWARD_ORDER = ("stem", "pool", "stage2", "stage3")


def make_norm(name: NormName, channels: int) -> nn.Module:
    """Batch or instance norm with affine parameters; a ValueError if it is neither."""
    if name == "batch":
        return nn.BatchNorm3d(channels)
    if name == "instance":
        return InstanceNorm3d(channels, affine=True)
    raise ValueError(f"norm must be 'batch' or 'instance', got '{name}'")


def initialise_kaiming_uniform(module: nn.Module) -> None:
    """Kaiming uniform weights and zero biases for a convolution: the paper's random initialisation (section 5.2)."""
    if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
        nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Shortcut(nn.Module):
    """Projection shortcut (type B) that takes the very cells the block's strided convolution is centred on."""

    def __init__(self, in_channels: int, out_channels: int, stride: Triple, shifted: Sequence[bool], norm: NormName):
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, 1, stride, bias=False)
        self.norm = make_norm(norm, out_channels)
        self.shifted = tuple(shifted)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, C', ceil(D / stride), ...)."""
        for axis, axis_is_shifted in enumerate(self.shifted, start=2):
            if axis_is_shifted:
                if x.shape[axis] % 2:  # the last pair lacks its second cell: repeat the first
                    x = torch.cat((x, x.narrow(axis, x.shape[axis] - 1, 1)), dim=axis)
                x = x.narrow(axis, 1, x.shape[axis] - 1)
        return self.norm(self.conv(x))


class Bottleneck(nn.Module):
    """1x1x1, 3x3x3 (strided), 1x1x1 convolutions with a residual connection (He et al. 2016)."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: Triple,
        shifted: Sequence[bool],
        norm: NormName,
        padding: PaddingName,
    ):
        super().__init__()
        out_channels = width * _EXPANSION
        self.conv1 = nn.Conv3d(in_channels, width, 1, bias=False)
        self.norm1 = make_norm(norm, width)
        self.conv2 = StridedConv(width, width, 3, stride, shifted, padding)
        self.norm2 = make_norm(norm, width)
        self.conv3 = nn.Conv3d(width, out_channels, 1, bias=False)
        self.norm3 = make_norm(norm, out_channels)
        needs_projection = in_channels != out_channels or stride != (1, 1, 1)
        self.shortcut = (
            Shortcut(in_channels, out_channels, stride, shifted, norm) if needs_projection else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, 4 * width, ceil(D / stride), ...)."""
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = F.relu(self.norm2(self.conv2(y)), inplace=True)
        return F.relu(self.norm3(self.conv3(y)) + self.shortcut(x), inplace=True)


class ResNet50Encoder(nn.Module):
    """3D ResNet-50: 46,155,072 parameters with one input channel; a 16 x 96 x 96 view gives 2048 x 2 x 6 x 6.

    Bottleneck blocks 3, 4, 6, 3; widths 64 to 512, expansion 4; 7x7x7 stem of stride (1, 2, 2); max pooling of stride
    2; stages of stride 1, 2, 2, 1. The paper gives block counts and the 46.16 M parameters (section 3.3, appendix B.1);
    stem and strides follow from its parameter count and its three skips. Stage 4 is not dilated (our choice).

    Weights do not depend on the strides: any total stride per axis that is a power of two up to 16 can be asked for.
    An axis that strides less than the paper's keeps the strides of the early layers and loses those of the late ones,
    so that pre-trained filters still see the sampling they were trained on.

    Args:
        in_channels: Number of image channels.
        strides: Total stride per axis (z, y, x).
        norm: "batch" (the paper) or "instance".
        centred: Shift the padding of the last strided layer of each axis by one cell. With plain padding cell ``i`` of
            a total stride ``s`` sits on voxel ``s * i``, half a cell off the middle of the voxels it stands for; under
            flips the maps of two views are then almost a cell apart. Centred, it sits half a voxel from the middle.
        padding: What the convolutions see beyond the edge of a view: "zeros", or "replicate" the outermost cells, so
            that features do not reveal the place in the view. Weights do not depend on it.
        blocks, widths: The four stages'; others than the paper's are for tests and quick experiments.

    Attributes:
        strides: Total stride per axis.
        stage_strides: Stride per axis of each map that `forward` returns.
        stage_channels: Channels of each map that `forward` returns.

    Raises:
        ValueError: If a stride is not a power of two between 1 and 16, or the padding is unknown.
    """

    def __init__(
        self,
        in_channels: int = 1,
        strides: Sequence[int] = PAPER_STRIDES,
        norm: NormName = "batch",
        centred: bool = True,
        padding: PaddingName = "zeros",
        blocks: Sequence[int] = _BLOCKS,
        widths: Sequence[int] = PAPER_WIDTHS,
    ):
        super().__init__()
        if len(strides) != 3 or any(s not in (1, 2, 4, 8, 16) for s in strides):
            raise ValueError(f"strides must be three powers of two between 1 and 16 (z, y, x), got {tuple(strides)}")
        self.strides: Triple = (int(strides[0]), int(strides[1]), int(strides[2]))
        self.norm_name: NormName = norm
        self.centred = centred
        self.padding: PaddingName = require_padding(padding)
        layer_strides = _strides_per_layer(self.strides)
        shifts = _shifted_axes(layer_strides) if centred else {}
        none = (False, False, False)

        self.in_channels = in_channels
        self.conv = StridedConv(in_channels, 64, 7, layer_strides["stem"], shifts.get("stem", none), padding)
        self.norm = make_norm(norm, 64)
        self.pool = StridedMaxPool(layer_strides["pool"], shifts.get("pool", none))
        stages = []
        channels = 64
        for name, count, width in zip(("stage1", "stage2", "stage3", "stage4"), blocks, widths, strict=True):
            stride, shifted = layer_strides.get(name, (1, 1, 1)), shifts.get(name, none)
            first = Bottleneck(channels, width, stride, shifted, norm, padding)
            channels = width * _EXPANSION
            rest = [Bottleneck(channels, width, (1, 1, 1), none, norm, padding) for _ in range(count - 1)]
            stages.append(nn.Sequential(first, *rest))
        self.stage1, self.stage2, self.stage3, self.stage4 = stages

        self.stage_channels = (64, widths[0] * _EXPANSION, widths[1] * _EXPANSION, widths[3] * _EXPANSION)
        self.stage_strides = resnet_stage_strides(self.strides)
        self.apply(initialise_kaiming_uniform)

    def forward(self, x: Tensor, last_stage: int = -1) -> list[Tensor]:
        """(B, in_channels, D, H, W) -> maps of the stem (64 channels) and of stages 1 (256), 2 (512) and 4 (2048).

        Their sizes are those of the input divided by `stage_strides`, rounded up. ``last_stage`` is the index of the
        last map to compute: 0 the stem, 1 to 3 its stages 1, 2 and 4.
        """
        maps = [F.relu(self.norm(self.conv(x)), inplace=True)]
        for modules in self._steps()[: last_stage % 4]:
            y = maps[-1]
            for module in modules:
                y = module(y)
            maps.append(y)
        return maps

    @property
    def memory_format(self) -> torch.memory_format:
        """In which images and weights are fastest; maps have that of the images."""
        return memory_format_for(self.norm_name)

    def modules_after(self, stage: int) -> list[nn.Module]:
        """The modules that the map of this index does not depend on."""
        return [module for modules in self._steps()[stage % 4 :] for module in modules]

    def _steps(self) -> tuple[tuple[nn.Module, ...], ...]:
        """What leads from each map to the next."""
        return ((self.pool, self.stage1), (self.stage2,), (self.stage3, self.stage4))

    def feature_grid(self, view_size: Sequence[int], stage: int = -1) -> FeatureGrid:
        """Where the cells of a map sit in a view of ``view_size`` voxels (z, y, x).

        Symmetric padding centres each strided layer's cell ``i`` on its input cell ``2 i``, so cell ``i`` sits on voxel
        ``stride * i``; the centred variant adds half a stride, in an axis's last strided layer.
        """
        strides = self.stage_strides[stage]
        z, y, x = (
            0.5 + (stride / 2 if self.centred and stride == total > 1 else 0.0)
            for stride, total in zip(strides, self.strides, strict=True)
        )
        d, h, w = (int(size) for size in view_size)
        return FeatureGrid((d, h, w), strides, (z, y, x))


def resnet_stage_strides(strides: Triple) -> tuple[Triple, Triple, Triple, Triple]:
    """Stride per axis of each map that `ResNet50Encoder` returns."""
    layer_strides = _strides_per_layer(strides)
    at_stage1 = _times(layer_strides["stem"], layer_strides["pool"])
    return layer_strides["stem"], at_stage1, _times(at_stage1, layer_strides["stage2"]), strides


def _times(a: Triple, b: Triple) -> Triple:
    return (a[0] * b[0], a[1] * b[1], a[2] * b[2])


def _strides_per_layer(strides: Triple) -> dict[str, Triple]:
    """Stride of each strided layer from the total stride of each axis."""
    z, y, x = (layers[: total.bit_length() - 1] for total, layers in zip(strides, _STRIDED_LAYERS, strict=True))
    return {layer: (1 + (layer in z), 1 + (layer in y), 1 + (layer in x)) for layer in _FORWARD_ORDER}


def _shifted_axes(layer_strides: dict[str, Triple]) -> dict[str, tuple[bool, bool, bool]]:
    """For each layer, the axes on which it is the last one that strides."""
    z, y, x = ([layer for layer in _FORWARD_ORDER if layer_strides[layer][axis] == 2][-1:] for axis in range(3))
    return {layer: (layer in z, layer in y, layer in x) for layer in _FORWARD_ORDER}
