"""Optimiser and learning rates of fine-tuning."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch import nn


def fused(optimizer: torch.optim.Optimizer, network: nn.Module) -> torch.optim.Optimizer:
    """The same optimiser with one kernel for decay, momentum and step: a third of the time on a CPU.

    Not for CUDA: where nnU-Net's gradient scaler skips the very first step, which is usual, PyTorch's fused SGD is left
    with uninitialised momenta.
    """
    return type(optimizer)(network.parameters(), **{**optimizer.defaults, "fused": True})


def split_group(optimizer: torch.optim.Optimizer, second: Iterable[nn.Parameter]) -> None:
    """Divides the only parameter group of an optimiser: the first group holds all other parameters."""
    (group,) = optimizer.param_groups
    second = list(second)
    moved = {id(parameter) for parameter in second}
    first = [parameter for parameter in group["params"] if id(parameter) not in moved]
    optimizer.param_groups.clear()
    for parameters in (first, second):
        optimizer.add_param_group({**group, "params": parameters})


class WarmupPolyLRScheduler(PolyLRScheduler):
    """Linear warm-up over whole epochs, then nnU-Net's polynomial decay over those that remain.

    A pre-trained encoder loses what it has learned if the randomly initialised decoder pulls at it at the full rate.
    nnU-Net's own pre-trained trainers warm up for 50 of 1000 epochs.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, initial_lr: float, max_steps: int, warmup_steps: int):
        self.warmup_steps = warmup_steps
        super().__init__(optimizer, initial_lr, max_steps)

    def step(self, current_step: int | None = None) -> None:
        """Sets the rate for an epoch, or for the next one."""
        if current_step is None or current_step == -1:
            current_step = self.ctr
            self.ctr += 1
        for group, factor in zip(self.optimizer.param_groups, self._factors(current_step), strict=True):
            group["lr"] = self.initial_lr * factor
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def _factors(self, step: int) -> list[float]:
        """Share of the initial rate for each parameter group."""
        return [self._warm_up_and_decay(step, self.warmup_steps)] * len(self.optimizer.param_groups)

    def _warm_up_and_decay(self, step: int, before_decay: int) -> float:
        """The share while it rises over ``warmup_steps``, which end at ``before_decay``, or falls after that."""
        if step < before_decay:
            return (step - before_decay + self.warmup_steps + 1) / (self.warmup_steps + 1)
        return float((1 - (step - before_decay) / (self.max_steps - before_decay)) ** self.exponent)


class SawtoothPolyLRScheduler(WarmupPolyLRScheduler):
    """Warms up twice: all but the encoder, which has rate 0 meanwhile, then the whole network; then decays.

    The fine-tuning schedule that did best for convolutional networks in the OpenMind benchmark (Wald et al. 2024).
    The first parameter group holds the rest of the network, the second the encoder.
    """

    def _factors(self, step: int) -> list[float]:
        if step < self.warmup_steps:
            return [self._warm_up_and_decay(step, self.warmup_steps), 0.0]
        return [self._warm_up_and_decay(step, 2 * self.warmup_steps)] * 2
