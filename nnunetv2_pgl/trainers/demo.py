"""``nnUNetTrainerPGL_demo``: what `pgl_demo` trains with, about two minutes on two CPU cores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from nnunetv2_pgl.trainers.optimisation import WarmupPolyLRScheduler
from nnunetv2_pgl.trainers.pgl import nnUNetTrainerPGL


class TrainsWithAdamW(nnUNetTrainerPGL):
    """`nnUNetTrainerPGL` with AdamW, for trainings too short for nnU-Net's SGD."""

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, WarmupPolyLRScheduler]:
        """AdamW with the same schedule."""
        fused = True if self.device.type == "cpu" else None
        optimizer = torch.optim.AdamW(self.network.parameters(), self.initial_lr, weight_decay=1e-2, fused=fused)
        return optimizer, self.learning_rates(optimizer)


class nnUNetTrainerPGL_demo(TrainsWithAdamW):
    """8 epochs of 25 single patches, AdamW and no mirroring.

    That is too short to learn which kidney is the right one in mirrored images.
    """

    training_settings: ClassVar[Mapping[str, Any]] = {
        "initial_lr": 2e-3,
        "num_epochs": 8,
        "num_iterations_per_epoch": 25,
        "num_val_iterations_per_epoch": 2,
        "batch_size": 1,
    }

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:  # noqa: N802 - nnU-Net's name
        """nnU-Net's, without mirroring, in training and in prediction."""
        *rotation_and_size, _ = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        self.inference_allowed_mirroring_axes = None
        return (*rotation_and_size, None)
