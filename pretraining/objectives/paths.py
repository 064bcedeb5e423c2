"""What online and target path are made of: heads, the copy that follows, and how partners meet (section 3.3, BYOL)."""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch import Tensor, nn

_Module = TypeVar("_Module", bound=nn.Module)


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


def make_target(online: _Module) -> _Module:
    """A copy without gradients, equal to the online module at the start."""
    return copy.deepcopy(online).requires_grad_(False)


@torch.no_grad()
def update_target(target: nn.Module, online: nn.Module, decay: float) -> None:
    """Moves target to decay * target + (1 - decay) * online, for every parameter (eq. 10).

    Buffers are left alone: the target path normalises with the statistics of its own batch, as in BYOL, so its running
    statistics are never used.
    """
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), 1.0 - decay)


def target_decay(step: int, steps: int, base: float = 0.996) -> float:
    """Decay rate tau after ``step`` of ``steps``: from ``base`` to 1 on a cosine (section 5.1; Grill et al. 2020)."""
    return 1.0 - (1.0 - base) * (math.cos(math.pi * min(step, steps) / max(steps, 1)) + 1.0) / 2.0


def of_partners(values: Tensor) -> Tensor:
    """For each of 2 B views, the value of its partner: the two halves of the batch swapped."""
    return values.roll(len(values) // 2, dims=0)
