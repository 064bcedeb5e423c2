"""Which devices compute in bfloat16, and networks that train so on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies in bfloat16 natively: CUDA from Ampere on, CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_available() and torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "cpu":
        checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        return any(check is not None and check() for check in checks)
    return False


def train_in_cpu_bfloat16(network: nn.Module) -> nn.Module:
    """Makes a network run under bfloat16 autocast when it trains on a CPU, with outputs in float32.

    nnU-Net uses autocast on CUDA only. In evaluation nothing changes, so that predictions are those of stock nnU-Net to
    the last bit. The network gets a class derived from its own; its parameters and their names stay.

    Args:
        network: Takes one tensor and returns logits, or a list of them (deep supervision).

    Returns:
        The same network.
    """
    own = type(network)
    network.__class__ = type(own.__name__, (_CPUBfloat16, own), {"__module__": own.__module__, "__doc__": own.__doc__})
    return network


class _CPUBfloat16(nn.Module):
    """Comes before the class of a network."""

    def forward(self, x: Tensor) -> Any:
        if not self.training or x.device.type != "cpu":
            return super().forward(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = super().forward(x)
        return [level.float() for level in logits] if isinstance(logits, list) else logits.float()
