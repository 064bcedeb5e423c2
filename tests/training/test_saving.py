"""When a run is measured and saved, that training goes on meanwhile, and what is written."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pretraining.settings.table import RunOptions
from pretraining.training import loop, saving
from pretraining.training.pretrain import pretrain
from pretraining.training.run_folder import RunFolder
from pretraining.training.sampler import PairSampler
from pretraining.training.saving import SaveTimes, StateWriter
from pretraining.training.state import initial_state
from pretraining.training.step import Stepper
from tests.golden import make

CONFIG = replace(make.config(), epochs=50, pairs_per_epoch=2)  # 50 epochs of one step


class Clock:
    """Seconds that pass when it is told so."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Counts:
    """What a run did, and after how many steps."""

    def __init__(self) -> None:
        self.steps = 0
        self.saved: list[int] = []
        self.drawn: list[int] = []
        self.measured: list[int] = []


def stub_steps(patch: pytest.MonkeyPatch, after_each: Callable[[int], None]) -> None:
    """Steps that take their batch and compute nothing."""

    def step(self: Stepper, number: int, batches: Any) -> Any:
        next(batches)
        after_each(number + 1)
        return torch.tensor([1.0, 1.0, 1.0, 1.0]), 0.0

    patch.setattr(Stepper, "__call__", step)


def counted_run(
    name: str, patch: pytest.MonkeyPatch, seconds_of_step: float, seconds_of_measuring: float, save_every: int | None
) -> Counts:
    """A run of stub steps by a clock of its own."""
    counts, clock = Counts(), Clock()

    def after_step(number: int) -> None:
        counts.steps = number
        clock.seconds += seconds_of_step

    def measure(self: loop.TrainingLoop) -> dict[str, float]:
        counts.measured.append(counts.steps)
        clock.seconds += seconds_of_measuring
        return {"miss_distance": 1.0}

    save = saving.atomic_save
    stub_steps(patch, after_step)
    patch.setattr(loop, "SaveTimes", lambda every, steps: SaveTimes(every, steps, clock))
    patch.setattr(loop.TrainingLoop, "_correspondence", measure)
    patch.setattr(
        saving, "atomic_save", lambda content, path: (counts.saved.append(content["step"]), save(content, path))
    )
    patch.setattr(saving, "plot_progress", lambda history, baseline, path: counts.drawn.append(len(history)))
    pretrain(CONFIG, RunOptions(name, False, "cpu", 1, save_every))
    return counts


