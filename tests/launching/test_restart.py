from __future__ import annotations

import os
from pathlib import Path

import pytest

from pretraining.launching.restart import claim, release, started_here


def as_torchrun(patch: pytest.MonkeyPatch, run_id: str, agent: int) -> None:
    patch.setenv("TORCHELASTIC_RUN_ID", run_id)
    patch.setattr(os, "getppid", lambda: agent)


def test_a_restart_goes_on_with_its_own_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_torchrun(monkeypatch, "job", 10)
    assert not started_here(tmp_path)
    claim(tmp_path)
    assert started_here(tmp_path)
    release(tmp_path)
    assert not list(tmp_path.iterdir())
    assert not started_here(tmp_path)


@pytest.mark.parametrize(("run_id", "agent"), [("another", 10), ("none", 11)])
def test_the_run_of_another_job_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_id: str, agent: int
) -> None:
    """Without --rdzv-id all jobs have the id "none"."""
    as_torchrun(monkeypatch, "none", 10)
    claim(tmp_path)
    as_torchrun(monkeypatch, run_id, agent)
    assert not started_here(tmp_path)


def test_without_torchrun_nothing_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    claim(tmp_path)
    assert not list(tmp_path.iterdir())
    assert not started_here(tmp_path)
