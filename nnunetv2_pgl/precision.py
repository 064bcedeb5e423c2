"""What networks are computed in on a device, and networks that train in bfloat16 on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def autocast_type(device: torch.device) -> torch.dtype | None:
    """The type that networks are computed in, None for float32.

    bfloat16 on CUDA from Ampere on and on CPUs with AMX. On Volta and Turing (compute capability 7), whose tensor cores
    know no other type, float16: gradients need a loss scaler there. Older GPUs have no tensor cores.

    CPUs with AVX512-BF16 alone (AMD's Zen 4, Intel's Cooper Lake) could, but there oneDNN 3.12 (torch 2.14) returns
    arbitrary weight gradients for 3 x 3 x 3 convolutions of maps two voxels deep, such as the deepest ones of the
    paper's views, and for strided ones of maps one voxel high it writes beyond its memory.
    """
    if device.type == "cuda" and torch.cuda.is_available():
        generation, _ = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if generation >= 8 else torch.float16 if generation == 7 else None
    if device.type == "cpu":
        has_amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
        return torch.bfloat16 if has_amx is not None and has_amx() else None
    return None


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
