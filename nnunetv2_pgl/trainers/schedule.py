"""Learning rate of fine-tuning."""

from __future__ import annotations

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler


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
        if current_step < self.warmup_steps:
            factor = (current_step + 1) / (self.warmup_steps + 1)
        else:
            factor = (1 - (current_step - self.warmup_steps) / (self.max_steps - self.warmup_steps)) ** self.exponent
        for group in self.optimizer.param_groups:
            group["lr"] = self.initial_lr * factor
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]
