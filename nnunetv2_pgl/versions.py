"""Which versions something was made with."""

from __future__ import annotations

import importlib.metadata
import platform

import numpy as np
import torch

from nnunetv2_pgl import __version__


def nnunet_version() -> str:
    """The installed nnU-Net's, "unknown" where it has no metadata (a tree on ``PYTHONPATH``): it has no constant."""
    try:
        return importlib.metadata.version("nnunetv2")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def versions() -> dict[str, str]:
    """Those that decide what a run computes, by name."""
    return {
        "python": platform.python_version(),
        "nnunetv2-pgl": __version__,
        "nnunetv2": nnunet_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }
