"""Training steps on one batch that stays on the device: what a step takes once data loading is left out."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count, repeat

from benchmarks.report import Settings
from benchmarks.step import make_run
from pretraining.settings.config import PretrainConfig


def steps_in_place(settings: Settings, config: PretrainConfig) -> Callable[[], object]:
    """A function that makes the next step, of ``config.batch_size`` pairs, on new networks."""
    run = make_run(settings, config, steps=1, workers=0)
    with run.loader.batches() as batches:
        batch = next(batches)
    numbers, same = count(), repeat(batch)
    return lambda: run.step(next(numbers), same)
