"""A short timing of the training steps of a comparison, and the size of what a training saves."""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from nnunetv2.paths import nnUNet_preprocessed

from nnunetv2_pgl.environment import variable
from nnunetv2_pgl.trainers import nnUNetTrainerPGL
from nnunetv2_pgl.trainers.plans import PLANS_KEY, RANDOM, RUN_KEY
from pretraining.comparison.comparison import Comparison
from pretraining.comparison.folder import read_json
from pretraining.comparison.inits import random_network
from pretraining.comparison.plan_files import base_plans
from pretraining.comparison.trainer import find_trainer

_STEPS = 3


@dataclass(frozen=True)
class StepTiming:
    """What a training consists of, and what its parts take.

    Attributes:
        epochs: Of the trainer.
        iterations: Per epoch.
        validation_iterations: Per epoch.
        step: Seconds of a training step.
        validation_step: Seconds of a validation step.
        checkpoint: Bytes of a checkpoint: weights and the optimiser's state.
    """

    epochs: int
    iterations: int
    validation_iterations: int
    step: float
    validation_step: float
    checkpoint: int

    @property
    def seconds(self) -> float:
        """Of a training's steps; loading, saving, validation of whole scans and prediction come on top."""
        return self.epochs * (self.iterations * self.step + self.validation_iterations * self.validation_step)


def time_steps(comparison: Comparison) -> StepTiming:
    """Times some steps of the trainer on random voxels, with the plans' patch and batch, on the device.

    nnU-Net's trainers write into their results folder from the start; here that is a temporary one.

    Raises:
        RuntimeError: The device is too small, or missing (PyTorch without CUDA: AssertionError).
    """
    if comparison.device == "cpu":
        torch.set_num_threads(multiprocessing.cpu_count())  # as nnUNetv2_train does
    with tempfile.TemporaryDirectory() as folder, variable("nnUNet_results", folder), redirect_stdout(StringIO()):
        trainer = _trainer(comparison)
        trainer.initialize()
        trainer.network.train()
        batch = _random_batch(trainer)
        step = _seconds(lambda: trainer.train_step(batch))
        trainer.network.eval()
        with torch.no_grad():
            validation_step = _seconds(lambda: trainer.validation_step(batch))
        saved = _bytes([trainer.network.state_dict(), trainer.optimizer.state_dict()])
    lengths = trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch
    return StepTiming(*lengths, step, validation_step, saved)


def random_trainer(comparison: Comparison) -> nnUNetTrainerPGL:
    """The trainer of the random start, not initialised; what it writes from the start is removed."""
    with tempfile.TemporaryDirectory() as folder, variable("nnUNet_results", folder), redirect_stdout(StringIO()):
        return _trainer(comparison)


def _trainer(comparison: Comparison) -> nnUNetTrainerPGL:
    """The trainer of the random start."""
    settings = comparison.settings
    plans = read_json(base_plans(settings))
    plans[PLANS_KEY] = random_network(comparison.inits)
    cases = {"training_cases": ["none"], "validation_cases": ["none"]}  # no data are read
    plans[RUN_KEY] = {"initialisation": RANDOM, "seed": 0, "folds": {"0": cases}}
    dataset_json = read_json(Path(nnUNet_preprocessed) / settings.dataset / "dataset.json")
    trainer = find_trainer(settings.trainer)
    return trainer(
        {**plans, "continue_training": False}, settings.configuration, 0, dataset_json, torch.device(comparison.device)
    )


def _random_batch(trainer: nnUNetTrainerPGL) -> dict[str, Any]:
    """Noise, and labels or regions of the shape that nnU-Net's transforms hand over: one for each output."""
    patch, size = trainer.configuration_manager.patch_size, trainer.batch_size
    labels = trainer.label_manager
    channels, values = (
        (len(labels.foreground_regions), 2) if labels.has_regions else (1, len(labels.foreground_labels) + 1)
    )
    scales = trainer._get_deep_supervision_scales() or [[1.0] * len(patch)]
    sizes = [[round(n * scale) for n, scale in zip(patch, scales_of_axes, strict=True)] for scales_of_axes in scales]
    targets = [torch.randint(0, values, (size, channels, *shape)) for shape in sizes]
    target = targets if trainer.enable_deep_supervision else targets[0]
    return {"data": torch.randn(size, trainer.num_input_channels, *patch), "target": target}


def _bytes(state: Any) -> int:
    """Of all tensors in nested lists and dictionaries."""
    if isinstance(state, torch.Tensor):
        return state.nbytes
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list) else ()
    return sum(_bytes(value) for value in values)


def _seconds(step: Callable[[], object]) -> float:
    """Median of some steps after a first one; a step ends with its loss on the host, so a GPU is waited for."""
    step()
    taken = []
    for _ in range(_STEPS):
        begin = time.perf_counter()
        step()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)
