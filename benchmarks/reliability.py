"""Kills a pre-training at random moments, continues it each time, and compares it with one that nobody has disturbed.

    python -m benchmarks.reliability [--kills 100] [--seed 0]

Needs Linux or macOS and 2 GB in the temporary folder. The run has the full-width encoder, tiny views, one loading
process and fp32 on the CPU. Each attempt is a process group that is ended with SIGKILL, so moments fall on starting,
reading, steps, saving and drawing alike. After each, the state on disk has to be whole and no older than before, and no
temporary files may pile up. At the end losses and weights have to be those of the undisturbed run, to the bit.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from nnunetv2_pgl.checkpoint import load_plain
from pretraining.config import PretrainConfig
from pretraining.demo.datasets import write_unlabelled_dataset
from pretraining.pretrain import RunOptions, pretrain
from pretraining.run_folder import RunFolder
from pretraining.training import loop
from pretraining.training.state import TrainingState
from pretraining.views import ViewSettings

_CONFIG = PretrainConfig(
    datasets=("Dataset501_Small",),
    views=ViewSettings(size=(6, 12, 16)),
    strides=(4, 8, 8),
    epochs=10_000,
    batch_size=2,
    pairs_per_epoch=4,
    learning_rate=1e-4,
    hidden_channels=32,
    out_channels=16,
    validation_scans=1,
)
_SHORTEST, _LONGEST = 0.2, 12.0  # seconds an attempt is let live


class _Enough(Exception):  # noqa: N818
    pass


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Kills a pre-training at random moments and continues it.")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            os.environ[name] = str(Path(root, name))
        os.environ["nnUNet_n_proc_DA"] = "1"  # noqa: SIM112 - nnU-Net's name
        loop.has_bfloat16 = lambda device: False
        raw = Path(root, "nnUNet_raw")
        write_unlabelled_dataset(raw, 501, "Small", 4, 0, shape=(10, 20, 24), spacing=(28, 16, 16))
        epochs = _kill(arguments.kills, random.Random(arguments.seed))
        _compare(epochs)


def _kill(kills: int, rng: random.Random) -> int:
    """Returns the epochs that the run has done when it is killed for the last time."""
    folder = RunFolder.named("killed")
    epochs, progress, most_files = 0, 0, 0
    at: Counter[str] = Counter()
    begin = time.monotonic()
    for number in range(kills):
        process = _start("killed", folder.latest.exists())
        time.sleep(rng.uniform(_SHORTEST, _LONGEST))
        ended, _ = os.waitpid(process, os.WNOHANG)
        if ended:
            sys.exit(f"attempt {number} ended by itself: see above")
        saving = any(folder.path.glob(".*.tmp"))
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
        before, epochs = epochs, _epochs(folder)
        at["while saving" if saving else "before it had saved" if epochs == before else "later"] += 1
        if epochs < before:
            sys.exit(f"attempt {number}: the state went back from epoch {before} to {epochs}")
        progress += epochs > before
        most_files = max(most_files, sum(1 for _ in folder.path.glob(".*")))
    print(f"{kills} kills in {time.monotonic() - begin:.0f} s: " + ", ".join(f"{n} {name}" for name, n in at.items()))
    print(
        f"{progress} attempts got further, none went back; {epochs} epochs done; at most {most_files} temporary files"
    )
    return epochs


def _epochs(folder: RunFolder) -> int:
    """Epochs in the state on disk, which has to be whole."""
    return int(load_plain(folder.latest)["epoch"]) if folder.latest.exists() else 0


def _start(name: str, resume: bool) -> int:
    """Forks a process that trains, in a group of its own; everything is imported already."""
    process = os.fork()
    if process:
        return process
    os.setsid()
    log = os.open(os.devnull, os.O_WRONLY)
    os.dup2(log, 1)
    try:
        pretrain(_CONFIG, RunOptions(name, resume, "cpu", 1, 1))
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def _compare(epochs: int) -> None:
    """Trains as many epochs in one go."""
    if epochs == 0:
        sys.exit("no epoch was done: more kills, or a faster machine")
    save = TrainingState.save

    def stop_when_as_far(state: TrainingState, path: Path) -> None:
        if state.epoch == epochs:
            save(state, path)
            raise _Enough

    TrainingState.save = stop_when_as_far  # type: ignore[method-assign]
    with suppress(_Enough):
        pretrain(_CONFIG, RunOptions("undisturbed", False, "cpu", 1, 1))
    one, other = (load_plain(RunFolder.named(name).latest) for name in ("killed", "undisturbed"))
    losses = [[record["loss"] for record in state["history"]] for state in (one, other)]
    print(f"losses of {len(losses[0])} epochs equal: {losses[0] == losses[1]}")
    print(f"networks equal to the bit: {_equal(one['objective'], other['objective'])}")
    print(f"optimiser equal to the bit: {_equal(one['optimizer'], other['optimizer'])}")


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other)


if __name__ == "__main__":
    main()
