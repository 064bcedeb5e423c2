"""Whether a run starts or goes on in its folder; a torchrun job that has started a run goes on with it."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from pretraining.settings.config import PretrainConfig
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


def test_a_run_that_is_opened_is_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_torchrun(monkeypatch, "job", 10)
    folder, config = RunFolder(tmp_path / "run"), PretrainConfig(datasets=())
    for resumes in (False, True):
        with ExitStack() as held:
            assert folder.open(config, False, held) == resumes
    as_torchrun(monkeypatch, "another", 10)
    with ExitStack() as held:
        assert folder.open(config, True, held)
        folder.latest.touch()
    with ExitStack() as held, pytest.raises(ValueError, match="already holds a run: add --c"):
        folder.open(config, False, held)
