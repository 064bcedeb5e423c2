"""Which kernels a training step spends its time in, and how much of it the device has something to do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.report import Figure, Settings, synchronise
from benchmarks.step import default_batch, make_run, next_step, paper

_WARMUP, _NAMED = 5, 5


def measure(settings: Settings) -> Iterator[Figure | str]:
    """Profiles steps of the paper's settings, data loading included; the text has the thirty slowest kernels."""
    on_gpu = settings.device.type == "cuda"
    warmup, profiled = (1, 1) if settings.quick else (_WARMUP, 5)
    batch = 2 if settings.quick else default_batch(settings.device)
    run = make_run(settings, paper(settings, batch), warmup + profiled)
    with run.loader.batches() as batches:
        step = next_step(run, batches)
        for _ in range(warmup):
            step()
        synchronise(settings.device)
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        with profile(activities=activities) as profiler:
            begin = time.perf_counter()
            for _ in range(profiled):
                step()
            synchronise(settings.device)
            wall = time.perf_counter() - begin
    averages = profiler.key_averages()
    kernels = sorted(averages, key=lambda event: _microseconds(event, on_gpu), reverse=True)
    kernels = [kernel for kernel in kernels if _is_kernel(kernel) or not on_gpu]
    total = sum(_microseconds(kernel, on_gpu) for kernel in kernels)
    yield Figure(
        "device_busy", total / 1e6 / wall, "", "time in kernels and copies over that of the steps, while profiled"
    )
    for rank, kernel in enumerate(kernels[:_NAMED], start=1):
        yield Figure(
            f"kernel_{rank}_share", _microseconds(kernel, on_gpu) / total, "", f"{kernel.count} x {kernel.key[:120]}"
        )
    yield averages.table(
        sort_by="self_cuda_time_total" if on_gpu else "self_cpu_time_total", row_limit=30, max_name_column_width=90
    )


def _is_kernel(event: Any) -> bool:
    """Not an operator or a stretch of the program, whose kernels are listed as well."""
    return event.device_type != torch.autograd.DeviceType.CPU and not getattr(event, "is_user_annotation", False)


def _microseconds(event: Any, on_gpu: bool) -> float:
    """Of the kernels on a GPU, else of the operators themselves."""
    if not on_gpu:
        return event.self_cpu_time_total
    return getattr(event, "self_device_time_total", None) or getattr(event, "self_cuda_time_total", 0.0)
