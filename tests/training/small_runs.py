"""Runs of two epochs of three steps on the golden scans, interrupted ones too."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from nnunetv2_pgl.checkpoint import load_checkpoint
from pretraining.launching.errors import Stopped
from pretraining.settings.table import RunOptions
from pretraining.training.pretrain import pretrain
from pretraining.training.run_folder import RunFolder
from pretraining.training.step import Stepper
from tests.golden import make

CONFIG = replace(make.config(), pairs_per_epoch=6)  # two epochs of three steps
MEASURED = {"flipped_right", "unflipped_right", "decoy", "position_code", "ceiling", "miss_distance"}


def run(name: str, resume: bool = False, save_every: int | None = 1) -> RunFolder:
    pretrain(CONFIG, RunOptions(name, resume, "cpu", 1, save_every))
    return RunFolder.from_name(name)


def records(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]


def log_of(folder: RunFolder) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.path.glob("training_log_*.txt")))


def require_equal(one: RunFolder, other: RunFolder) -> None:
    """Same losses, bit-equal encoder."""
    assert [record["loss"] for record in records(one)] == [record["loss"] for record in records(other)]
    assert {key: records(one)[-1][key] for key in MEASURED} == {key: records(other)[-1][key] for key in MEASURED}
    first, second = (load_checkpoint(folder.final).encoder_weights for folder in (one, other))
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def told_to_stop(after_steps: int) -> Callable[[pytest.MonkeyPatch], type[Exception]]:
    def interrupt(patch: pytest.MonkeyPatch) -> type[Exception]:
        make_step = Stepper.__call__

        def signalled(self: Stepper, number: int, batches: Any) -> Any:
            output = make_step(self, number, batches)
            if number + 1 == after_steps:
                os.kill(os.getpid(), signal.SIGTERM)
            return output

        patch.setattr(Stepper, "__call__", signalled)
        return Stopped

    return interrupt
