"""Peaks of memory of a training step, for the table in docs/performance.md."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace

import torch

from benchmarks.peaks import peak_of
from benchmarks.report import Figure, Settings
from benchmarks.step import make_run, next_step, paper, view_size
from pretraining.settings.config import PretrainConfig, recommended

_GIB = 2**30


def measure(settings: Settings) -> Iterator[Figure | str]:
    """Peaks of both presets at each batch of the table, in the first step and later."""
    batches = (1, 2) if settings.quick else (8, 16, 32, 64, 128)
    for name, config in (("paper", paper(settings, 1)), ("recommended", _recommended(settings))):
        row = []
        for batch in batches:
            searching, later = _peaks(settings, replace(config, batch_size=batch))
            row.append(later)
            about = f"{name} settings, {batch} pairs"
            yield Figure(f"memory_gib_{name}_{batch}", later / _GIB, "GiB", f"{about}: peak of a step")
            yield Figure(
                f"memory_gib_{name}_{batch}_first", searching / _GIB, "GiB", f"{about}: while cuDNN tries its kernels"
            )
        yield f"docs/performance.md, {name}: | GiB | " + " | ".join(f"{peak / _GIB:.1f}" for peak in row) + " |"
    if settings.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(settings.device)
        outside = total - free - torch.cuda.memory_reserved(settings.device)
        yield Figure("memory_gib_context", outside / _GIB, "GiB", "CUDA context and whatever else is on the card")


def _recommended(settings: Settings) -> PretrainConfig:
    config = recommended()
    return replace(config, views=replace(config.views, size=view_size(settings)))


def _peaks(settings: Settings, config: PretrainConfig) -> tuple[int, int]:
    """Bytes of the first step, in which kernels are chosen, and of the third."""
    run = make_run(settings, config, steps=3, workers=0)
    with run.loader.batches() as batches:
        step = next_step(run, batches)
        first = peak_of(step, settings.device)
        step()
        later = peak_of(step, settings.device)
    del run, step, batches
    gc.collect()
    if settings.device.type == "cuda":
        torch.cuda.empty_cache()
    return first, later
