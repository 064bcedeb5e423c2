"""``--dry_run``: what there is to do, an estimate of the time from a few training steps, and the disk it takes."""

from __future__ import annotations

import multiprocessing
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from nnunetv2.paths import nnUNet_results
from torch.utils._pytree import tree_leaves

from nnunetv2_pgl.environment import environment_variable
from pretraining.comparison.comparison import Comparison
from pretraining.comparison.derived import LONGER
from pretraining.comparison.execution import number_of_training_cases, seconds_in
from pretraining.comparison.files import read_json
from pretraining.comparison.inits import Initialisation
from pretraining.comparison.preparation import missing_cases
from pretraining.comparison.runs import (
    State,
    TrainingRun,
    model_folder,
    random_trainer,
    state_of_pretraining,
    state_of_training,
    training_runs,
)

_CHECKPOINTS = 2  # nnU-Net keeps the best and the final one
_STEPS = 3  # that are timed


def print_dry_run(comparison: Comparison) -> None:
    """Prints every run with its state, and an estimate of time and space; writes nothing."""
    splits, folder = comparison.splits, comparison.folder
    planned = comparison.base_plans.is_file() and not missing_cases(comparison)
    print(f"Comparison {folder.name} ({folder.path})")
    print(f"Test set: {len(splits.test)} cases, {splits.test_from}")
    print(f"Folds: {splits.folds_from}")
    print(f"Planning and preprocessing: {State.DONE.value if planned else State.TO_DO.value}")
    print("\nPre-trainings")
    for init in comparison.inits:
        if init.given is not None:
            print(f"  {init.name:<40} uses {init.given}")
        elif init.options:
            print(f"  {init.name:<40} {state_of_pretraining(comparison, init).value}")
    runs = training_runs(comparison.settings)
    print(f"\nTrainings ({len(runs)}), with their number of training cases")
    states = {run: state_of_training(comparison, run) for run in runs}
    for run, state in states.items():
        print(f"  {run.name:<40} {number_of_training_cases(comparison, run):>5}  {state.value}")
    left = [run for run, state in states.items() if state is not State.DONE]
    print("\nEstimate of time and space, rough")
    print(f"  {_pretrainings_estimate(comparison)}")
    for line in _trainings_estimate(comparison, left, planned) if left else ["trainings: none is left"]:
        print(f"  {line}")


def _pretrainings_estimate(comparison: Comparison) -> str:
    inits = comparison.inits
    left = sum(state_of_pretraining(comparison, init) is not State.DONE for init in inits)
    if not left:
        return "pre-trainings: none is left"
    known = _known(seconds_in(comparison.folder.pretraining(init.name)) for init in inits)
    if not known:
        return f"pre-trainings: unknown; {left} are left, and the first will show it (pgl_pretrain logs each epoch)"
    mean = statistics.mean(known)
    total, each = _duration(left * mean), _duration(mean)
    return f"pre-trainings: {total} for the {left} left, by the mean of {len(known)} finished: {each}"


def _trainings_estimate(comparison: Comparison, left: Sequence[TrainingRun], planned: bool) -> list[str]:
    """Time and space of the trainings that are left; those that are longer than the others have lines of their own."""
    runs = training_runs(comparison.settings)
    longer = [init for init in comparison.inits if init.kind == LONGER]
    usual = [run for run in runs if run.init not in {init.name for init in longer}]
    seconds, sizes = _known(seconds_of(comparison, run) for run in usual), _known(_size_of(comparison, r) for r in runs)
    if seconds and sizes:
        each, size = statistics.mean(seconds), statistics.mean(sizes)
        source = f"training and prediction as measured in {len(seconds)} finished runs of this comparison"
    elif not planned:
        return ["trainings: unknown before the data set is planned and preprocessed (--only prepare)"]
    else:
        try:
            each, size, source = _timed_steps(comparison)
        except (RuntimeError, AssertionError, OSError, ValueError) as error:  # out of memory, or no such device
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            return [f"trainings: unknown, a training step on {comparison.device} failed ({reason})"]
    timed = sum(run in usual for run in left)
    time_line = f"trainings: {_duration(timed * each)} for the {timed} left, {_duration(each)} each ({source})"
    free = shutil.disk_usage(str(nnUNet_results)).free
    space_line = (
        f"disk: {len(left) * size / 1e9:.1f} GB for the {len(left)} left, {size / 1e9:.2g} GB each (nnU-Net keeps the "
        f"best and the final checkpoint); {free / 1e9:.0f} GB are free"
    )
    if len(left) * size >= free:
        space_line += ": NOT ENOUGH"
    first = time_line if timed else "trainings of usual length: none is left"
    names = [run.init for run in left]
    more = [_longer_estimate(comparison, init, n) for init in longer if (n := names.count(init.name))]
    return [first, space_line, *more]


def _longer_estimate(comparison: Comparison, init: Initialisation, left: int) -> str:
    """Of trainings as long as a pre-training, for which the time of the others says nothing."""
    seconds = _known(seconds_of(comparison, r) for r in training_runs(comparison.settings) if r.init == init.name)
    if seconds:
        mean = statistics.mean(seconds)
        return f"{init.name}: {_duration(left * mean)} for the {left} left, {_duration(mean)} each, as measured"
    record = comparison.folder.derived(init.name, "json")
    more = f" by {read_json(record)['extra_epochs']} epochs" if record.is_file() else ""
    of = init.source.name if init.source else ""
    return f"{init.name}: {left} left, each longer than a usual training{more}: by what pre-training {of} computes"


def _timed_steps(comparison: Comparison) -> tuple[float, float, str]:
    """Seconds of a training, bytes of its checkpoints, and where that is from: some steps on a first batch of scans."""
    if comparison.device == "cpu":
        torch.set_num_threads(multiprocessing.cpu_count())  # as nnUNetv2_train does
    with random_trainer(comparison) as trainer, environment_variable("nnUNet_n_proc_DA", "0"):
        trainer.initialize()
        batch = next(trainer.get_dataloaders()[0])
        trainer.network.train()
        step = _seconds(lambda: trainer.train_step(batch))
        trainer.network.eval()
        with torch.no_grad():
            validation_step = _seconds(lambda: trainer.validation_step(batch))
        state = [trainer.network.state_dict(), trainer.optimizer.state_dict()]
    size = sum(leaf.nbytes for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor))
    of_epoch = trainer.num_iterations_per_epoch * step + trainer.num_val_iterations_per_epoch * validation_step
    source = (
        f"{trainer.num_epochs} epochs of {trainer.num_iterations_per_epoch} steps of {step:.3g} s, timed now on "
        f"{comparison.device} without loading; validation of whole scans and prediction come on top"
    )
    return trainer.num_epochs * of_epoch, _CHECKPOINTS * size, source


def _seconds(step: Callable[[], Any]) -> float:
    """Median of some steps after a first one; a step ends with its loss on the host, so a GPU is waited for."""
    step()
    taken = []
    for _ in range(_STEPS):
        begin = time.perf_counter()
        step()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def seconds_of(comparison: Comparison, run: TrainingRun) -> float | None:
    """How long training and prediction of a run took; None if it is not done or was interrupted."""
    return seconds_in(comparison.folder.seconds(run.name))


def _size_of(comparison: Comparison, run: TrainingRun) -> float | None:
    """Bytes of the model of a run that is done; None if it is not, or if its model is no longer there."""
    model = model_folder(comparison, run)
    if state_of_training(comparison, run) is not State.DONE or not (model / "checkpoint_final.pth").is_file():
        return None
    return float(sum(file.stat().st_size for file in model.rglob("*") if file.is_file()))


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"
