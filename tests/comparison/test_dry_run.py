"""What there is to do, and about how long it takes."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.stand_in_commands import TINY, CompareCommand, tree

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the stand-in commands are scripts with a #! line")

TIME_TRAINING = "pretraining.comparison.dry_run.time_training"


def test_dry_run_changes_nothing(compare: CompareCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(compare.root)
    assert compare.call(*TINY, "--dry_run") == ([], 0)
    assert tree(compare.root) == before
    assert compare.output.count("to do") == 1 + 1 + 4  # planning, pre-training, trainings
    assert "pre-trainings: 1 left" in compare.output
    assert "trainings: unknown before the dataset is planned" in compare.output

    compare.call(*TINY, broken="nnUNetPlans_random_50pct_seed0")
    before = tree(compare.root)
    assert compare.call(*TINY, "--dry_run", "--seeds", "2") == ([], 0)
    assert tree(compare.root) == before
    lines = [line.split() for line in compare.output.splitlines()]
    assert ["random_50pct_fold0_seed0", "2", "to", "do"] in lines
    assert ["pgl_100pct_fold0_seed0", "5", "done"] in lines
    assert "pre-trainings: none is left" in compare.output
    assert "trainings: unknown, a training step on cpu failed" in compare.output  # the stand-ins plan no network

    monkeypatch.setattr(TIME_TRAINING, lambda _: (60.0, 2e9, "timed"))
    free = shutil.disk_usage(compare.root)._replace(free=int(90e9))
    monkeypatch.setattr("shutil.disk_usage", lambda _: free)
    compare.call(*TINY, "--dry_run", "--seeds", "2")
    assert "trainings: 5 min for the 5 left, 60 s each (timed)" in compare.output
    assert "disk: 10.0 GB for the 5 left, 2 GB each" in compare.output
    assert "NOT ENOUGH" not in compare.output
    free = free._replace(free=int(9e9))
    compare.call(*TINY, "--dry_run", "--seeds", "2")
    assert "9 GB are free: NOT ENOUGH" in compare.output


def test_an_estimate_separates_longer_trainings_from_the_others(
    compare: CompareCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare.call(*TINY)
    monkeypatch.setattr(TIME_TRAINING, lambda _: (60.0, 1e9, "timed"))
    compare.call(*TINY, "--init", "random", "pgl", "longer:pgl", "--dry_run", "--seeds", "2")
    assert "trainings: 4 min for the 4 left, 60 s each" in compare.output
    assert "longer:pgl: 4 left, each longer than a usual training: by what pre-training pgl computes" in compare.output
    assert "disk: 8.0 GB for the 8 left" in compare.output
