"""Steps of every method on the device, with each encoder: the loss is finite and falls, and nobody waits."""

from __future__ import annotations

from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunetv2_pgl.methods import METHODS
from pretraining.data import Volume
from pretraining.launching.distributed import Processes
from pretraining.settings.config import PretrainConfig
from pretraining.training.loop import Runtime, TrainingLoop
from pretraining.training.pool import Pool
from pretraining.training.progress import RunLog
from pretraining.views import IntensityRanges, ViewPairBatch, ViewSettings
from tests.devices import DEVICE, needs_cuda, needs_device
from tests.planned_networks import small_network

pytestmark = [pytest.mark.gpu, needs_device, pytest.mark.usefixtures("narrow")]

STEPS = 24
UNCHANGED = IntensityRanges(noise_probability=0, blur_probability=0, brightness_probability=0, gamma_probability=0)
CHANGED = IntensityRanges(noise_probability=1, blur_probability=1, brightness_probability=1, gamma_probability=1)
CONFIG = PretrainConfig(
    ("Dataset501_Small",),
    views=ViewSettings((8, 32, 32), intensity=UNCHANGED),
    epochs=1,
    batch_size=4,
    pairs_per_epoch=4 * STEPS,
    optimizer="adamw",
    learning_rate=2e-3,
    warmup_epochs=0,
    target_decay=0.9,
    hidden_channels=64,
    out_channels=32,
)
ENCODERS: dict[str, dict[str, Any]] = {
    "paper": {},
    "recommended": {"norm": "instance", "padding": "replicate", "strides": (4, 8, 8), "learning_rate": 5e-3},
    "resenc": {"architecture": "resenc_m", "network": small_network("resenc", (8, 16, 32)).to_dict()},
}


def run_and_batch(config: PretrainConfig, scans: list[Volume], folder: Path) -> tuple[TrainingLoop, ViewPairBatch]:
    run = TrainingLoop(config, Pool(scans, scans[:1]), folder, Runtime(DEVICE.type, Processes(), 0), RunLog(None))
    with run.loader.batches() as batches:
        return run, next(batches)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("method", METHODS)
def test_the_loss_falls(method: str, encoder: str, scans: list[Volume], tmp_path: Path) -> None:
    """On one batch: of it every method can learn."""
    run, batch = run_and_batch(replace(CONFIG, method=method, **ENCODERS[encoder]), scans, tmp_path)
    losses = torch.stack([run.step(number, repeat(batch))[0][0] for number in range(STEPS)]).cpu()
    assert losses.isfinite().all()
    assert losses[-4:].mean() < 0.93 * losses[:4].mean()


@needs_cuda
@pytest.mark.parametrize("optimizer", ["lars", "adamw", "nnunet"])
@pytest.mark.parametrize("method", METHODS)
def test_the_host_does_not_wait(method: str, optimizer: Any, scans: list[Volume], tmp_path: Path) -> None:
    """torch raises an error where a step waits for the device, once memory and kernels are chosen."""
    config = replace(CONFIG, method=method, optimizer=optimizer, views=ViewSettings((8, 32, 32), intensity=CHANGED))
    run, batch = run_and_batch(config, scans, tmp_path)
    for number in range(2):
        run.step(number, repeat(batch))
    torch.cuda.set_sync_debug_mode("error")
    try:
        run.step(2, repeat(batch))
    finally:
        torch.cuda.set_sync_debug_mode("default")
