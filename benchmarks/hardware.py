"""What the hardware can do: the rate of one large convolution and of one large matrix product."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.report import synchronise

_CHANNELS, _KERNEL = 256, 3
_CONVOLVED = {"cpu": (8, 8, 24, 24), "cuda": (64, 16, 48, 48), "quick": (1, 4, 6, 6)}  # batch, z, y, x
_PRODUCT = {"cpu": 3072, "cuda": 8192, "quick": 256}


def convolution_rate(device: torch.device, precision: torch.dtype | None, quick: bool = False) -> float:
    """FLOP/s of a 3x3x3 convolution of 256 channels, forward and backward, channels last; padding counts as work."""
    dtype = precision or torch.float32
    batch, *size = _CONVOLVED["quick" if quick else device.type]
    conv = nn.Conv3d(_CHANNELS, _CHANNELS, _KERNEL, padding=1, bias=False, device=device, dtype=dtype)
    conv.to(memory_format=torch.channels_last_3d)
    x = torch.randn(batch, _CHANNELS, *size, device=device, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    direction = torch.randn_like(x)

    def both_ways() -> None:
        conv(x).backward(direction)
        x.grad = conv.weight.grad = None

    return 3 * 2 * x.numel() * _CHANNELS * _KERNEL**3 / _best_seconds(both_ways, device)


def product_rate(device: torch.device, precision: torch.dtype | None, quick: bool = False) -> float:
    """FLOP/s of the product of two square matrices."""
    size = _PRODUCT["quick" if quick else device.type]
    a, b = (torch.randn(size, size, device=device).to(precision or torch.float32) for _ in range(2))
    return 2 * size**3 / _best_seconds(lambda: a @ b, device)


def _best_seconds(function: Callable[[], object], device: torch.device, rounds: int = 7) -> float:
    seconds = []
    for _ in range(rounds):
        synchronise(device)
        started = time.perf_counter()
        function()
        synchronise(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)
