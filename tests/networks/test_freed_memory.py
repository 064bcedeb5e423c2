from __future__ import annotations

import ctypes
import json
import platform
import subprocess
import sys

import pytest

SIZE = 64 << 20

# glibc's own account: bytes mapped one by one for large blocks, and bytes of the heap, freed ones included.
_PROBE = """
import ctypes, json, sys, torch
from nnunetv2_pgl.networks.hardware import keep_freed_memory

class Account(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
        "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Account
if sys.argv[1] == "keep":
    assert keep_freed_memory()
before = mallinfo2()
tensor = torch.zeros(int(sys.argv[2]), dtype=torch.uint8)
alive = mallinfo2()
del tensor
after = mallinfo2()
kept = after.arena + after.hblkhd - before.arena - before.hblkhd
print(json.dumps({"mapped": alive.hblkhd - before.hblkhd, "kept": kept}))
"""


def account(mode: str) -> dict[str, int]:
    result = subprocess.run([sys.executable, "-c", _PROBE, mode, str(SIZE)], capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not hasattr(ctypes.CDLL(None), "mallinfo2"),
    reason="asks glibc's allocator for its account (2.33 or newer)",
)
def test_a_freed_tensor_s_memory_stays() -> None:
    default, keep = account("default"), account("keep")
    assert default["mapped"] >= SIZE  # mapped for itself,
    assert default["kept"] < SIZE // 8  # and handed back
    assert keep["mapped"] == 0
    assert keep["kept"] > SIZE - SIZE // 8  # the heap had some free memory before
