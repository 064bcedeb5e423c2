"""The trainings of a comparison: their names, how far each one is, and its plans file.

A plans file for each (initialisation, fraction, seed) is nnU-Net's own way to keep models apart. The preprocessed data
are those of the plans it is copied from.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from enum import Enum
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

import torch
from nnunetv2.paths import nnUNet_results

from nnunetv2_pgl.environment import environment_variable
from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.trainers import nnUNetTrainerPGL
from nnunetv2_pgl.trainers.plans import PLANS_KEY, RANDOM, RUN_KEY
from pretraining.comparison.comparison import Comparison, find_trainer
from pretraining.comparison.derived import DECODER
from pretraining.comparison.files import file_name, read_json, write_json
from pretraining.comparison.inits import Initialisation, random_network
from pretraining.comparison.settings import ComparisonSettings

T = TypeVar("T")


class State(Enum):
    """How far a run is."""

    DONE = "done"
    TO_CONTINUE = "to continue"
    TO_DO = "to do"


@dataclass(frozen=True)
class TrainingRun:
    """One training with its prediction of the test set."""

    init: str
    fraction: float
    fold: int
    seed: int

    @property
    def start(self) -> str:
        """Initialisation and fraction, as in names of files: 0.2 is 20pct, 0.125 is 12p5pct."""
        return f"{file_name(self.init)}_{100 * self.fraction:.6g}".replace(".", "p") + "pct"

    @property
    def name(self) -> str:
        """Unique within the comparison."""
        return f"{self.start}_fold{self.fold}_seed{self.seed}"


def training_runs(settings: ComparisonSettings) -> list[TrainingRun]:
    """All trainings, ordered so that the first ones can already be compared with each other."""
    return [
        TrainingRun(init, fraction, fold, seed)
        for seed in range(settings.seeds)
        for fold in settings.folds
        for fraction in settings.fractions
        for init in settings.inits
    ]


def number_of_training_cases(comparison: Comparison, run: TrainingRun) -> int:
    """Of its fraction, in its fold."""
    return len(comparison.splits.folds[run.fold].training(run.fraction, run.seed))


def plans_name(comparison: Comparison, run: TrainingRun) -> str:
    """The name of the plans of a run; its folds share them."""
    settings, name = comparison.settings, comparison.folder.name
    other = "" if name == settings.dataset else f"{name}_"
    return f"{settings.plans}_{other}{run.start}_seed{run.seed}"


def model_folder(comparison: Comparison, run: TrainingRun) -> Path:
    """Where nnU-Net trains the run's fold."""
    settings = comparison.settings
    model = f"{settings.trainer}__{plans_name(comparison, run)}__{settings.configuration}"
    return Path(nnUNet_results) / settings.dataset / model / f"fold_{run.fold}"


def pretraining_name(init: Initialisation) -> str:
    """The name of the pre-training of an initialisation among the runs; trainings have other names."""
    return f"pretrain_{init.name}"


def state_of_training(comparison: Comparison, run: TrainingRun) -> State:
    """Done once its metrics are there; to continue if nnU-Net has saved a state to continue from."""
    if comparison.folder.metrics(run.name).is_file():
        return State.DONE
    model = model_folder(comparison, run)
    saved = any((model / f"checkpoint_{kind}.pth").is_file() for kind in ("final", "latest"))
    return State.TO_CONTINUE if saved else State.TO_DO


def state_of_pretraining(comparison: Comparison, init: Initialisation) -> State:
    """The same of the pre-training of an initialisation."""
    run_folder = init.run_folder(comparison.folder)
    if not init.options or run_folder.final.is_file():
        return State.DONE
    return State.TO_CONTINUE if run_folder.latest.is_file() else State.TO_DO


def share(items: Sequence[T], part: tuple[int, int] | None) -> list[T]:
    """The I-th of N shares, dealt out in turn; all if ``part`` is None."""
    index, count = part or (0, 1)
    return list(items[index::count])


def plans_of_run(comparison: Comparison, run: TrainingRun, extra_epochs: int = 0) -> dict[str, Any]:
    """The content of a run's plans file, the same for all folds; ``extra_epochs`` makes the run longer than others."""
    init = comparison.init(run.init)
    plans = read_json(comparison.base_plans)
    plans["plans_name"] = plans_name(comparison, run)
    checkpoint = init.named_in_plans(comparison.folder)
    if checkpoint is None:
        plans.pop("pretrain_info", None)
        plans[PLANS_KEY] = random_network(comparison.inits)
    else:
        plans.pop(PLANS_KEY, None)  # the trainer takes it from the checkpoint
        plans["pretrain_info"] = {"checkpoint_path": checkpoint}
        if init.kind == DECODER:
            plans["pretrain_info"]["transfer_decoder"] = True
    plans[RUN_KEY] = {
        "comparison": comparison.folder.name,
        "initialisation": RANDOM if init.is_random else run.init,
        "seed": run.seed,
        "folds": {
            str(number): {
                "training_cases": list(fold.training(run.fraction, run.seed)),
                "validation_cases": list(fold.validation),
            }
            for number, fold in enumerate(comparison.splits.folds)
        },
    }
    if extra_epochs:
        plans[RUN_KEY]["extra_epochs"] = extra_epochs
    return plans


def write_plans(comparison: Comparison, run: TrainingRun, extra_epochs: int = 0) -> Path:
    """Writes a run's plans file beside the one it is copied from, unless it is there.

    Raises:
        PGLError: There is one of that name with another content: models may have been trained with it.
    """
    plans = plans_of_run(comparison, run, extra_epochs)
    path = comparison.base_plans.with_name(f"{plans['plans_name']}.json")
    if not path.exists():
        write_json(path, plans)
        return path
    stored = read_json(path)
    if different := sorted(key for key in stored.keys() | plans.keys() if stored.get(key) != plans.get(key)):
        raise PGLError(
            f"{path} exists, and differs in {', '.join(different)}: was {comparison.settings.plans} planned again, "
            "or is it of another comparison? Start another comparison with -o"
        )
    return path


@contextmanager
def random_trainer(comparison: Comparison) -> Iterator[nnUNetTrainerPGL]:
    """The trainer of the random start, not initialised, on the first fold's smallest fraction of cases.

    What it writes from its start is removed at the end.
    """
    settings = comparison.settings
    run = TrainingRun(RANDOM, min(settings.fractions), settings.folds[0], seed=0)
    plans = {**plans_of_run(comparison, run), "continue_training": False}
    dataset_json = read_json(comparison.base_plans.with_name("dataset.json"))
    trainer, device = find_trainer(settings.trainer), torch.device(comparison.device)
    with (
        tempfile.TemporaryDirectory() as folder,
        environment_variable("nnUNet_results", folder),
        redirect_stdout(StringIO()),
    ):
        yield trainer(plans, settings.configuration, run.fold, dataset_json, device)
