"""What a comparison compares, and the files that it keeps in ``$nnUNet_results/PGL_compare/<name>``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_results

from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.files import load_json, write_text

_NAME = re.compile(r"[A-Za-z0-9]+([_.-][A-Za-z0-9]+)*")
# The settings whose option has another name.
_OPTIONS = {"dataset": "-d", "inits": "--init", "trainer": "-tr", "configuration": "-c", "plans": "-p"}
_OPTIONS |= {"checkpoints": "--checkpoint", "definitions": "--define"}
_LISTS = ("inits", "fractions", "folds")
_TABLES = ("checkpoints", "definitions")


def require_name(text: str, option: str) -> str:
    """The name, if it can be part of the name of a model folder, which nnU-Net splits at every ``__``.

    Raises:
        PGLError: It cannot.
    """
    if not _NAME.fullmatch(text):
        raise PGLError(f"{option} {text!r}: a name has letters, digits, and single - _ . between them")
    return text


def option_of(setting: str) -> str:
    """The option that gives a setting."""
    return _OPTIONS.get(setting, f"--{setting}")


def write_file(path: Path, text: str) -> None:
    """Writes a text file in one step, so that a reader finds the old content or the new one; creates its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text, shared=True)


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file in the same way."""
    write_file(path, json.dumps(content, indent=4) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
        PGLError: It does not.
    """
    try:
        content = load_json(path)
    except (ValueError, OSError) as error:
        raise PGLError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise PGLError(f"{path}: holds no table of names and values")
    return content


@dataclass(frozen=True)
class ComparisonSettings:
    """What defines a comparison.

    Attributes:
        dataset: Labelled nnU-Net data set, as DatasetXXX_Name.
        pretrain_on: Data sets and folders that the pre-trainings see, without the test cases.
        inits: Names of the initialisations, "random" or of a pre-training.
        fractions: Shares of a fold's training cases to train on.
        folds: Folds of the cross-validation to train.
        seeds: Number of repetitions; each has another order of the cases and other random numbers.
        trainer: A subclass of nnUNetTrainerPGL.
        configuration: Of the plans.
        plans: nnU-Net's plans that all runs share.
        checkpoints: Encoder checkpoints that exist, by initialisation.
        definitions: Options of ``pgl_pretrain`` by initialisation, beside those that are built in.
        pretrain_options: Further options of all pre-trainings.
        predict_options: Further options of nnUNetv2_predict.
        test_fraction: Share of imagesTr to hold out; None: the labelled imagesTs, or 0.3 where there are none.
        test_cases: Names of the test cases; None: by ``test_fraction``.
        max_validation: Maximum number of validation cases of a fold; None: all.
        tolerance: Of the surface Dice, in mm.
    """

    dataset: str
    pretrain_on: tuple[str, ...]
    inits: tuple[str, ...] = ("random", "models_genesis", "byol", "pgl", "pgl_nce")
    fractions: tuple[float, ...] = (0.2, 0.5, 1.0)
    folds: tuple[int, ...] = (0,)
    seeds: int = 5
    trainer: str = "nnUNetTrainerPGL"
    configuration: str = "3d_fullres"
    plans: str = "nnUNetPlans"
    checkpoints: Mapping[str, str] = field(default_factory=dict)
    definitions: Mapping[str, str] = field(default_factory=dict)
    pretrain_options: str = ""
    predict_options: str = ""
    test_fraction: float | None = None
    test_cases: tuple[str, ...] | None = None
    max_validation: int | None = None
    tolerance: float = 1.0

    @property
    def dataset_id(self) -> str:
        """The number of the data set, as nnU-Net's commands take it."""
        return str(int(self.dataset[7:10]))

    @classmethod
    def load(cls, path: Path) -> ComparisonSettings:
        """Reads a settings.json.

        Raises:
            PGLError: It is not one of this version.
        """
        content: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in read_json(path).items()}
        try:
            return cls(**content)
        except TypeError as error:
            raise PGLError(f"{path}: not the settings of a comparison ({error})") from error

    def save(self, path: Path) -> None:
        """Writes a settings.json, if its content changes."""
        content = json.loads(json.dumps(asdict(self)))
        if not path.exists() or read_json(path) != content:
            write_json(path, content)

    def extended(self, given: Mapping[str, Any], where: Path) -> ComparisonSettings:
        """These settings with what was given added; only lists may grow.

        Args:
            given: Settings given on the command line.
            where: The settings' file, for messages.

        Raises:
            PGLError: Another setting differs; the message has both values.
        """
        values = {setting.name: getattr(self, setting.name) for setting in fields(self)}
        for name, new in given.items():
            old = values[name]
            if name in _LISTS:
                values[name] = (*old, *(value for value in new if value not in old))
            elif name == "seeds":
                values[name] = max(old, new)
            elif name in _TABLES:  # an initialisation that is compared already stays what it was
                for init in new.keys() & {*old, *self.inits}:
                    _require_equal(f"{option_of(name)} {init}", old.get(init), new[init], where)
                values[name] = {**old, **new}
            else:
                _require_equal(option_of(name), old, new, where)
        return ComparisonSettings(**values)


