"""Which run is next, also where several processes do the same comparison: each run is done by one of them.

A process locks a run while it works on it, and passes over runs that others have locked. It waits only for what it
needs: pre-trainings that its trainings start from, and commands that a killed process has left.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from nnunetv2_pgl.errors import PGLError
from pretraining.comparison.comparison import Comparison
from pretraining.comparison.execution import pretrain, train
from pretraining.comparison.inits import Initialisation
from pretraining.comparison.runs import (
    State,
    TrainingRun,
    pretraining_name,
    state_of_pretraining,
    state_of_training,
    training_runs,
)
from pretraining.console_commands import CommandStopped
from pretraining.file_lock import LockHolder

Failures = dict[str, str]
_SECONDS_BETWEEN_LOOKS = 5.0


def pretrain_all(comparison: Comparison, inits: Sequence[Initialisation]) -> Failures:
    """Runs the pre-trainings that are not done or in progress elsewhere; returns those that failed and why.

    Raises:
        CommandStopped: A signal has ended one; the remaining ones are left for the next call.
    """
    failures: Failures = {}
    for init in inits:
        names = {other.name for other in comparison.inits if init in (other, other.source)}
        runs = [run for run in training_runs(comparison.settings) if run.init in names]
        if all(state_of_training(comparison, run) is State.DONE for run in runs):
            continue
        with comparison.lock(pretraining_name(init)) as lock:
            if not lock.take():
                continue
            try:
                pretrain(comparison, init, lock)
            except CommandStopped:
                raise
            except PGLError as error:
                failures[failure_name(init)] = str(error)
                print(f"FAILED: {error}", flush=True)
    return failures


def train_all(comparison: Comparison, runs: Sequence[TrainingRun], take_over: Sequence[Initialisation]) -> Failures:
    """Trains, predicts and measures what is not done or in progress elsewhere; returns what failed and why.

    Args:
        comparison: What they are of.
        runs: In their order; one whose pre-training is in progress elsewhere comes later.
        take_over: The starts to pre-train if the process that worked on them has ended without a result.

    Raises:
        CommandStopped: A signal has ended a pre-training.
    """
    failures: Failures = {}
    left = {run: number for number, run in enumerate(runs, start=1)}
    waiting_for: list[str] = []
    while True:
        before = len(left)
        for run, number in tuple(left.items()):
            if state_of_training(comparison, run) is State.DONE:
                del left[run]
                continue
            if not _can_begin(comparison, run, take_over, failures):
                continue
            with comparison.lock(run.name) as lock:
                if not lock.take():
                    continue
                del left[run]
                if state_of_training(comparison, run) is State.DONE:  # since a moment ago
                    continue
                print(f"\n=== {run.name} ({number} of {len(runs)}) ===", flush=True)
                try:
                    train(comparison, run, lock)
                except (PGLError, OSError) as error:
                    failures[run.name] = str(error)
                    print(f"FAILED: {error}", flush=True)
        if all((holder := comparison.lock(run.name).holder()) and not holder.has_ended for run in left):
            return failures
        if len(left) == before:
            reasons = _reasons_to_wait(comparison, left)
            if reasons and reasons != waiting_for:
                print("", *(f"Waiting for {reason}" for reason in reasons), sep="\n", flush=True)
                waiting_for = reasons
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def in_progress(comparison: Comparison) -> dict[str, LockHolder]:
    """The pre-trainings and trainings that a process works on now, with that process."""
    names = [pretraining_name(init) for init in comparison.inits if init.options]
    names += [run.name for run in training_runs(comparison.settings)]
    holders = {name: comparison.lock(name).holder() for name in names}
    return {name: holder for name, holder in holders.items() if holder is not None}


def _can_begin(
    comparison: Comparison, run: TrainingRun, take_over: Sequence[Initialisation], failures: Failures
) -> bool:
    """Whether the pre-training that a run starts from is done, or cannot be done, which the run will report."""
    source = _source_of(comparison, run)
    if state_of_pretraining(comparison, source) is not State.DONE:
        if comparison.lock(pretraining_name(source)).holder() is not None:
            return False
        if source in take_over and failure_name(source) not in failures:
            failures.update(pretrain_all(comparison, [source]))
            return state_of_pretraining(comparison, source) is State.DONE or failure_name(source) in failures
    return True


def _reasons_to_wait(comparison: Comparison, left: Iterable[TrainingRun]) -> list[str]:
    """For the runs that are left, what must end before they can begin."""
    reasons = {}
    for run in left:
        holder = comparison.lock(run.name).holder()
        source = _source_of(comparison, run)
        if holder is not None and holder.has_ended:
            reasons[run.name] = f"{run.name}: {holder} has ended, but a command that it started has not"
        elif holder is None and (holder := comparison.lock(pretraining_name(source)).holder()):
            reasons[source.name] = f"pre-training {source.name}: in progress in {holder}"
    return list(reasons.values())


def _source_of(comparison: Comparison, run: TrainingRun) -> Initialisation:
    """The initialisation whose pre-training a run needs."""
    init = comparison.init(run.init)
    return init.source or init


def failure_name(init: Initialisation) -> str:
    """The name under which a pre-training that has failed is listed."""
    return f"pre-training {init.name}"
