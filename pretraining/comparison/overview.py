"""``--dry_run``: what there is to do, about how long that takes, and how much it fills."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Sequence

from nnunetv2.paths import nnUNet_results

from pretraining.comparison.comparison import Comparison
from pretraining.comparison.derived import LONGER
from pretraining.comparison.execution import seconds_of, seconds_of_pretraining
from pretraining.comparison.folder import read_json
from pretraining.comparison.inits import Initialisation
from pretraining.comparison.plan_files import base_plans
from pretraining.comparison.preparation import missing_cases
from pretraining.comparison.runs import State, TrainingRun, model_folder, state_of_pretraining, state_of_training
from pretraining.comparison.timing import StepTiming, time_steps

_CHECKPOINTS = 2  # nnU-Net keeps the best and the final one


def print_overview(comparison: Comparison) -> None:
    """Prints every run with its state, and an estimate of time and space; writes nothing."""
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
        elif init.options:
            print(f"  {init.name:<40} {state_of_pretraining(comparison.folder, init).value}")
    print(f"\nTrainings ({len(comparison.runs)}), with their number of training cases")
    for run in comparison.runs:
        cases = len(splits.folds[run.fold].training(run.fraction, run.seed))
        print(f"  {run.name:<40} {cases:>5}  {_state(comparison, run).value}")
    print("\nEstimate of time and space, rough")
    for line in (_pretraining_estimate(comparison), *_training_estimates(comparison)):
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


def _training_estimates(comparison: Comparison) -> list[str]:
    """How long the trainings that are left take, and what they leave on the disk."""
    left = [run for run in comparison.runs if _state(comparison, run) is not State.DONE]
    if not left:
        return ["trainings: none is left"]
    longer = [line for init in comparison.inits if init.kind == LONGER for line in _longer_estimate(comparison, init)]
    return [*_estimates_of_usual_length(comparison, left), *longer]


def _longer_estimate(comparison: Comparison, init: Initialisation) -> list[str]:
    """The same of trainings as long as a pre-training, which the time of the others does not tell."""
    runs = [run for run in comparison.runs if run.init == init.name]
    left = sum(_state(comparison, run) is not State.DONE for run in runs)
    seconds = _known([seconds_of(comparison, run) for run in runs])
    if not left:
        return []
    if seconds:
        mean = statistics.mean(seconds)
        return [f"{init.name}: {_duration(left * mean)} for the {left} left, {_duration(mean)} each, as measured"]
    record = comparison.folder.derived(init.file_name, "json")
    more = f" by {read_json(record)['extra_epochs']} epochs" if record.is_file() else ""
    of = init.source.name if init.source else ""
    return [f"{init.name}: {left} left, each longer than a usual training{more}: by what pre-training {of} computes"]


def _estimates_of_usual_length(comparison: Comparison, left: Sequence[TrainingRun]) -> list[str]:
    """Time of the trainings that are not longer than others, and space of all."""
    usual = [run for run in comparison.runs if comparison.init_of(run).kind != LONGER]
    timed = len([run for run in left if run in usual])
    seconds = _known([seconds_of(comparison, run) for run in usual])
    sizes = _known([_size_of(comparison, run) for run in comparison.runs])
    if seconds and sizes:
        source = f"training and prediction as measured in {len(seconds)} finished runs of this comparison"
        return [_time_of(timed, statistics.mean(seconds), source), _space_of(len(left), statistics.mean(sizes))]
    if not base_plans(comparison.settings).is_file():
        return ["trainings: unknown before the data set is planned (--only prepare)"]
    try:
        timing = time_steps(comparison)
    except (RuntimeError, AssertionError) as error:  # out of memory, or no such device
        return [f"trainings: unknown, a training step on {comparison.device} failed ({str(error).splitlines()[0]})"]
    return [
        _time_of(timed, timing.seconds, _source_of(timing, comparison.device)),
        _space_of(len(left), _CHECKPOINTS * timing.checkpoint),
    ]


def _source_of(timing: StepTiming, device: str) -> str:
    return (
        f"{timing.epochs} epochs of {timing.iterations} steps of {timing.step:.3g} s, timed now on {device} without "
        "loading; validation of whole scans and prediction come on top"
    )


def _time_of(count: int, seconds: float, source: str) -> str:
    if not count:
        return "trainings of usual length: none is left"
    return f"trainings: {_duration(count * seconds)} for the {count} left, {_duration(seconds)} each ({source})"


def _space_of(count: int, size: float) -> str:
    free = shutil.disk_usage(str(nnUNet_results)).free
    line = (
        f"disk: {count * size / 1e9:.1f} GB for the {count} left, {size / 1e9:.2g} GB each (nnU-Net keeps the best and "
        f"the final checkpoint); {free / 1e9:.0f} GB are free"
    )
    return line if count * size < free else f"{line}: NOT ENOUGH"


def _size_of(comparison: Comparison, run: TrainingRun) -> float | None:
    """Bytes of the model of a run that is done; None if it is not, or if its model is no longer there."""
    model = model_folder(comparison.folder, comparison.settings, run)
    if _state(comparison, run) is not State.DONE or not (model / "checkpoint_final.pth").is_file():
        return None
    return float(sum(file.stat().st_size for file in model.rglob("*") if file.is_file()))


def _known(seconds: Sequence[float | None]) -> list[float]:
    return [value for value in seconds if value is not None]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
