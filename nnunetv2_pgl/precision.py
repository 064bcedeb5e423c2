"""Which devices compute in bfloat16, and networks that train so on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device is trusted to multiply in bfloat16: CUDA from Ampere on, CPUs with AMX.

    CPUs with AVX512-BF16 alone (AMD's Zen 4, Intel's Cooper Lake) could, but there oneDNN 3.12 (torch 2.14) returns
    arbitrary weight gradients for 3 x 3 x 3 convolutions of maps two voxels deep, such as the deepest ones of the
    paper's views, and for strided ones of maps one voxel high it writes beyond its memory.
    """
    if device.type == "cuda":
        return torch.cuda.is_available() and torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "cpu":
        has_amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
        return has_amx is not None and has_amx()
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
