"""Trainers of the comparisons in docs/results, for two CPU cores.

export nnUNet_extTrainer="$(pgl_extension):$PWD/benchmarks/trainers"
"""

from __future__ import annotations

from typing import Any

import torch

from nnunetv2_pgl.trainers import nnUNetTrainerPGL, nnUNetTrainerPGL_demo, nnUNetTrainerPGLScratch
from nnunetv2_pgl.trainers.lengths import with_length

_SHORT = {"num_epochs": 10, "num_iterations_per_epoch": 16, "num_val_iterations_per_epoch": 2}
nnUNetTrainerPGL_short = with_length(nnUNetTrainerPGL, "short", **_SHORT)
nnUNetTrainerPGLScratch_short = with_length(nnUNetTrainerPGLScratch, "short", **_SHORT)


class nnUNetTrainerPGL_minutes(nnUNetTrainerPGL_demo):
    """The demo's schedule (AdamW, 10 epochs of 30 iterations) with two patches per batch: minutes on one core."""

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's signature
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.configuration_manager.configuration["batch_size"] = 2
