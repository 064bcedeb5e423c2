"""Optimisers and the learning rate schedule (section 5.1)."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import nn

# Of "nnunet", as in nnU-Net's trainers: power of the polynomial decay, and the norm that all gradients are clipped to.
DECAY_POWERS = {"nnunet": 0.9}
GRADIENT_CLIP_NORMS = {"nnunet": 12.0}


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights with decay; biases and norms without.

    `timm.optim.Lars` adapts only groups with a weight decay, so the second group is also left out of the layer-wise
    scaling, as in BYOL.
    """
    trainable = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]


def make_optimizer(name: str, module: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """LARS (paper), SGD with momentum 0.9, AdamW, or nnU-Net's SGD with Nesterov momentum 0.99.

    Raises:
        ValueError: If the name is unknown.
    """
    groups = parameter_groups(module, weight_decay)
    if name == "lars":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch warns of one of timm's models, all of which load
            from timm.optim.lars import Lars
        return Lars(groups, lr=learning_rate, momentum=0.9)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=0.9)
    if name == "nnunet":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=0.99, nesterov=True)
    if name == "adamw":
        # In one kernel: one pass over the weights, not ten. On CUDA torch 2.4 has one that fails with kernels of one
        # voxel, whose gradients come with other strides (pytorch#106951). Elsewhere torch's default.
        devices = {parameter.device.type for parameter in module.parameters()}
        can_fuse = devices == {"cpu"} or (devices == {"cuda"} and torch.__version__ >= "2.5")
        return torch.optim.AdamW(groups, lr=learning_rate, fused=can_fuse or None)
    raise ValueError(f"optimizer must be lars, sgd, adamw or nnunet, got '{name}'")


def learning_rate_at(step: int, steps: int, warmup_steps: int, peak: float, power: float | None = None) -> float:
    """Linear warm-up to ``peak`` over ``warmup_steps``, then decay to 0 at ``steps``; no restart.

    The decay is a cosine, or what is left of the steps to a power.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min((step - warmup_steps) / max(steps - warmup_steps, 1), 1.0)
    return peak * (0.5 * (1.0 + math.cos(math.pi * progress)) if power is None else (1.0 - progress) ** power)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Sets the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
