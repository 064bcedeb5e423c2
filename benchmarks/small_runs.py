"""Small runs of ``pgl_pretrain`` for `benchmarks.reliability`: in float32 on one thread, so they are repeatable."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nnunetv2_pgl.formats.weights_only import load_weights_only
from pretraining.demo.datasets import write_unlabelled_dataset

_FIXED = (
    *("-d", "501", "-a", "plain", "-patch", "16", "16", "16", "-b", "2", "-val_scans", "1"),
    *("-spacing", "native", "-save_every", "1"),
)
# In float32 on every CPU.
_COMMAND = """
from pretraining.training import loop
loop.autocast_type = lambda device: None
from pretraining.cli import pretrain_entry
if __name__ == "__main__":
    pretrain_entry()
"""


@dataclass(frozen=True)
class SmallRuns:
    """Runs on one dataset below a root; a run is known by its name.

    Attributes:
        root: Gets nnU-Net's folders, and the output of each run.
        options: Of all runs, besides dataset, network and view size.
        processes: Workers of the preprocessing.
    """

    root: Path
    options: tuple[str, ...]
    processes: int = 1

    def write_scans(self, count: int, shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> None:
        """Writes the dataset; shape (z, y, x), spacing in mm."""
        self.root.mkdir(exist_ok=True)
        self.command.write_text(_COMMAND)
        write_unlabelled_dataset(self.root / "nnUNet_raw", 501, "Small", count, 0, shape=shape, spacing=spacing)

    @property
    def command(self) -> Path:
        """A script, since processes that are spawned need one to come back to."""
        return self.root / "pretrain.py"

    @property
    def store(self) -> Path:
        """Where the preprocessed scans are."""
        return self.root / "nnUNet_preprocessed" / "Dataset501_Small"

    def folder(self, name: str) -> Path:
        """The run folder."""
        return self.root / "nnUNet_results" / "PGL" / name

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """Starts or continues a run, in a new process group."""
        folders = {each: str(self.root / each) for each in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        few = {"nnUNet_n_proc_DA": "1", "OMP_NUM_THREADS": "1"}
        arguments = [*_FIXED, *self.options, "-o", name, "-device", "cpu", "-np", str(self.processes)]
        if (self.folder(name) / "checkpoint_latest.pth").exists():
            arguments = ["-o", name, "--c", "-device", "cpu", "-np", str(self.processes)]
        with (self.root / f"{name}.txt").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, str(self.command), *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **folders, **few, "PYTHONPATH": os.pathsep.join(sys.path)},
                start_new_session=True,
            )

    def finish(self, name: str) -> None:
        """Brings a run to its end, or exits with its output."""
        if self.start(name).wait() != 0:
            sys.exit(f"{name} ended by itself:\n{self.output(name)}")

    def output(self, name: str) -> str:
        """The end of a run's output."""
        return (self.root / f"{name}.txt").read_text(errors="replace")[-4000:]

    def state(self, name: str) -> dict[str, Any]:
        """The saved state, which must be whole; epoch 0 if there is none yet."""
        latest = self.folder(name) / "checkpoint_latest.pth"
        return load_weights_only(latest) if latest.exists() else {"epoch": 0}

    def epochs_done(self, name: str) -> int:
        """The number of its recorded epochs, each line of which must be whole."""
        records = self.folder(name) / "metrics.jsonl"
        return len([json.loads(line) for line in records.read_text().splitlines()]) if records.exists() else 0


def kill(process: subprocess.Popen[bytes]) -> None:
    """Ends a run with all its processes, at once."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def are_equal(runs: SmallRuns, one: str, other: str) -> bool:
    """Compares two finished runs to the bit, and prints what is equal."""
    states = [runs.state(name) for name in (one, other)]
    losses = [[record["loss"] for record in state["history"]] for state in states]
    results = {
        f"losses of {len(losses[0])} epochs": losses[0] == losses[1],
        "networks": _equal(*(state["objective"] for state in states)),
        "optimiser": _equal(*(state["optimizer"] for state in states)),
    }
    for name, equal in results.items():
        print(f"{name} equal to the bit: {equal}", flush=True)
    return all(results.values())


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other)
