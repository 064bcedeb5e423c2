from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_PROBE = """
import resource, sys, torch
from pretraining.training.heap import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
faults = []
for _ in range(8):  # some find a new place in the heap
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(64 << 20, dtype=torch.uint8)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="tells glibc's allocator")
def test_a_large_tensor_is_made_again_of_the_same_pages() -> None:
    faults = {
        mode: int(subprocess.run([sys.executable, "-c", _PROBE, mode], capture_output=True, check=True).stdout)
        for mode in ("default", "keep")
    }
    assert faults["keep"] < 100
    assert faults["default"] > faults["keep"]