def test_a_quick_run_is_saved_once_and_measured_before_and_after(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = counted_run("quick", monkeypatch, seconds_of_step=1, seconds_of_measuring=20, save_every=None)
    assert counts.saved == counts.drawn == [50]
    assert counts.measured == [0, 50]
    records = (RunFolder.from_name("quick").path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in records] == list(range(50))
    assert ["miss_distance" in json.loads(line) for line in records] == [False] * 49 + [True]


def test_a_run_is_saved_every_ten_minutes(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = counted_run("long", monkeypatch, seconds_of_step=60, seconds_of_measuring=0, save_every=None)
    assert counts.saved == [10, 20, 30, 40, 50]


def test_measuring_takes_a_hundredth_of_the_time_and_ten_minutes_at_most_pass(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = counted_run("measured", monkeypatch, seconds_of_step=10, seconds_of_measuring=1, save_every=None)
    assert counts.measured == [0, 10, 20, 30, 40, 50]
    with monkeypatch.context() as patch:
        counts = counted_run("slowly", patch, seconds_of_step=30, seconds_of_measuring=30, save_every=None)
    assert counts.measured == [0, 20, 40, 50]


def test_epochs_decide_where_they_are_given(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = counted_run("epochs", monkeypatch, seconds_of_step=1000, seconds_of_measuring=1, save_every=20)
    assert counts.saved == counts.drawn == [20, 40, 50]
    assert counts.measured == [0, 20, 40, 50]


def test_a_save_within_an_epoch(folders: Path) -> None:
    clock = Clock()
    times = SaveTimes(None, 1000, clock)
    clock.seconds = 599
    assert not times.is_due(7)
    clock.seconds = 601
    assert times.is_due(8)
    times.saved()
    assert not times.is_due(9)
    assert SaveTimes(2, 1000, clock).is_due(4000)
    assert not SaveTimes(2, 1000, clock).is_due(3000)


def test_training_goes_on_while_a_state_is_written(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written is the state as it was, though three steps are made before a byte of it is."""
    three_more, save = threading.Event(), saving.atomic_save
    now, written = {}, {}
    make_step = Stepper.__call__

    def step(self: Stepper, number: int, batches: Any) -> Any:
        output = make_step(self, number, batches)
        now[number + 1] = {key: value.clone() for key, value in self.state.objective.state_dict().items()}
        if number + 1 == 4:
            three_more.set()
        return output

    def slowly(content: Any, path: Path) -> None:
        assert three_more.wait(60), "the training has waited"
        save(content, path)
        written[content["step"]] = torch.load(path, weights_only=True)["objective"]

    monkeypatch.setattr(Stepper, "__call__", step)
    monkeypatch.setattr(saving, "atomic_save", slowly)
    monkeypatch.setattr(SaveTimes, "is_due", lambda self, step: step == 1)
    pretrain(replace(CONFIG, epochs=6), RunOptions("aside", False, "cpu", 1))
    assert written.keys() == {1, 6}
    for number, weights in written.items():
        assert all(torch.equal(value, now[number][key]) for key, value in weights.items())
    assert any(not torch.equal(value, now[4][key]) for key, value in written[1].items())


def test_a_state_that_cannot_be_written_ends_the_run_soon(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed, steps = threading.Event(), []

    def fail(content: Any, path: Path) -> None:
        failed.set()
        raise OSError(f"could not write {path}: No space left on device")

    def after_step(number: int) -> None:
        steps.append(number)
        if number > 3:
            assert failed.wait(60)
            time.sleep(0.05)  # until the thread has ended with it

    stub_steps(monkeypatch, after_step)
    monkeypatch.setattr(saving, "atomic_save", fail)
    monkeypatch.setattr(SaveTimes, "is_due", lambda self, step: step == 3)
    with pytest.raises(OSError, match=r"could not write .*checkpoint_latest\.pth: No space left"):
        pretrain(CONFIG, RunOptions("full", False, "cpu", 1))
    assert len(steps) < 10


def test_the_last_state_that_cannot_be_written_is_told(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(content: Any, path: Path) -> None:
        raise OSError("no space")

    monkeypatch.setattr(saving, "atomic_save", fail)
    with pytest.raises(OSError, match="no space"):
        pretrain(replace(CONFIG, epochs=1), RunOptions("full_at_the_end", False, "cpu", 1))
    assert not RunFolder.from_name("full_at_the_end").final.exists()


def test_loading_does_not_wait_for_the_end_of_an_epoch(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When an epoch reports, the batches of the next one have been asked for."""
    asked: list[int] = []
    at_report: list[tuple[int, int]] = []
    order, end = PairSampler.__iter__, loop.TrainingLoop._end_epoch

    def asking(self: PairSampler) -> Any:
        for unit in order(self):
            asked.append(unit[0][0])
            yield unit

    def report(self: loop.TrainingLoop) -> None:
        at_report.append((self.state.step, len(asked)))
        end(self)

    stub_steps(monkeypatch, lambda number: None)
    monkeypatch.setattr(PairSampler, "__iter__", asking)
    monkeypatch.setattr(loop.TrainingLoop, "_end_epoch", report)
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    pretrain(CONFIG, RunOptions("asked", False, "cpu", 1))
    assert [steps for steps, _ in at_report] == list(range(1, 51))
    assert all(ahead == min(50, steps + 2) for steps, ahead in at_report)


def test_a_copy_holds_tensors_with_two_names_once() -> None:
    """nnU-Net's networks name each of their tensors twice."""
    state = initial_state(make.config(), torch.device("cpu"), None)
    names: dict[int, list[str]] = {}
    for name, value in state.objective.state_dict(keep_vars=True).items():
        names.setdefault(id(value), []).append(name)
    copied = state.on_host()["objective"]
    twice = [same for same in names.values() if len(same) > 1]
    assert twice
    assert all(copied[same[0]] is copied[same[1]] for same in twice)
    assert len({value.data_ptr() for value in copied.values() if value.numel()}) == len(names)


def test_the_writer_waits_when_it_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = initial_state(make.config(), torch.device("cpu"), None)
    save = saving.atomic_save
    monkeypatch.setattr(saving, "atomic_save", lambda content, path: (time.sleep(0.3), save(content, path)))
    writer = StateWriter(tmp_path)
    writer.write(state)
    writer.__exit__(KeyError, KeyError(), None)
    assert (tmp_path / "checkpoint_latest.pth").exists()


def test_a_write_that_failed_is_told_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = initial_state(make.config(), torch.device("cpu"), None)
    answers = iter([OSError("no space"), None])

    def once(content: Any, path: Path) -> None:
        answer = next(answers)
        time.sleep(0.3)  # the next one comes before it has failed
        if answer is not None:
            raise answer

    monkeypatch.setattr(saving, "atomic_save", once)
    with StateWriter(tmp_path) as writer:
        writer.write(state)
        with pytest.raises(OSError, match="no space"):
            writer.write(state)
        writer._writing = None


def test_a_stop_whose_state_cannot_be_written_does_not_say_that_it_was(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(content: Any, path: Path) -> None:
        time.sleep(0.3)
        raise OSError("no space")

    def after_step(number: int) -> None:
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    stub_steps(monkeypatch, after_step)
    monkeypatch.setattr(saving, "atomic_save", fail)
    with pytest.raises(OSError, match="no space"):
        pretrain(CONFIG, RunOptions("full_at_the_stop", False, "cpu", 1))


def test_a_picture_that_cannot_be_drawn_ends_no_run(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise ValueError("no such font")

    monkeypatch.setattr(saving, "plot_progress", fail)
    with pytest.warns(UserWarning, match="progress.png could not be drawn: .*no such font"):
        pretrain(replace(CONFIG, epochs=1), RunOptions("no_picture", False, "cpu", 1))
    assert RunFolder.from_name("no_picture").final.exists()
