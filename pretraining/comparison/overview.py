"""``--dry_run``: what there is to do, and about how long that takes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from pretraining.comparison.comparison import Comparison
from pretraining.comparison.execution import seconds_of, seconds_of_pretraining
from pretraining.comparison.plan_files import base_plans
from pretraining.comparison.preparation import missing_cases
from pretraining.comparison.runs import State, TrainingRun, state_of_pretraining, state_of_training
from pretraining.comparison.timing import time_steps


def print_overview(comparison: Comparison) -> None:
    """Prints every run with its state, and an estimate of time; writes nothing."""
    splits, settings = comparison.splits, comparison.settings
    print(f"Comparison {comparison.folder.name} ({comparison.folder.path})")
    print(f"Test set: {len(splits.test)} cases, {splits.test_from}")
    print(f"Folds: {splits.folds_from}")
    planned = base_plans(settings).is_file() and not missing_cases(comparison)
    print(f"Planning and preprocessing: {State.DONE.value if planned else State.TO_DO.value}")
    print("\nPre-trainings")
    for init in comparison.inits:
        if init.given is not None:
            print(f"  {init.name:<40} uses {init.given}")
        elif not init.is_random:
            print(f"  {init.name:<40} {state_of_pretraining(comparison.folder, init).value}")
    print(f"\nTrainings ({len(comparison.runs)}), with their number of training cases")
    for run in comparison.runs:
        cases = len(splits.folds[run.fold].training(run.fraction, run.seed))
        print(f"  {run.name:<40} {cases:>5}  {_state(comparison, run).value}")
    print("\nEstimate of time, rough")
    for line in (_pretraining_estimate(comparison), _training_estimate(comparison)):
        print(f"  {line}")


def _state(comparison: Comparison, run: TrainingRun) -> State:
    return state_of_training(comparison.folder, comparison.settings, run)


def _pretraining_estimate(comparison: Comparison) -> str:
    states = {init.name: state_of_pretraining(comparison.folder, init) for init in comparison.inits}
    left = [name for name, state in states.items() if state is not State.DONE]
    if not left:
        return "pre-trainings: none is left"
    known = _known([seconds_of_pretraining(comparison, init) for init in comparison.inits])
    if not known:
        return f"pre-trainings: unknown; {len(left)} are left, and the first will tell (pgl_pretrain logs each epoch)"
    return (
        f"pre-trainings: {_duration(len(left) * statistics.mean(known))} for the {len(left)} left, by the mean of "
        f"{len(known)} finished: {_duration(statistics.mean(known))}"
    )


def _training_estimate(comparison: Comparison) -> str:
    left = [run for run in comparison.runs if _state(comparison, run) is not State.DONE]
    if not left:
        return "trainings: none is left"
    known = _known([seconds_of(comparison, run) for run in comparison.runs])
    if known:
        each = statistics.mean(known)
        source = f"training and prediction as measured in {len(known)} finished runs of this comparison"
    elif not base_plans(comparison.settings).is_file():
        return "trainings: unknown before the data set is planned (--only prepare)"
    else:
        try:
            timing = time_steps(comparison)
        except (RuntimeError, AssertionError) as error:  # out of memory, or no such device
            return f"trainings: unknown, a training step on {comparison.device} failed ({str(error).splitlines()[0]})"
        each = timing.seconds
        source = (
            f"{timing.epochs} epochs of {timing.iterations} steps of {timing.step:.3g} s, timed now on "
            f"{comparison.device} without loading; validation of whole scans and prediction come on top"
        )
    return f"trainings: {_duration(len(left) * each)} for the {len(left)} left, {_duration(each)} each ({source})"


def _known(seconds: Sequence[float | None]) -> list[float]:
    return [value for value in seconds if value is not None]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
