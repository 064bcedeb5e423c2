"""Runs that are interrupted and continued, also by later versions, end as those that are not."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunetv2_pgl.checkpoint import CheckpointError, load_checkpoint
from nnunetv2_pgl.errors import PGLError
from pretraining.launching.errors import Stopped
from pretraining.settings.table import RunOptions
from pretraining.training import loop, saving
from pretraining.training.pretrain import pretrain
from pretraining.training.run_folder import RunFolder
from pretraining.training.saving import SaveTimes
from pretraining.training.state import TrainingState, initial_state
from pretraining.training.step import Stepper
from tests.golden import make

CONFIG = replace(make.config(), pairs_per_epoch=6)  # two epochs of three steps
MEASURED = {"flipped_right", "unflipped_right", "decoy", "position_code", "ceiling", "miss_distance"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("resume")
    shutil.copytree(make.GOLDEN / "nnUNet_raw", root / "nnUNet_raw")
    with make.machine(root):
        yield root


@pytest.fixture(scope="module")
def straight(folders: Path) -> RunFolder:
    return run("straight")


def run(name: str, resume: bool = False, save_every: int | None = 1) -> RunFolder:
    pretrain(CONFIG, RunOptions(name, resume, "cpu", 1, save_every))
    return RunFolder.named(name)


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
    straight, resumed = (RunFolder.named(name) for name in ("genesis_straight", "genesis"))
    require_equal(straight, resumed)
    assert [r["deformed"] for r in records(straight)] == [r["deformed"] for r in records(resumed)]
    assert min(r["deformed"] for r in records(straight)) > 0.1


def test_blocks_and_momentum_are_the_same_after_an_interruption(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, method="mae", optimizer="nnunet", learning_rate=None)
    pretrain(config, RunOptions("mae_straight", False, "cpu", 1, 1))
    with monkeypatch.context() as patch, pytest.raises(told_to_stop(4)(patch)):
        pretrain(config, RunOptions("mae", False, "cpu", 1, 1))
    pretrain(config, RunOptions("mae", True, "cpu", 1, 1))
    straight, resumed = (RunFolder.named(name) for name in ("mae_straight", "mae"))
    require_equal(straight, resumed)
    assert [r["mean_error"] for r in records(straight)] == [r["mean_error"] for r in records(resumed)]


def test_records_after_the_state_are_dropped(straight: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run by the clock is killed with both epochs in its log, and a state of within the first one."""
    with monkeypatch.context() as patch:
        patch.setattr(SaveTimes, "is_due", lambda self, step: step == 2)
        patch.setattr(loop.Run, "_save", save_but_at_the_end(loop.Run._save))
        with pytest.raises(InterruptedError):
            run("behind", save_every=None)
    behind = RunFolder.named("behind")
    assert len(records(behind)) == 2
    require_equal(straight, run("behind", resume=True))


@pytest.mark.parametrize("resume", [False, True])
def test_nothing_is_left_of_an_attempt_that_saved_nothing(
    straight: RunFolder, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    """Killed with an epoch in its log; the same command again, with and without --c, starts with the first step."""
    name = f"nothing_saved_{resume}"
    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "_save", save_but_at_the_end(lambda self: None))
        with pytest.raises(InterruptedError):
            run(name, save_every=None)
    folder = RunFolder.named(name)
    assert len(records(folder)) == 2
    assert not folder.latest.exists()
    (folder.path / "views.png").write_bytes(b"of that attempt")
    again = run(name, resume)
    require_equal(straight, again)
    assert len(records(again)) == 2
    assert ("is not there yet: starting from the first step" in log_of(again)) == resume
    assert (folder.path / "views.png").read_bytes().startswith(b"\x89PNG")


def save_but_at_the_end(save: Callable[[loop.Run], None]) -> Callable[[loop.Run], None]:
    def killed(self: loop.Run) -> None:
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


def of_version(state: dict[str, Any], version: int) -> dict[str, Any]:
    """The state as former versions wrote it."""
    older = {**state, "training_state": version}
    so_far = older["so_far"]
    older["epoch"] = (older.pop("step") - so_far["steps"]) // 3
    if version == 1:
        assert older.pop("so_far")["steps"] == 0
    return older


@pytest.mark.parametrize(("version", "steps"), [(1, 3), (2, 3), (2, 4)])
def test_states_of_former_versions_are_continued(
    straight: RunFolder, monkeypatch: pytest.MonkeyPatch, version: int, steps: int
) -> None:
    name = f"version_{version}_{steps}"
    with monkeypatch.context() as patch, pytest.raises(told_to_stop(steps)(patch)):
        run(name)
    older = RunFolder.named(name)
    torch.save(of_version(torch.load(older.latest, weights_only=True), version), older.latest)
    require_equal(straight, run(name, resume=True))