def _require_equal(option: str, old: Any, new: Any, where: Path) -> None:
    if old != new:
        raise PGLError(
            f"{option}: this comparison has {_shown(old)}, you gave {_shown(new)} ({where}); leave the option out to "
            "go on, or start another comparison with -o (only --init, --fractions, --folds, --seeds may grow)"
        )


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        shown = " ".join(map(str, value[:4] if len(value) > 6 else value))
        return f"{shown} ... ({len(value)} in all)" if len(value) > 6 else shown
    return "none" if value in (None, "") else str(value)


class ComparisonFolder:
    """The files of one comparison. All that belongs to one run has the run's name.

    Attributes:
        path: The folder; it need not exist.
        name: Of the comparison.
        settings: What is compared.
        splits: Test cases, folds and the orders of their training cases.
        excluded: Names of the scans that no pre-training sees.
        test_cases: Names of the test cases, as ``--test_cases`` takes them.
        test_images: Links to the images of the test cases, for nnUNetv2_predict.
        results: All rows of all runs.
    """

    def __init__(self, path: Path) -> None:
        """Reads and writes nothing."""
        self.path, self.name = path, path.name
        self.settings, self.splits = path / "settings.json", path / "splits.json"
        self.excluded, self.test_cases = path / "exclude.txt", path / "test_cases.txt"
        self.test_images, self.results = path / "test_images", path / "results.csv"

    @classmethod
    def named(cls, name: str) -> ComparisonFolder:
        """The folder of a comparison.

        Raises:
            PGLError: nnUNet_results is not set, or the name is not valid.
        """
        if not nnUNet_results.is_set():
            raise PGLError("nnUNet_results is not set: export nnUNet_results=/path/to/nnUNet_results")
        return cls(Path(nnUNet_results) / "PGL_compare" / require_name(name, "-o"))

    def logs(self, run: str) -> Path:
        """Output of the commands of a run."""
        return self.path / "logs" / run

    def predictions(self, run: str) -> Path:
        """Segmentations of the test cases."""
        return self.path / "predictions" / run

    def metrics(self, run: str) -> Path:
        """The rows of a run; the run is done when they are there."""
        return self.path / "metrics" / f"{run}.csv"

    def seconds(self, run: str) -> Path:
        """How long a run took."""
        return self.path / "metrics" / f"{run}.json"

    def pretraining(self, init: str) -> Path:
        """The command that this comparison has started for a pre-training."""
        return self.path / "pretraining" / f"{init}.json"

    def derived(self, init: str, ending: str) -> Path:
        """What an initialisation made from another one needs: its checkpoint, or how much longer it trains."""
        return self.path / "derived" / f"{init}.{ending}"
