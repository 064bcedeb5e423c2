"""Where tests with the marker ``gpu`` run: on CUDA, or where PGL_TEST_DEVICE says, to try them without a GPU.

PGL_TEST_DEVICE=cpu python -m pytest -m gpu tests/gpu
"""

from __future__ import annotations

import os

import pytest
import torch

_KIND = os.environ.get("PGL_TEST_DEVICE", "cuda")
DEVICE = torch.device(_KIND, 0) if _KIND == "cuda" else torch.device(_KIND)

needs_device = pytest.mark.skipif(
    DEVICE.type == "cuda" and not torch.cuda.is_available(),
    reason="torch sees no CUDA device here; PGL_TEST_DEVICE=cpu tries these tests on the CPU",
)
needs_cuda = pytest.mark.skipif(DEVICE.type != "cuda", reason="only CUDA has this")
