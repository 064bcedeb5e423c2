"""The trainings of a comparison, their names, and how far each one is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TypeVar

from nnunetv2.paths import nnUNet_results

from pretraining.comparison.folder import ComparisonFolder
from pretraining.comparison.inits import Initialisation, file_name
from pretraining.comparison.settings import ComparisonSettings

T = TypeVar("T")


class State(Enum):
    """How far a run is."""

    DONE = "done"
    TO_CONTINUE = "to continue"
    TO_DO = "to do"


def percent(fraction: float) -> str:
    """A fraction in names: 0.2 is 20, 0.125 is 12p5."""
    return f"{100 * fraction:.6g}".replace(".", "p")


@dataclass(frozen=True)
class TrainingRun:
    """One training with its prediction of the test set."""

    init: str
    fraction: float
    fold: int
    seed: int

    @property
    def name(self) -> str:
        """Unique within the comparison."""
        return f"{file_name(self.init)}_{percent(self.fraction)}pct_fold{self.fold}_seed{self.seed}"


def training_runs(settings: ComparisonSettings) -> list[TrainingRun]:
    """All trainings; those to be compared with each other follow each other, so that a part of them tells something."""
    return [
        TrainingRun(init, fraction, fold, seed)
        for seed in range(settings.seeds)
        for fold in settings.folds
        for fraction in settings.fractions
        for init in settings.inits
    ]


def plans_name(folder: ComparisonFolder, settings: ComparisonSettings, run: TrainingRun) -> str:
    """The name of the plans of a run; its folds share them."""
    comparison = () if folder.name == settings.dataset else (folder.name,)
    parts = (settings.plans, *comparison, file_name(run.init), f"{percent(run.fraction)}pct", f"seed{run.seed}")
    return "_".join(parts)


def model_folder(folder: ComparisonFolder, settings: ComparisonSettings, run: TrainingRun) -> Path:
    """Where nnU-Net trains the run's fold."""
    model = f"{settings.trainer}__{plans_name(folder, settings, run)}__{settings.configuration}"
    return Path(nnUNet_results) / settings.dataset / model / f"fold_{run.fold}"


def state_of_training(folder: ComparisonFolder, settings: ComparisonSettings, run: TrainingRun) -> State:
    """Done once its metrics are there; to continue from what nnU-Net has saved to go on with, if there is such."""
    if folder.metrics(run.name).is_file():
        return State.DONE
    model = model_folder(folder, settings, run)
    saved = any((model / f"checkpoint_{kind}.pth").is_file() for kind in ("final", "latest"))
    return State.TO_CONTINUE if saved else State.TO_DO


def state_of_pretraining(folder: ComparisonFolder, init: Initialisation) -> State:
    """The same of the pre-training of an initialisation."""
    if not init.options:
        return State.DONE
    run_folder = init.run_folder(folder)
    if run_folder.final.is_file():
        return State.DONE
    return State.TO_CONTINUE if run_folder.latest.is_file() else State.TO_DO


def share(items: Sequence[T], part: tuple[int, int] | None) -> list[T]:
    """The I-th of N shares, dealt out in turn; all if there are no shares."""
    if part is None:
        return list(items)
    index, count = part
    return list(items[index::count])