def test_an_epoch_of_a_former_version_that_lacks_only_its_record(
    straight: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop after the last step of an epoch left all of its steps in what is under way."""
    end = loop.Run._end_epoch
    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "_end_epoch", lambda self: None if self.state.step == 3 else end(self))
        with pytest.raises(told_to_stop(3)(patch)):
            run("lacking")
    lacking = RunFolder.named("lacking")
    state = of_version(torch.load(lacking.latest, weights_only=True), 2)
    assert (state["epoch"], state["so_far"]["steps"], len(state["history"])) == (0, 3, 0)
    torch.save(state, lacking.latest)
    require_equal(straight, run("lacking", resume=True))


def of_010(record: dict[str, Any]) -> dict[str, Any]:
    """A record as version 0.1.0 wrote it."""
    kept = {key: value for key, value in record.items() if key not in MEASURED and not key.startswith("unflipped")}
    return {**kept, "correspondence": 0.25, "chance": 0.125, "miss_distance": 9.0}


def test_records_of_the_first_version_are_continued(straight: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its correspondence was one share of all pairs, which stands in the curves beside what later epochs measured."""
    with monkeypatch.context() as patch, pytest.raises(told_to_stop(3)(patch)):
        run("older_records")
    older = RunFolder.named("older_records")
    state = of_version(torch.load(older.latest, weights_only=True), 2)
    history = [of_010(state["history"][0])]
    baseline = {"correspondence": 0.2, "miss_distance": 8.0}
    torch.save({**state, "history": history, "baseline": baseline}, older.latest)
    run("older_records", resume=True)
    *before, last = records(older)
    assert before == history
    assert last.keys() >= MEASURED
    assert "correspondence" not in last
    assert load_checkpoint(older.final).pgl["metrics"]["flipped_right"] == last["flipped_right"]


def test_a_state_in_another_memory_layout_is_continued(straight: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks with instance norm were in channels last once; fused AdamW takes its momenta in the order of memory."""
    with monkeypatch.context() as patch, pytest.raises(told_to_stop(4)(patch)):
        run("layout")
    folder = RunFolder.named("layout")
    state = torch.load(folder.latest, weights_only=True)
    changed = 0
    for values in state["optimizer"]["state"].values():
        for name, value in values.items():
            if value.ndim == 5 and min(value.shape[1:]) > 1:
                values[name] = value.contiguous(memory_format=torch.channels_last_3d)
                changed += values[name].stride() != value.stride()
    assert changed >= 2
    torch.save(state, folder.latest)
    require_equal(straight, run("layout", resume=True))


def test_two_runs_do_not_share_a_folder(straight: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretraining.training.run_folder._SECONDS_UNTIL_LOADERS_END", 0.1)
    before = straight.latest.stat().st_mtime_ns
    with straight.locked(), pytest.raises(PGLError, match=r"straight: a run is in progress there; .* -o$"):
        run("straight", resume=True)
    assert straight.latest.stat().st_mtime_ns == before


def test_other_scans_are_not_passed_over(straight: RunFolder, folders: Path) -> None:
    """A pool that has lost a scan would silently change what every later draw means."""
    copied = RunFolder.named("other_scans")
    copied.start(CONFIG)
    shutil.copy(straight.latest, copied.latest)
    shutil.copy(straight.manifest, copied.manifest)
    scan = folders / "nnUNet_raw" / make.DATASET / "imagesTr" / "scan_3_0000.nrrd"
    hidden = scan.rename(folders / scan.name)
    try:
        with pytest.raises(CheckpointError, match="started on other scans"):
            run("other_scans", resume=True)
    finally:
        hidden.rename(scan)
    assert copied.manifest.read_bytes() == straight.manifest.read_bytes()  # it tells of the run's own


def test_a_truncated_state_is_named(straight: RunFolder) -> None:
    broken = RunFolder.named("broken")
    broken.start(CONFIG)
    content = straight.latest.read_bytes()
    broken.latest.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"checkpoint_latest\.pth: truncated"):
        run("broken", resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_without_its_settings_is_named(straight: RunFolder, resume: bool) -> None:
    bare = RunFolder.named("bare")
    bare.path.mkdir(exist_ok=True)
    shutil.copy(straight.latest, bare.latest)
    with pytest.raises(PGLError, match=r"bare holds a run without its config\.json"):
        run("bare", resume)


def test_how_the_optimiser_computes_is_not_continued(straight: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a state was written with may not be there, or not be right, on the device and torch that continue it."""
    with monkeypatch.context() as patch, pytest.raises(told_to_stop(4)(patch)):
        run("elsewhere")
    folder = RunFolder.named("elsewhere")
    state = torch.load(folder.latest, weights_only=True)
    for group in state["optimizer"]["param_groups"]:
        group.update(fused=None, foreach=True)
    torch.save(state, folder.latest)
    own = initial_state(CONFIG, torch.device("cpu"), None).optimizer.param_groups
    seen: list[dict[str, Any]] = []
    with monkeypatch.context() as patch:
        make_step = Stepper.__call__
        patch.setattr(
            Stepper,
            "__call__",
            lambda self, *arguments: (seen.extend(self.state.optimizer.param_groups), make_step(self, *arguments))[1],
        )
        require_equal(straight, run("elsewhere", resume=True))
    assert seen
    assert all(group[name] == own[0][name] for group in seen for name in ("fused", "foreach"))


def test_want_of_memory_is_not_the_states_fault(straight: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: TrainingState, content: dict[str, Any]) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TrainingState, "_fill", full)
    state = initial_state(CONFIG, torch.device("cpu"), None)
    state.scans = torch.load(straight.latest, weights_only=True)["scans"]
    with pytest.raises(torch.cuda.OutOfMemoryError):
        state.restore(straight.latest)
