"""Batches for single steps of small networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pretraining.objectives.methods import OBJECTIVES
from pretraining.settings.config import PretrainConfig
from pretraining.views import (
    IntensityRanges,
    ViewPairBatch,
    ViewPairDataset,
    ViewSettings,
)
from tests.planned_networks import small_network

NO_CHANGES = IntensityRanges(noise_probability=0, blur_probability=0, brightness_probability=0, gamma_probability=0)
CONFIG = PretrainConfig(
    datasets=(),
    method="pgl_nce",
    architecture="plain",
    network=small_network(features=(4, 8)).to_dict(),
    padding="replicate",
    views=ViewSettings(size=(8, 8, 8), intensity=NO_CHANGES),
    batch_size=4,
    optimizer="adamw",
    learning_rate=1e-2,
    target_decay=0.9,
    hidden_channels=8,
    out_channels=8,
)
STEPS, WARMUP = 5, 2


@dataclass(frozen=True)
class Scan:
    """Noise."""

    shape: tuple[int, int, int, int] = (1, 16, 16, 16)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    lateral_axis: int | None = None

    def read(self, channel: int, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        z, y, x = (slice(a, b) for a, b in zip(start, stop, strict=True))
        return np.random.default_rng(0).normal(size=self.shape[1:]).astype(np.float32)[z, y, x]


def parts_of(config: PretrainConfig, steps: int) -> list[ViewPairBatch]:
    dataset = ViewPairDataset([Scan()], config.views, 0, OBJECTIVES[config.method].objective.draw)
    size = config.batch_size // config.accumulate
    draws = range(steps * config.batch_size)
    return [ViewPairBatch.collate([dataset[d, 0] for d in draws[i : i + size]]) for i in draws[::size]]
