"""Pairs per second at the paper's batch and at the largest that fits; the batch stays on the device."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Iterator
from statistics import median

import torch

from benchmarks.gpu.in_place import steps_in_place
from benchmarks.peaks import peak_of
from benchmarks.report import Figure, Settings, alternating
from benchmarks.step import default_batch, paper, times
from pretraining.training.memory import is_out_of_memory

_FIRST_TRY, _NEXT_TRY = 0.95, 0.93  # of the memory there is; of the pairs that did not fit


def measure(settings: Settings) -> Iterator[Figure]:
    """The paper's batch; the largest one from the line through two peaks, tried, and less where it does not fit."""
    usual = 4 if settings.quick else default_batch(settings.device)
    rate, many = _rate_and_peak(settings, usual)
    yield Figure("samples_per_second", rate, "pairs/s", f"steps of {usual} pairs in place")
    _, few = _rate_and_peak(settings, usual // 2)
    per_pair = (many - few) / (usual - usual // 2)
    pairs = usual
    if settings.device.type == "cuda":
        most = _FIRST_TRY * torch.cuda.get_device_properties(settings.device).total_memory
        pairs = int((most - many) / per_pair) + usual
    while pairs > usual:
        try:
            rate, peak = _rate_and_peak(settings, pairs)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            traceback.clear_frames(error.__traceback__)  # they hold the networks
            gc.collect()
            pairs = int(_NEXT_TRY * pairs)
        else:
            yield Figure("largest_batch_peak_gib", peak / 2**30, "GiB", "allocated by a step of the largest batch")
            break
    yield Figure("largest_batch", max(pairs, usual), "pairs", "that fit, of two views of the default size")
    yield Figure("samples_per_second_at_largest_batch", rate, "pairs/s", "steps of so many pairs in place")


def _rate_and_peak(settings: Settings, pairs: int) -> tuple[float, int]:
    """Pairs per second, and bytes of a step once cuDNN has chosen its kernels."""
    step = steps_in_place(settings, paper(settings, pairs))
    step()
    peak = peak_of(step, settings.device)
    in_a_row, rounds = (1, 1) if settings.quick else (5, 3)
    calls = {"steps": times(in_a_row, step, settings.device)}
    seconds = alternating(calls, rounds, warmup=0, limit=settings.share(0.15))
    del step
    gc.collect()
    if settings.device.type == "cuda":
        torch.cuda.empty_cache()
    return pairs * in_a_row / median(seconds["steps"]), peak
