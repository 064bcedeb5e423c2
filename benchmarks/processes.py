"""Memory and input of Linux processes, from /proc, and Python children to measure in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 2**20
_REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Memory:
    """Resident memory of a process, in bytes.

    Attributes:
        resident: All of it (RSS), also what it shares with others and mapped files.
        proportional: Each page divided by the processes that share it (PSS).
        private: Pages that no other process maps (USS), mapped files among them.
        anonymous: Without mapped files; what the system cannot drop.
    """

    resident: int
    proportional: int
    private: int
    anonymous: int


def memory_of(pid: int) -> Memory:
    """Memory of a process now.

    Raises:
        OSError: If the process has ended, or the system has no /proc (only Linux has).
    """
    values = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, amount, *_ = line.split()
        values[name.rstrip(":")] = 1024 * int(amount)
    private = values["Private_Clean"] + values["Private_Dirty"]
    return Memory(values["Rss"], values["Pss"], private, values["Anonymous"])


def forget_peak() -> int:
    """Resets this process's peak, and returns its resident memory in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> int:
    """Largest resident memory of this process since `forget_peak`, in bytes."""
    return _status("VmHWM")


def bytes_read() -> int:
    """What this process has read so far, from the disk or from memory that caches it."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(lines[0].split()[1])


def run_child(module: str, arguments: Sequence[str], **environment: str) -> Any:
    """Runs ``python -m module`` with one thread, and returns the JSON that its last line holds.

    Raises:
        RuntimeError: If it fails; what it printed tells why.
    """
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=_REPOSITORY, env=variables, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[2:])} failed:\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
