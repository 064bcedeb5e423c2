"""Keeps freed memory for the next training step, on a CPU."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Tells glibc's allocator not to hand freed memory back to the system; returns whether that was possible.

    By default every tensor of more than 32 MiB is mapped anew when it is made and unmapped when it is freed, so each
    step asks the system for the same zeroed pages again: 680,000 page faults and a quarter of the time of a step of 32
    views of 16 x 96 x 96. Kept, the step's peak stays reserved, which a training needs anyway.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False  # another C library
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
