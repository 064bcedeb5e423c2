"""What a run depends on besides its arguments: environment variables, CPU cores, and versions of packages."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from nnunetv2_pgl import __version__


@contextmanager
def environment_variable(name: str, value: str) -> Iterator[None]:
    """Sets an environment variable for a while; nnU-Net takes most of its settings from these."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def usable_cores() -> int:
    """Cores that this process may run on, at most what OMP_NUM_THREADS allows.

    nnU-Net takes as many threads as the machine has cores. On a part of them (taskset, a Slurm job's share) these wait
    for each other: a step took 4.8 times as long with two threads on one core as with one.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(asked)) if asked.isdigit() and int(asked) > 0 else cores


def nnunet_version() -> str:
    """The installed nnU-Net's, "unknown" where it has no metadata (a tree on ``PYTHONPATH``): it has no constant."""
    try:
        return importlib.metadata.version("nnunetv2")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def versions() -> dict[str, str]:
    """Versions that decide what a run computes, by name."""
    return {
        "python": platform.python_version(),
        "nnunetv2-pgl": __version__,
        "nnunetv2": nnunet_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }
