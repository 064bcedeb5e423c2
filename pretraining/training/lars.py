"""LARS with a few kernels per step instead of several per weight."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class LARS(torch.optim.SGD):
    """Layer-wise adaptive rate scaling (You et al. 2017): SGD with momentum on gradients scaled per weight tensor.

    In groups with a weight decay each gradient becomes ``ratio * (gradient + weight_decay * weight)`` with
    ``ratio = trust * |weight| / (|gradient| + weight_decay * |weight|)``, or 1 where either norm is zero. Groups
    without are left to plain SGD, as BYOL does with biases and norms. The steps are those of `timm.optim.Lars`, which
    launches a dozen kernels for each of a network's weights.

    Args:
        params: Parameter groups, each with its ``weight_decay``.
        lr: Learning rate.
        momentum: Of the scaled gradients.
        trust: Ratio of a step to its weight, for a learning rate of one.
    """

    def __init__(self, params: Iterable[dict[str, Any]], lr: float, momentum: float = 0.9, trust: float = 0.001):
        params = list(params)
        kinds = {p.device.type for group in params for p in group["params"]}
        super().__init__(params, lr=lr, momentum=momentum, fused=True if kinds <= {"cpu", "cuda"} else None)
        self.trust = trust

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update; gradients are scaled in place. There is no closure: it scales gradients that are there."""
        decays = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups:
            if group["weight_decay"]:
                self._scale([p for p in group["params"] if p.grad is not None], group["weight_decay"])
                group["weight_decay"] = 0.0
        try:
            super().step()
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay

    def _scale(self, weights: list[Tensor], decay: float) -> None:
        """Adds the decay to the gradients and scales each by its ratio."""
        gradients = [p.grad for p in weights if p.grad is not None]
        if not gradients:
            return
        of_weights = torch.stack(torch._foreach_norm(weights))
        of_gradients = torch.stack(torch._foreach_norm(gradients))
        ratios = self.trust * of_weights / (of_gradients + decay * of_weights)
        ratios = torch.where((of_weights > 0) & (of_gradients > 0), ratios, 1.0)
        torch._foreach_add_(gradients, weights, alpha=decay)
        torch._foreach_mul_(gradients, list(ratios.unbind()))
