"""A comparison with all that its steps need: where it is, what it compares, and on which machine it runs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from nnunetv2_pgl.extension_folder import VARIABLE as EXTENSION
from nnunetv2_pgl.extension_folder import extension_folder
from nnunetv2_pgl.trainers.pretrained import VARIABLE as CHECKPOINT
from pretraining.comparison.cases import LabelledDataset
from pretraining.comparison.errors import ComparisonError
from pretraining.comparison.folder import ComparisonFolder
from pretraining.comparison.inits import Initialisation, doubt_about, initialisations, random_network
from pretraining.comparison.runs import TrainingRun, training_runs
from pretraining.comparison.settings import ComparisonSettings
from pretraining.comparison.splits import Splits, make_splits
from pretraining.launching.commands import CommandRunner


@dataclass(frozen=True)
class Comparison:
    """What the command line and the comparison's folder say.

    Attributes:
        folder: Where it lives.
        settings: What it compares.
        device: "cuda", "cpu" or "mps".
        processes: For preprocessing, pre-training's preprocessing and prediction.
    """

    folder: ComparisonFolder
    settings: ComparisonSettings
    device: str
    processes: int

    @cached_property
    def dataset(self) -> LabelledDataset:
        """The labelled data set."""
        return LabelledDataset.load(self.settings.dataset)

    @cached_property
    def inits(self) -> list[Initialisation]:
        """All starts."""
        return initialisations(self.settings)

    @cached_property
    def splits(self) -> Splits:
        """Those that are stored, or drawn now; writes nothing.

        Raises:
            ComparisonError: They cannot be drawn, or lack a fold of the settings.
        """
        settings = self.settings
        if self.folder.splits.is_file():
            splits = Splits.load(self.folder.splits)
        else:
            splits = make_splits(self.dataset, settings.test_fraction, settings.test_cases, settings.max_validation)
        wrong = [fold for fold in settings.folds if fold >= len(splits.folds)]
        if wrong:
            raise ComparisonError(f"--folds {wrong[0]}: folds are 0 to {len(splits.folds) - 1} ({splits.folds_from})")
        return splits.with_seeds(settings.seeds)

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """What makes the comparison unfair, and is said rather than forbidden."""
        test = self.splits.test
        doubts = [doubt_about(init, self.settings.dataset, test) for init in self.inits]
        found = [doubt for doubt in doubts if doubt is not None]
        networks = {init.name: init.network for init in self.inits if init.network is not None}
        if any(network != random_network(self.inits) for network in networks.values()):
            found.append(f"the encoders differ: {networks}; the random start has that of {next(iter(networks))}")
        return tuple(found)

    @property
    def runs(self) -> list[TrainingRun]:
        """All trainings."""
        return training_runs(self.settings)

    def init_of(self, run: TrainingRun) -> Initialisation:
        """What a training starts from."""
        return next(init for init in self.inits if init.name == run.init)

    def runner(self, name: str) -> CommandRunner:
        """Runs commands with the variables that nnU-Net needs; logs go to the folder of that name."""
        environment = {**os.environ, EXTENSION: extension_path()}
        environment.pop(CHECKPOINT, None)  # the plans say what a training starts from
        return CommandRunner(self.folder.logs(name), environment)


def extension_path() -> str:
    """Value of nnUNet_extTrainer: this package's trainers first, then the user's own."""
    own = str(extension_folder())
    others = [path for path in os.environ.get(EXTENSION, "").split(os.pathsep) if path and Path(path) != Path(own)]
    return os.pathsep.join([own, *others])
