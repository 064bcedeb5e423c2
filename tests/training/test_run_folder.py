"""torchrun: which job has started a run, so that its restarts go on with it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pretraining.training.run_folder import RunFolder


def as_torchrun(patch: pytest.MonkeyPatch, run_id: str, agent: int) -> None:
    patch.setenv("TORCHELASTIC_RUN_ID", run_id)
    patch.setattr(os, "getppid", lambda: agent)


def test_a_restart_goes_on_with_its_own_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_torchrun(monkeypatch, "job", 10)
    assert not RunFolder(tmp_path).is_claimed()
    RunFolder(tmp_path).claim()
    assert RunFolder(tmp_path).is_claimed()
    RunFolder(tmp_path).release()
    assert not list(tmp_path.iterdir())
    assert not RunFolder(tmp_path).is_claimed()


@pytest.mark.parametrize(("run_id", "agent"), [("another", 10), ("none", 11)])
def test_the_run_of_another_job_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_id: str, agent: int
) -> None:
    """Without --rdzv-id all jobs have the id "none"."""
    as_torchrun(monkeypatch, "none", 10)
    RunFolder(tmp_path).claim()
    as_torchrun(monkeypatch, run_id, agent)
    assert not RunFolder(tmp_path).is_claimed()


def test_without_torchrun_nothing_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    RunFolder(tmp_path).claim()
    assert not list(tmp_path.iterdir())
    assert not RunFolder(tmp_path).is_claimed()
