from __future__ import annotations

from pathlib import Path

import pytest

from pretraining.training.restart import claim, release, started_here


def as_torchrun(patch: pytest.MonkeyPatch, run_id: str, restarts: int) -> None:
    patch.setenv("TORCHELASTIC_RUN_ID", run_id)
    patch.setenv("TORCHELASTIC_RESTART_COUNT", str(restarts))


def test_a_restart_goes_on_with_its_own_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_torchrun(monkeypatch, "job", 0)
    assert not started_here(tmp_path)
    claim(tmp_path)
    as_torchrun(monkeypatch, "job", 1)
    assert started_here(tmp_path)
    release(tmp_path)
    assert not list(tmp_path.iterdir())
    assert not started_here(tmp_path)


def test_a_restart_leaves_the_run_of_another_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_torchrun(monkeypatch, "job", 0)
    claim(tmp_path)
    as_torchrun(monkeypatch, "another", 1)
    assert not started_here(tmp_path)


def test_a_later_job_with_the_same_id_does_not_take_it_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --rdzv-id all jobs have the id "none"; the first attempt was refused, so the second must be as well."""
    as_torchrun(monkeypatch, "none", 0)
    claim(tmp_path)
    assert not started_here(tmp_path)
    as_torchrun(monkeypatch, "none", 1)
    assert not started_here(tmp_path)


def test_without_torchrun_nothing_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    claim(tmp_path)
    assert not list(tmp_path.iterdir())
    assert not started_here(tmp_path)
