"""``--dry_run``: what there is to do, and an estimate of time and disk space from a few training steps."""

from __future__ import annotations

import multiprocessing
import shutil
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from nnunetv2.paths import nnUNet_results
from torch.utils._pytree import tree_leaves

from nnunetv2_pgl.addresses import shown
from nnunetv2_pgl.environment import environment_variable
from pretraining.comparison.comparison import Comparison
from pretraining.comparison.derived import LONGER
from pretraining.comparison.preparation import missing_cases
from pretraining.comparison.runs import (
    State,
    number_of_training_cases,
    pretraining_name,
    random_trainer,
    state_of_pretraining,
    state_of_training,
    training_runs,
)

_CHECKPOINTS = 2  # nnU-Net keeps the best and the final one
_TIMED_STEPS = 3


def print_dry_run(comparison: Comparison) -> None:
    """Prints every run with its state, and an estimate of time and space; writes nothing."""
    splits, folder = comparison.splits, comparison.folder
    is_planned = comparison.base_plans.is_file() and not missing_cases(comparison)
    print(f"Comparison {folder.name} ({folder.path})")
    print(f"Test set: {len(splits.test)} cases, {splits.test_from}")
    print(f"Folds: {splits.folds_from}")
    print(f"Planning and preprocessing: {State.DONE.value if is_planned else State.TO_DO.value}")
    print("\nPre-trainings")
    pretrainings_left = 0
    for init in comparison.inits:
        if init.given is not None:
            print(f"  {init.name:<40} uses {shown(init.address) if init.address else init.given}")
        elif init.options:
            state = state_of_pretraining(comparison, init)
            pretrainings_left += state is not State.DONE
            print(f"  {init.name:<40} {_progress(comparison, pretraining_name(init), state)}")
    runs = training_runs(comparison.settings)
    print(f"\nTrainings ({len(runs)}), with their number of training cases")
    left = []
    for run in runs:
        state = state_of_training(comparison, run)
        left += [run.init] if state is not State.DONE else []
        progress = _progress(comparison, run.name, state)
        print(f"  {run.name:<40} {number_of_training_cases(comparison, run):>5}  {progress}")
    print("\nEstimate of time and space, rough")
    more = f"{pretrainings_left} left; pgl_pretrain logs how long each epoch takes"
    print(f"  pre-trainings: {more if pretrainings_left else 'none is left'}")
    if not left:
        print("  trainings: none is left")
    elif not is_planned:
        print("  trainings: unknown before the dataset is planned and preprocessed (--only prepare)")
    else:
        _print_estimate(comparison, left)


def _progress(comparison: Comparison, name: str, state: State) -> str:
    """How far a run is, or which process works on it."""
    holder = comparison.lock(name).holder()
    return state.value if holder is None else f"in progress ({holder})"


def _print_estimate(comparison: Comparison, left: list[str]) -> None:
    """Prints time and space of the trainings that are left, given by their initialisations."""
    try:
        each, size, source = time_training(comparison)
    except (RuntimeError, AssertionError, OSError, ValueError) as error:  # not enough memory, or no such device
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        print(f"  trainings: unknown, a training step on {comparison.device} failed ({reason})")
        return
    longer = [init for init in comparison.inits if init.kind == LONGER and init.name in left]
    usual = len(left) - sum(left.count(init.name) for init in longer)
    if usual:
        print(f"  trainings: {_duration(usual * each)} for the {usual} left, {_duration(each)} each ({source})")
    for init in longer:
        print(
            f"  {init.name}: {left.count(init.name)} left, each longer than a usual training: by what pre-training "
            f"{init.source.name if init.source else ''} computes"
        )
    free = shutil.disk_usage(str(nnUNet_results)).free
    print(
        f"  disk: {len(left) * size / 1e9:.1f} GB for the {len(left)} left, {size / 1e9:.2g} GB each (nnU-Net keeps "
        f"the best and the final checkpoint); {free / 1e9:.0f} GB are free"
        + (": NOT ENOUGH" if len(left) * size >= free else "")
    )


def time_training(comparison: Comparison) -> tuple[float, float, str]:
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
    for _ in range(_TIMED_STEPS):
        begin = time.perf_counter()
        step()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"
