"""Iterations of nnU-Net's trainers on the device: the segmenter, and a plan's own network."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from benchmarks.nnunet_networks import NETWORKS, make_batch, make_plans, make_trainer, nnunet_folders
from nnunetv2_pgl.networks import PGLSegmenter
from nnunetv2_pgl.networks.hardware import unwrapped
from nnunetv2_pgl.trainers.plans import PLANS_KEY
from tests.devices import DEVICE, needs_device
from tests.planned_networks import small_network

pytestmark = [pytest.mark.gpu, needs_device, pytest.mark.usefixtures("narrow")]


@pytest.mark.parametrize("architecture", ["resnet50", "plan"])
def test_iterations(architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net's own precision: float16 and a loss scale on CUDA, which may skip the first iterations."""
    monkeypatch.setenv("nnUNet_compile", "f")
    with nnunet_folders(tmp_path):
        plans = make_plans(NETWORKS["pgl"][1], (16, 32, 32))
        network = small_network("resenc", (8, 16, 24))
        plans["configurations"]["3d_fullres"]["architecture"] = {
            "network_class_name": network.class_name,
            "arch_kwargs": dict(network.kwargs),
            "_kw_requires_import": list(network.requires_import),
        }
        plans[PLANS_KEY] = {"architecture": architecture}
        trainer = make_trainer("pgl", plans, DEVICE)
        assert isinstance(unwrapped(trainer.network), PGLSegmenter) == (architecture == "resnet50")
        assert next(trainer.network.parameters()).device == DEVICE
        batch = make_batch(trainer)
        trainer.network.train()
        trainer.lr_scheduler.step(trainer.warmup_epochs)  # the full rate
        losses = [float(trainer.train_step(batch)["loss"]) for _ in range(15)]
        assert all(map(math.isfinite, losses))
        assert min(losses[-3:]) < losses[0] - 0.1
        trainer.network.eval()
        with torch.no_grad():
            assert math.isfinite(trainer.validation_step(batch)["loss"])
