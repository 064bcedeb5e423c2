"""Runs that are interrupted and continued, also by later versions, end as those that are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nnunetv2_pgl.checkpoint import load_checkpoint
from nnunetv2_pgl.errors import PGLError
from pretraining.settings.table import RunOptions
from pretraining.training import loop, saving
from pretraining.training.pretrain import pretrain
from pretraining.training.run_folder import RunFolder
from pretraining.training.saving import SaveTimes
from tests.training.small_runs import CONFIG, log_of, records, require_equal, run, told_to_stop


def killed_after_the_first_epoch(patch: pytest.MonkeyPatch) -> type[Exception]:
    save = saving.atomic_save

    def die(content: object, path: Path) -> None:
        save(content, path)
        raise InterruptedError

    patch.setattr(saving, "atomic_save", die)
    return InterruptedError


def killed_after_a_save_within_the_second_epoch(patch: pytest.MonkeyPatch) -> type[Exception]:
    patch.setattr(SaveTimes, "is_due", lambda self, step: step == 4)
    return killed_after_the_first_epoch(patch)


@pytest.mark.parametrize(
    ("name", "interrupt", "goes_on"),
    [
        ("killed", killed_after_the_first_epoch, "epoch 1 of 2"),
        ("killed_within", killed_after_a_save_within_the_second_epoch, "step 1 of epoch 1"),
        ("stopped_in_the_first", told_to_stop(1), "step 1 of epoch 0"),
        ("stopped_at_the_end_of_the_first", told_to_stop(3), "epoch 1 of 2"),
        ("stopped_in_the_second", told_to_stop(5), "step 2 of epoch 1"),
    ],
)
def test_resumed_is_the_uninterrupted_run(
    straight: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    interrupt: Callable[[pytest.MonkeyPatch], type[Exception]],
    goes_on: str,
) -> None:
    with monkeypatch.context() as patch, pytest.raises(interrupt(patch)):
        run(name)
    resumed = run(name, resume=True)
    assert f"Continuing after {goes_on}" in log_of(resumed)
    require_equal(straight, resumed)


def test_what_loading_processes_draw_is_the_same_after_an_interruption(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whatever number of them: none at first, then two."""
    config = replace(CONFIG, method="models_genesis")
    pretrain(config, RunOptions("genesis_straight", False, "cpu", 1, 1))
    with monkeypatch.context() as patch, pytest.raises(told_to_stop(4)(patch)):
        pretrain(config, RunOptions("genesis", False, "cpu", 1, 1))
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    pretrain(config, RunOptions("genesis", True, "cpu", 1, 1))
    straight, resumed = (RunFolder.from_name(name) for name in ("genesis_straight", "genesis"))
    require_equal(straight, resumed)
    assert [r["deformed"] for r in records(straight)] == [r["deformed"] for r in records(resumed)]
    assert min(r["deformed"] for r in records(straight)) > 0.1


def test_blocks_and_momentum_are_the_same_after_an_interruption(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, method="mae", optimizer="nnunet", learning_rate=None)
    pretrain(config, RunOptions("mae_straight", False, "cpu", 1, 1))
    with monkeypatch.context() as patch, pytest.raises(told_to_stop(4)(patch)):
        pretrain(config, RunOptions("mae", False, "cpu", 1, 1))
    pretrain(config, RunOptions("mae", True, "cpu", 1, 1))
    straight, resumed = (RunFolder.from_name(name) for name in ("mae_straight", "mae"))
    require_equal(straight, resumed)
    assert [r["mean_error"] for r in records(straight)] == [r["mean_error"] for r in records(resumed)]


def test_records_after_the_state_are_dropped(straight: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run by the clock is killed with both epochs in its log, and a state of within the first one."""
    with monkeypatch.context() as patch:
        patch.setattr(SaveTimes, "is_due", lambda self, step: step == 2)
        patch.setattr(loop.TrainingLoop, "_save", save_but_at_the_end(loop.TrainingLoop._save))
        with pytest.raises(InterruptedError):
            run("behind", save_every=None)
    behind = RunFolder.from_name("behind")
    assert len(records(behind)) == 2
    require_equal(straight, run("behind", resume=True))


@pytest.mark.parametrize("resume", [False, True])
def test_nothing_is_left_of_an_attempt_that_saved_nothing(
    straight: RunFolder, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    """Killed with an epoch in its log; the same command again, with and without --c, starts with the first step."""
    name = f"nothing_saved_{resume}"
    with monkeypatch.context() as patch:
        patch.setattr(loop.TrainingLoop, "_save", save_but_at_the_end(lambda self: None))
        with pytest.raises(InterruptedError):
            run(name, save_every=None)
    folder = RunFolder.from_name(name)
    assert len(records(folder)) == 2
    assert not folder.latest.exists()
    (folder.path / "views.png").write_bytes(b"of that attempt")
    again = run(name, resume)
    require_equal(straight, again)
    assert len(records(again)) == 2
    assert ("is not there yet: starting from the first step" in log_of(again)) == resume
    assert (folder.path / "views.png").read_bytes().startswith(b"\x89PNG")


def save_but_at_the_end(save: Callable[[loop.TrainingLoop], None]) -> Callable[[loop.TrainingLoop], None]:
    def killed(self: loop.TrainingLoop) -> None:
        if self.state.step == self.steps:
            raise InterruptedError
        save(self)

    return killed


def test_a_stop_in_the_last_step_comes_too_late(straight: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """All is done: the encoder is written, and nothing is left to go on with."""
    with monkeypatch.context() as patch:
        told_to_stop(6)(patch)
        require_equal(straight, run("too_late"))


def test_a_finished_run_can_be_continued_to_no_effect(straight: RunFolder) -> None:
    before = load_checkpoint(straight.final).encoder_weights
    again = load_checkpoint(run("straight", resume=True).final).encoder_weights
    assert all(torch.equal(value, again[key]) for key, value in before.items())


def test_continuing_a_run_that_is_not_there_starts_it(straight: RunFolder) -> None:
    """As nnU-Net's --c does: a job that is sent to the queue again has it from the start."""
    started = run("from_the_queue", resume=True)
    assert f"WARNING: --c, but {started.path} holds no run to continue: starting a new one" in log_of(started)
    assert "holds no run" not in log_of(straight)
    require_equal(straight, started)


def test_two_runs_do_not_share_a_folder(straight: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretraining.training.run_folder._SECONDS_UNTIL_LOADERS_END", 0.1)
    before = straight.latest.stat().st_mtime_ns
    message = r"straight: a run is in progress there \(process \d+ on .+\); .* -o$"
    with straight.locked(), pytest.raises(PGLError, match=message):
        run("straight", resume=True)
    assert straight.latest.stat().st_mtime_ns == before
