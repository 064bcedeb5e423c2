"""Runs of the golden data set on a machine with faults: they end as an undisturbed run."""

from __future__ import annotations

import itertools
import json
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunetv2_pgl.checkpoint import load_checkpoint
from nnunetv2_pgl.errors import PGLError
from pretraining.settings.table import RunOptions
from pretraining.training import saving
from pretraining.training.pretrain import pretrain
from pretraining.training.run_folder import RunFolder
from tests.full_disk import room_for
from tests.golden import make

CONFIG = replace(make.config(), hidden_channels=512, out_channels=256)  # a state of megabytes, more than any picture


@pytest.fixture(scope="module")
def undisturbed(folders: Path) -> RunFolder:
    return run("undisturbed")


def run(name: str, resume: bool = False) -> RunFolder:
    pretrain(CONFIG, RunOptions(name, resume, "cpu", 1, 1))
    return RunFolder.from_name(name)


def require_equal(one: RunFolder, other: RunFolder) -> None:
    encoders = [load_checkpoint(folder.final).encoder_weights for folder in (one, other)]
    assert all(torch.equal(value, encoders[1][key]) for key, value in encoders[0].items())


def test_a_full_disk_costs_nothing_that_was_saved(undisturbed: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fills after the first epoch; the run goes on from there once there is room."""
    full, save = RunFolder.from_name("full"), saving.atomic_save

    def save_until_it_is_full(content: Any, path: Path) -> None:
        with room_for(1_000_000) if len(content["history"]) == 2 else nullcontext():
            save(content, path)

    message = r"could not write .*full/checkpoint_latest\.pth \(the former one is intact\): File too large"
    with monkeypatch.context() as patch:
        patch.setattr(saving, "atomic_save", save_until_it_is_full)
        with pytest.raises(OSError, match=message):
            run("full")
    assert len(torch.load(full.latest, weights_only=True)["history"]) == 1
    require_equal(undisturbed, run("full", resume=True))


def test_a_clock_that_jumps_does_not_matter(undisturbed: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    jumps, clock = itertools.cycle((0, -40 * 86400, 86400, 3)), time.time
    monkeypatch.setattr(time, "time", lambda: clock() + next(jumps))
    jumping = run("jumping")
    records = [json.loads(line) for line in (jumping.path / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < record["seconds"] < 300 for record in records)
    require_equal(undisturbed, jumping)


def test_a_results_folder_that_cannot_be_written_to(
    undisturbed: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in its place, since nothing is read-only for root."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "file"))
    with pytest.raises(PGLError, match=r"file/PGL/refused cannot be made \(Not a directory\): set nnUNet_results"):
        run("refused")
