"""Peaks of memory while something is computed."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.processes import forget_peak, peak


def peak_of(function: Callable[[], object], device: torch.device) -> int:
    """Bytes that a function takes at most, with what was taken before: allocated on a GPU, else resident."""
    if device.type != "cuda":
        forget_peak()
        function()
        return peak()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)
