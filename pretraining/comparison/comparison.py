"""A comparison with all that its steps need: its folder, settings, data, initialisations and trainer."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_pgl.environment import environment_variable
from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.extension_folder import VARIABLE as EXTENSION
from nnunetv2_pgl.extension_folder import extension_folder
from nnunetv2_pgl.trainers import nnUNetTrainerPGL
from nnunetv2_pgl.trainers.plans import RANDOM
from nnunetv2_pgl.trainers.pretrained import VARIABLE as CHECKPOINT
from pretraining.comparison.files import ComparisonFolder, read_json, write_json
from pretraining.comparison.inits import Initialisation, initialisations, random_network, seen_test_cases
from pretraining.comparison.settings import ComparisonSettings
from pretraining.comparison.splits import LabelledDataset, Splits, make_splits
from pretraining.console_commands import CommandRunner
from pretraining.file_lock import FileLock


@dataclass(frozen=True)
class Comparison:
    """What the command line and the comparison's folder say.

    Attributes:
        folder: Where its files are.
        settings: What it compares.
        device: "cuda", "cpu" or "mps".
        processes: For preprocessing, pre-training's preprocessing and prediction.
        download: Whether checkpoints that are given by address may be downloaded.
    """

    folder: ComparisonFolder
    settings: ComparisonSettings
    device: str
    processes: int
    download: bool = True

    def save(self) -> None:
        """Writes the settings, and where exactly the content of checkpoints is that are given by address."""
        self.settings.save(self.folder.settings)
        if addresses := {init.name: init.address for init in self.inits if init.address is not None}:
            write_json(self.folder.addresses, addresses)

    @cached_property
    def dataset(self) -> LabelledDataset:
        """The labelled dataset."""
        return LabelledDataset.load(self.settings.dataset)

    @cached_property
    def inits(self) -> list[Initialisation]:
        """All starts."""
        addresses = read_json(self.folder.addresses) if self.folder.addresses.is_file() else {}
        return initialisations(self.settings, addresses, download=self.download)

    def init(self, name: str) -> Initialisation:
        """One of them, or the random one if that is not compared."""
        return Initialisation(name) if name == RANDOM else next(init for init in self.inits if init.name == name)

    @cached_property
    def splits(self) -> Splits:
        """Those that are stored, or drawn now; writes nothing. A PGLError if they lack a fold of the settings."""
        settings = self.settings
        if self.folder.splits.is_file():
            splits = Splits.load(self.folder.splits)
        else:
            splits = make_splits(self.dataset, settings.test_fraction, settings.test_cases, settings.max_validation)
        if max(settings.folds) >= len(splits.folds):
            raise PGLError(
                f"--folds {max(settings.folds)}: folds are 0 to {len(splits.folds) - 1} ({splits.folds_from})"
            )
        return splits.with_seeds(settings.seeds)

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """What makes the comparison unfair, and is reported rather than forbidden."""
        found = [seen_test_cases(init, self.settings.dataset, self.splits.test) for init in self.inits]
        networks = {init.name: init.network for init in self.inits if init.network is not None}
        if any(network != random_network(self.inits) for network in networks.values()):
            found.append(f"the encoders differ: {networks}; the random start has that of {next(iter(networks))}")
        return tuple(warning for warning in found if warning is not None)

    @property
    def base_plans(self) -> Path:
        """The plans that those of all runs are copies of."""
        return Path(nnUNet_preprocessed) / self.settings.dataset / f"{self.settings.plans}.json"

    def lock(self, name: str) -> FileLock:
        """The lock of what has this name: a run, a pre-training, a step."""
        return FileLock(self.folder.lock(name))

    @contextmanager
    def alone(self, name: str, what: str) -> Iterator[FileLock]:
        """Waits until no other pgl_compare works on what has this name, and keeps others from it."""
        with self.lock(name) as lock:
            _wait_for(lock, what)
            yield lock

    @contextmanager
    def alone_with_dataset(self) -> Iterator[FileLock]:
        """The same for the dataset's plans and preprocessed cases, which all comparisons on it share."""
        with FileLock(self.base_plans.parent / "pgl_compare.lock") as lock:
            _wait_for(lock, f"the preprocessing of {self.settings.dataset}")
            yield lock

    def runner(self, name: str, lock: FileLock) -> CommandRunner:
        """Runs commands, which hold the lock too, with nnU-Net's variables; logs go to the folder of that name."""
        environment = {**os.environ, EXTENSION: extension_path()}
        environment.pop(CHECKPOINT, None)  # the plans say what a training starts from
        return CommandRunner(self.folder.logs(name), environment, lock)


def _wait_for(lock: FileLock, what: str) -> None:
    if not lock.take():
        print(f"Waiting for {what}: in progress in {lock.holder() or 'another process'}", flush=True)
        lock.take(math.inf)


def extension_path() -> str:
    """Value of nnUNet_extTrainer: this package's trainers first, then the user's own."""
    own = str(extension_folder())
    others = [path for path in os.environ.get(EXTENSION, "").split(os.pathsep) if path and Path(path) != Path(own)]
    return os.pathsep.join([own, *others])


def find_trainer(name: str) -> type[nnUNetTrainerPGL]:
    """The class of ``-tr``, if it can start from the checkpoints and cases of a comparison.

    Raises:
        PGLError: There is none of this name, or it is of another kind.
    """
    try:
        # nnU-Net prints where it looks.
        with environment_variable(EXTENSION, extension_path()), redirect_stdout(StringIO()):
            found = recursive_find_trainer_class_by_name(name)
    except (RuntimeError, AssertionError) as error:
        raise PGLError(
            f"-tr {name}: nnU-Net finds no such trainer among its own and in {extension_path()}; add the folder "
            f"of your trainers to {EXTENSION}"
        ) from error
    if not issubclass(found, nnUNetTrainerPGL) or not found.starts_from_checkpoint:
        raise PGLError(
            f"-tr {name}: cannot start from the checkpoints that are compared; use nnUNetTrainerPGL or a subclass of "
            "it that starts from a checkpoint (--init random is its control)"
        )
    return found
