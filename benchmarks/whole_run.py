"""Goal: what a run adds to its networks' arithmetic: a whole run over its steps alone.

The run is the one of `pgl_pretrain` with its default settings, from stored scans to its last state, but for the
arithmetic. A step takes its batch from the data loader and is over after 100 ms, and what the validation looks up are
random maps of the encoder's size. Loading, rendering of the validation, log, curves and saving of the whole state are
what they are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.report import Figure, Settings
from benchmarks.scans import store_scans
from nnunetv2_pgl.networks import Encoder
from pretraining.data import Volume
from pretraining.launching.distributed import Processes
from pretraining.settings.config import PretrainConfig, recommended
from pretraining.training import loop
from pretraining.training.correspondence import measure_correspondence
from pretraining.training.pretrain import loading_workers
from pretraining.training.progress import RunLog
from pretraining.views import ViewPairBatch

_EPOCHS, _STEPS, _SECONDS = 50, 14, 0.1
_OVERSLEPT = 0.003  # seconds that a sleep may take longer


def measure(settings: Settings) -> list[Figure]:
    """Compares a run of stub steps with its steps, after a run of one step that imports the libraries."""
    epochs = 2 if settings.quick else _EPOCHS
    scans = store_scans(settings.folder / "scans", 2 if settings.quick else 8)
    base = recommended()
    config = replace(base, datasets=("benchmark",), epochs=epochs, pairs_per_epoch=_STEPS * base.batch_size)
    _whole_run(replace(config, epochs=1, pairs_per_epoch=base.batch_size), scans, settings, "warm_up")
    seconds = _whole_run(config, scans, settings, "run")
    steps = epochs * _STEPS * _SECONDS
    return [
        Figure("stub_steps_seconds", steps, "s", f"{epochs} epochs of {_STEPS} steps of {_SECONDS * 1000:g} ms"),
        Figure("whole_run_seconds", seconds, "s", "the run from its networks to its last state"),
        Figure("whole_run_over_steps", seconds / steps, "", "a whole run over its steps alone", "<= 1.05"),
    ]


class _StubStepper:
    """Takes a batch and waits in the place of its computation."""

    def __init__(self, *_: Any) -> None:
        pass

    def __call__(self, number: int, batches: Iterator[ViewPairBatch]) -> tuple[Tensor, float]:
        end = time.perf_counter() + _SECONDS
        next(batches)
        time.sleep(max(0.0, end - time.perf_counter() - _OVERSLEPT))
        while time.perf_counter() < end:
            pass
        return torch.tensor([4.0, 0.5, 0.5, 0.5]), 0.0


class _StubEncoder:
    """Maps of random features, as large as an encoder's."""

    def __init__(self, encoder: Encoder, stage: int):
        self.feature_grid, self.memory_format = encoder.feature_grid, encoder.memory_format
        self.training = encoder.training
        self._channels = encoder.stage_channels[stage]

    def __call__(self, views: Tensor, stage: int) -> list[Tensor]:
        stride = self.feature_grid(views.shape[2:], stage).stride
        cells = [math.ceil(n / s) for n, s in zip(views.shape[2:], stride, strict=True)]
        return [torch.rand(len(views), self._channels, *cells, device=views.device)]

    def eval(self) -> None:
        pass

    def train(self, mode: bool) -> None:
        pass


def _whole_run(config: PretrainConfig, scans: list[Volume], settings: Settings, name: str) -> float:
    """Seconds of the run."""
    runtime = loop.Runtime(settings.device.type, Processes(), loading_workers(settings.device.type))
    folder = settings.folder / name
    folder.mkdir()
    pool = loop.Pool(scans, scans[:1])

    def measured(encoder: Encoder, *arguments: Any) -> Any:
        return measure_correspondence(_StubEncoder(encoder, arguments[-1]), *arguments)

    with mock.patch.object(loop, "Stepper", _StubStepper), mock.patch.object(loop, "measure_correspondence", measured):
        started = time.perf_counter()
        loop.train(config, pool, folder, runtime, RunLog(None), resume=False)
        return time.perf_counter() - started
