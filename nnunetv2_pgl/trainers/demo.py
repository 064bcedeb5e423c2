"""``nnUNetTrainerPGL_demo``: what `pgl_demo` trains with, minutes on two CPU cores."""

from __future__ import annotations

from typing import Any

import torch

from nnunetv2_pgl.trainers.optimisation import WarmupPolyLRScheduler
from nnunetv2_pgl.trainers.pgl import nnUNetTrainerPGL


class nnUNetTrainerPGL_demo(nnUNetTrainerPGL):
    """`nnUNetTrainerPGL` with 10 epochs of 30 iterations, and AdamW: with so few, nnU-Net's SGD hardly gets going."""

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's signature
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.initial_lr = 1e-3
        self.num_epochs = 10
        self.num_iterations_per_epoch = 30
        self.num_val_iterations_per_epoch = 2

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, WarmupPolyLRScheduler]:
        """AdamW with the same schedule."""
        fused = True if self.device.type == "cpu" else None
        optimizer = torch.optim.AdamW(self.network.parameters(), self.initial_lr, weight_decay=1e-2, fused=fused)
        return optimizer, self.learning_rates(optimizer)
