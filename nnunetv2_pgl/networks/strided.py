"""Strided layers whose cells can be shifted, and a fast form of those that see few channels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from nnunetv2_pgl.networks.padding import PaddingName, Pads, replicate_pad

Triple = tuple[int, int, int]

_MAX_FOLDED_CHANNELS = 8


def pad_before_stride(x: Tensor, padding: int, shifted: Sequence[bool], value: float = 0.0) -> Tensor:
    """Pads the shifted axes by (padding - 1, padding + 1) instead of (padding, padding).

    The output of the strided layer that follows has the same size, and its cell ``i`` is centred on input cell
    ``2 i + 1`` instead of ``2 i``.
    """
    if not any(shifted):
        return x
    pads: list[int] = []
    for axis_is_shifted in reversed(shifted):  # F.pad counts from the last axis
        pads += [padding - 1, padding + 1] if axis_is_shifted else [0, 0]
    return F.pad(x, pads, value=value)


def _remaining_padding(padding: int, shifted: Sequence[bool]) -> Triple:
    """What the strided layer itself still has to pad."""
    z, y, x = (0 if axis_is_shifted else padding for axis_is_shifted in shifted)
    return (z, y, x)


def fold_stride(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Pads, mode: PaddingName = "zeros"
) -> tuple[Tensor, Tensor]:
    """Image and kernel of an equal convolution of stride 1 (space to depth).

    The ``stride`` voxels of each step along an axis become channels, and so do the kernel's. Convolutions that read one
    or two channels leave most of a matrix unit idle; with ``prod(stride)`` times as many they waste less.

    Args:
        x: (B, C, D, H, W).
        weight: (C', C, k, l, m).
        stride: Per axis.
        padding: Cells to add before and after, per axis.
        mode: What these cells hold: zeros, or what the outermost cells of ``x`` do.

    Returns:
        (B, C * prod(stride), D', H', W'), padded, and (C', C * prod(stride), ceil(k / stride), ...), both in the memory
        format of ``weight``. Without padding, the one convolved with the other is ``x`` convolved with ``weight``.
    """
    pads: list[tuple[int, int]] = []
    kernel_pads: list[int] = []
    sizes, kernels = [], []
    for size, kernel, step, (before, after) in zip(x.shape[2:], weight.shape[2:], stride, padding, strict=True):
        taps = math.ceil(kernel / step)
        cells = (size + before + after - kernel) // step + taps  # one output cell per stop, and what the last one sees
        pads.append((before, cells * step - size - before))
        kernel_pads = [0, taps * step - kernel, *kernel_pads]  # F.pad counts from the last axis
        sizes.append(cells)
        kernels.append(taps)
    channels_last = weight.stride(1) == 1  # the only trace of the memory format where there is one channel
    x = replicate_pad(x, pads) if mode == "replicate" else F.pad(x, [n for pair in reversed(pads) for n in pair])
    folded = _steps_to_channels(x, sizes, stride, channels_last)
    return folded, _steps_to_channels(F.pad(weight, kernel_pads), kernels, stride, channels_last)


def _steps_to_channels(x: Tensor, sizes: Sequence[int], stride: Sequence[int], channels_last: bool) -> Tensor:
    """(B, C, D' * s, H' * t, W' * u) -> (B, s * t * u * C, D', H', W'), channels last in memory or first."""
    batch, channels = x.shape[:2]
    (d, h, w), (s, t, u) = sizes, stride
    cells = x.reshape(batch, channels, d, s, h, t, w, u)
    if not channels_last:
        return cells.permute(0, 3, 5, 7, 1, 2, 4, 6).reshape(batch, s * t * u * channels, d, h, w)
    return cells.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(batch, d, h, w, s * t * u * channels).permute(0, 4, 1, 2, 3)


class StridedConv(nn.Conv3d):
    """Convolution with "same" padding whose cells can be shifted by one input cell along strided axes.

    With few input channels, and in half precision, it is computed by `fold_stride`: the stem of a batch of 8 views took
    40 instead of 128 ms forward, and 90 instead of 258 ms with the backward pass, on a core with AMX. With AVX512-BF16
    alone the two are equal; in float32 the plain convolution is faster (92 against 129 ms).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: Triple,
        shifted: Sequence[bool],
        padding: PaddingName = "zeros",
    ):
        remaining = _remaining_padding(kernel_size // 2, shifted)
        super().__init__(in_channels, out_channels, kernel_size, stride, remaining, bias=False)
        self.shifted = tuple(shifted)
        self.mode: PaddingName = padding
        steps = math.prod(stride)
        self.folds = steps > 1 and in_channels * steps <= _MAX_FOLDED_CHANNELS

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, C', ceil(D / stride), ...)."""
        padding = self.kernel_size[0] // 2
        both_sides = [(padding - shift, padding + shift) for shift in map(int, self.shifted)]
        if self.folds and _is_half(x):
            return F.conv3d(*fold_stride(x, self.weight, self.stride, both_sides, self.mode))
        if self.mode == "replicate":
            return F.conv3d(replicate_pad(x, both_sides), self.weight, None, self.stride)
        return super().forward(pad_before_stride(x, padding, self.shifted))  # most of the padding then costs nothing


def _is_half(x: Tensor) -> bool:
    """Whether a convolution of ``x`` is computed in 16 bits."""
    device = x.device.type
    casts = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if casts else x.dtype
    return dtype in (torch.bfloat16, torch.float16)


class StridedMaxPool(nn.Module):
    """3x3x3 max pooling with the same shift as `StridedConv`.

    Beyond the edge it sees nothing (minus infinity), which is what replicated cells would give: its windows hold these
    already.
    """

    def __init__(self, stride: Triple, shifted: Sequence[bool]):
        super().__init__()
        self.stride = stride
        self.shifted = tuple(shifted)
        self.padding = _remaining_padding(1, shifted)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, C, ceil(D / stride), ...)."""
        x = pad_before_stride(x, 1, self.shifted, value=float("-inf"))
        # A CPU's autocast would turn the largest maps of the network into float32; a maximum needs no precision.
        with torch.autocast("cpu", enabled=False):
            return F.max_pool3d(x, 3, self.stride, self.padding)
