"""Kills a pre-training at random moments, continues it each time, and compares it with one that nobody has disturbed.

python -m benchmarks.reliability [--kills 100] [--epochs 400] [--seed 0]

Needs Linux or macOS; some 35 minutes. Two runs of `pgl_pretrain` with a small network, tiny views and one loading
process, in float32 on one thread. Each attempt of the first is a process group that is ended with SIGKILL, so moments
fall on starting, reading, steps, saving and drawing alike. After each the state on disk has to be whole and no older
than before, and temporary files must not pile up. At the end losses, weights and the optimiser's state have to be those
of the undisturbed run, to the bit.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from nnunetv2_pgl.checkpoint import load_plain
from pretraining.demo.datasets import write_unlabelled_dataset

_RUN = (
    *("-d", "501", "-a", "plain", "-patch", "16", "16", "16", "-b", "2", "-pairs", "4", "-val_scans", "1"),
    *("-spacing", "native", "-save_every", "1", "-np", "1"),
)
# In float32, whatever the CPU.
_COMMAND = """
from pretraining.training import loop
loop.has_bfloat16 = lambda device: False
from pretraining.cli import pretrain_entry
pretrain_entry()
"""


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Kills a pre-training at random moments and continues it.")
    parser.add_argument("--kills", type=int, default=100, metavar="N", help="(default: 100)")
    parser.add_argument("--epochs", type=int, default=400, metavar="N", help="of the run (default: 400)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        runs = _Runs(Path(root), arguments.epochs)
        begin = time.monotonic()
        runs.finish("undisturbed")
        print(f"undisturbed: {arguments.epochs} epochs in {time.monotonic() - begin:.0f} s", flush=True)
        _kill(runs, arguments.kills, random.Random(arguments.seed))
        runs.finish("killed")
        equal = _compare(runs.state("undisturbed"), runs.state("killed"))
    sys.exit(0 if equal else 1)


class _Runs:
    """Runs below a root; a run is known by its name."""

    def __init__(self, root: Path, epochs: int):
        self.root, self.epochs = root, epochs
        raw = root / "nnUNet_raw"
        write_unlabelled_dataset(raw, 501, "Small", 4, 0, shape=(20, 20, 24), spacing=(14, 16, 16))

    def folder(self, name: str) -> Path:
        return self.root / "nnUNet_results" / "PGL" / name

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """Starts a run, or goes on with it, in a process group of its own."""
        folders = {each: str(self.root / each) for each in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        few = {"nnUNet_n_proc_DA": "1", "OMP_NUM_THREADS": "1"}
        arguments = [*_RUN, "-epochs", str(self.epochs), "-o", name, "-device", "cpu"]
        if (self.folder(name) / "checkpoint_latest.pth").exists():
            arguments = ["-o", name, "--c", "-device", "cpu", "-np", "1"]
        with (self.root / f"{name}.txt").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-c", _COMMAND, *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **folders, **few},
                start_new_session=True,
            )

    def finish(self, name: str) -> None:
        if self.start(name).wait() != 0:
            sys.exit(f"{name} ended by itself:\n{self.output(name)}")

    def output(self, name: str) -> str:
        return (self.root / f"{name}.txt").read_text(errors="replace")[-4000:]

    def state(self, name: str) -> dict[str, Any]:
        """What is on disk, which has to be whole; no epoch if there is nothing yet."""
        latest = self.folder(name) / "checkpoint_latest.pth"
        return load_plain(latest) if latest.exists() else {"epoch": 0}


def _kill(runs: _Runs, kills: int, rng: random.Random) -> None:
    """Kills and goes on, until it has been done often enough or the run is at its end."""
    usual = _seconds_to_start(runs)
    folder, epochs, most_files = runs.folder("killed"), 0, 0
    at: Counter[str] = Counter()
    begin = time.monotonic()
    for number in range(kills):
        process = runs.start("killed")
        with suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.5 * usual, 2 * usual))
        if process.returncode is not None:
            if process.returncode == 0:
                print(f"at its end after {number} kills: more --epochs", flush=True)
                break
            sys.exit(f"attempt {number} ended by itself:\n{runs.output('killed')}")
        temporary = sum(1 for file in folder.glob("*") if ".tmp" in file.name) if folder.is_dir() else 0
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        before, epochs = epochs, int(runs.state("killed")["epoch"])
        if epochs < before:
            sys.exit(f"attempt {number}: the state went back from epoch {before} to {epochs}")
        at[
            "while a file was written" if temporary else "elsewhere" if epochs > before else "before it got further"
        ] += 1
        most_files = max(most_files, temporary)
    print(
        f"{at.total()} kills in {time.monotonic() - begin:.0f} s: " + ", ".join(f"{n} {name}" for name, n in at.items())
    )
    print(f"{epochs} epochs done, never fewer than before; at most {most_files} temporary files", flush=True)


def _seconds_to_start(runs: _Runs) -> float:
    """From the command to the first epoch."""
    begin = time.monotonic()
    process = runs.start("killed")
    while not (runs.folder("killed") / "metrics.jsonl").exists():
        if process.poll() is not None:
            sys.exit(f"the run ended by itself:\n{runs.output('killed')}")
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return time.monotonic() - begin


def _compare(one: dict[str, Any], other: dict[str, Any]) -> bool:
    losses = [[record["loss"] for record in state["history"]] for state in (one, other)]
    results = {
        f"losses of {len(losses[0])} epochs": losses[0] == losses[1],
        "networks": _equal(one["objective"], other["objective"]),
        "optimiser": _equal(one["optimizer"], other["optimizer"]),
    }
    for name, equal in results.items():
        print(f"{name} equal to the bit: {equal}")
    return all(results.values())


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other)


if __name__ == "__main__":
    main()
