"""What a user would write beside the package's trainers: the same, but over in seconds."""

from __future__ import annotations

import os
from typing import Any

import torch

from nnunetv2_pgl.trainers import nnUNetTrainerPGL, nnUNetTrainerPGLScratch


class _Short:
    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's signature
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)  # type: ignore[call-arg]
        self.num_epochs = int(os.environ.get("EPOCHS", "1"))
        self.num_iterations_per_epoch = 2
        self.num_val_iterations_per_epoch = 1


class nnUNetTrainerPGL_test(_Short, nnUNetTrainerPGL):
    """`nnUNetTrainerPGL` of ``EPOCHS`` epochs (default: 1) of two iterations."""


class nnUNetTrainerPGLScratch_test(_Short, nnUNetTrainerPGLScratch):
    """`nnUNetTrainerPGLScratch` of ``EPOCHS`` epochs (default: 1) of two iterations."""
