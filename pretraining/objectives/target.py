"""The target path: a copy of the online path that follows it slowly (eq. 10, after BYOL)."""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch import nn

_Module = TypeVar("_Module", bound=nn.Module)


def target_decay(step: int, steps: int, base: float = 0.996) -> float:
    """Decay rate tau after ``step`` of ``steps``: from ``base`` to 1 on a cosine (section 5.1; Grill et al. 2020)."""
    return 1.0 - (1.0 - base) * (math.cos(math.pi * min(step, steps) / max(steps, 1)) + 1.0) / 2.0


def make_target(online: _Module) -> _Module:
    """A copy without gradients, equal to the online module at the start."""
    return copy.deepcopy(online).requires_grad_(False)


@torch.no_grad()
def update_target(target: nn.Module, online: nn.Module, decay: float) -> None:
    """Moves target to decay * target + (1 - decay) * online, for every parameter.

    Buffers are left alone: the target path normalises with the statistics of its own batch, as in BYOL, so that its
    running statistics serve no one.
    """
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), 1.0 - decay)
