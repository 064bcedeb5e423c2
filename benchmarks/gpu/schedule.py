"""The paper's whole schedule, projected from a run of some hundred steps by the training loop itself.

The run loads, measures and saves as any run; it measures and saves more often, to show what either costs. How often
it would by the clock is asked of the loop's own rule. Preprocessing is left out, and the few scans lie in memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from statistics import mean

from benchmarks.report import Figure, Settings
from benchmarks.step import PAPER_BATCH, PAPER_STEPS, default_batch, paper, stored_scans
from pretraining.launching.distributed import Processes
from pretraining.training.loop import Runtime, train
from pretraining.training.pool import Pool
from pretraining.training.pretrain import loading_workers
from pretraining.training.progress import RunLog
from pretraining.training.saving import SaveTimes

_STEPS = 14  # of an epoch: the paper's 1808 scans
_EPOCHS, _SAVE_EVERY = 10, 4
_VALIDATION_SCANS = 16  # that a run of 1808 scans holds out


@dataclass
class _Clock(RunLog):
    """A silent log that notes when the baseline was measured, and when each epoch ended."""

    begin: float = field(default_factory=time.perf_counter)
    baseline: float = 0.0
    epochs: list[float] = field(default_factory=list)

    def __call__(self, *lines: str) -> None:
        if any(line.startswith("Before training") for line in lines):
            self.baseline = time.perf_counter() - self.begin
        if any(line.startswith("Epoch ") and line[6:].isdigit() for line in lines):
            self.epochs.append(time.perf_counter() - self.begin)


def measure(settings: Settings) -> Iterator[Figure]:
    """Trains, takes the time of each epoch apart, and adds up the paper's 7,000 steps."""
    batch = 2 if settings.quick else default_batch(settings.device)
    steps = 1 if settings.quick else _STEPS
    config = replace(paper(settings, batch), epochs=_EPOCHS, pairs_per_epoch=batch * steps)
    scans = stored_scans(settings)
    held_out = (scans * _VALIDATION_SCANS)[: 2 if settings.quick else _VALIDATION_SCANS]
    kind = settings.device.type
    runtime = Runtime(kind, Processes(), loading_workers(kind), save_every=_SAVE_EVERY)
    folder = settings.folder / "schedule"
    folder.mkdir()
    clock = _Clock()
    state = train(config, Pool(scans, held_out), folder, runtime, clock, resume=False)
    end = time.perf_counter() - clock.begin

    seconds = [after - before for before, after in zip([clock.baseline, *clock.epochs], clock.epochs, strict=False)]
    numbers = range(1, _EPOCHS - 1)  # neither the first epoch, which chooses kernels, nor the last one
    measured = [n for n in numbers if (n + 1) % _SAVE_EVERY == 0]
    saved = [n for n in numbers if n % _SAVE_EVERY == 0]  # the state is copied after the record before
    plain = [n for n in numbers if n not in measured and n not in saved]
    usual = mean(seconds[n] for n in plain)
    measuring, saving = (max(0.0, mean(seconds[n] for n in some) - usual) for some in (measured, saved))
    start = clock.baseline + seconds[0] - usual
    rest = end - clock.epochs[-1]
    whole = start + _projected(PAPER_STEPS * PAPER_BATCH / batch, usual / steps, steps, measuring, saving) + rest
    waiting = mean(state.history[n]["waiting"] for n in plain)
    yield Figure("schedule_steps", steps * _EPOCHS, "", f"steps of {batch} pairs in the run that is projected")
    yield Figure("schedule_step_seconds", usual / steps, "s", "a step of epochs that neither measure nor save")
    yield Figure("schedule_waiting", waiting, "", "share of it that the training waits for data")
    yield Figure("schedule_start_seconds", start, "s", "networks, baseline, loading processes, choice of kernels")
    yield Figure("schedule_measuring_seconds", measuring, "s", f"the correspondence of {len(held_out)} scans")
    yield Figure("schedule_saving_seconds", saving, "s", "by which saving state and curves delays the training")
    yield Figure("schedule_end_seconds", rest, "s", "until the last state is written")
    yield Figure("paper_schedule_minutes", whole / 60, "min", "the paper's 7,000 steps of 128 pairs", "<= 30")


def _projected(steps: float, seconds: float, per_epoch: int, measuring: float, saving: float) -> float:
    """Seconds of steps, with what the loop does by the clock meanwhile and at the end."""
    now = 0.0
    times = SaveTimes(None, per_epoch, lambda: now)
    with times.measuring():  # the baseline
        now += measuring
    begin = now
    for number in range(1, round(steps) + 1):
        now += seconds
        if number % per_epoch == 0 and times.measuring_is_due(number):
            with times.measuring():
                now += measuring
        if times.is_due(number):
            now += saving
            times.saved()
    return now - begin + measuring
