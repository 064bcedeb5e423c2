"""How a network's maps lie in memory."""

from __future__ import annotations

import torch
from torch import Tensor


def memory_format_for(norm: str) -> torch.memory_format:
    """Channels last for batch norm, channels first for instance norm.

    Convolutions and batch norm are fastest with channels last. torch's instance norm copies such maps to channels
    first and leaves them there, so that every norm and every convolution would change the layout.
    """
    return torch.contiguous_format if norm == "instance" else torch.channels_last_3d


def lay_out(x: Tensor, memory_format: torch.memory_format) -> Tensor:
    """(B, C, D, H, W) in a memory format, copied only where it lies otherwise.

    Images of one channel are in both, but convolutions go by their strides: those of channels first are made sure of.
    """
    if memory_format == torch.contiguous_format:
        return x.flatten(1).view(x.shape)
    return x.contiguous(memory_format=memory_format)
