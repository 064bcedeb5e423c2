"""What a comparison compares, and which of it may change while the comparison goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pretraining.comparison.errors import ComparisonError
from pretraining.comparison.folder import read_json, write_json

# The names of the settings that have another one on the command line.
_OPTIONS = {"dataset": "-d", "inits": "--init", "trainer": "-tr", "configuration": "-c", "plans": "-p"}
_OPTIONS |= {"checkpoints": "--checkpoint", "definitions": "--define"}
_LISTS = ("inits", "fractions", "folds")
_TABLES = ("checkpoints", "definitions")


@dataclass(frozen=True)
class ComparisonSettings:
    """What defines a comparison.

    Attributes:
        dataset: Labelled nnU-Net data set, as DatasetXXX_Name.
        pretrain_on: Data sets and folders that the pre-trainings see, less the test cases.
        inits: Names of the initialisations, "random" or of a pre-training.
        fractions: Shares of a fold's training cases to train on.
        folds: Folds of the cross-validation to train.
        seeds: Number of repetitions, each with its own order of the cases and its own random numbers.
        trainer: A subclass of nnUNetTrainerPGL.
        configuration: Of the plans.
        plans: nnU-Net's plans that all runs share.
        checkpoints: Encoder checkpoints that exist, by initialisation.
        definitions: Options of ``pgl_pretrain`` by name of the initialisation, beside those that are built in.
        pretrain_options: Further options of all pre-trainings.
        predict_options: Further options of nnUNetv2_predict.
        test_fraction: Share of imagesTr to hold out; None: the labelled imagesTs, or 0.3 where there are none.
        test_cases: Names of the test cases; None: by ``test_fraction``.
        max_validation: Most validation cases of a fold; None: all.
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
            ComparisonError: It is not one of this version.
        """
        content = {key: _tuple(value) for key, value in read_json(path).items()}
        try:
            return cls(**content)
        except TypeError as error:
            raise ComparisonError(f"{path}: not the settings of a comparison ({error})") from error

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
            ComparisonError: Another setting differs; the message has both values.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, new in given.items():
            if name in _TABLES:  # a start that is compared already stays what it was
                old = {init: values[name].get(init) for init in (*values[name], *self.inits)}
                for init in old.keys() & new.keys():
                    _require_equal(f"{_option(name)} {init}", old[init], new[init], where)
            values[name] = _grown(name, values[name], new, where)
        return ComparisonSettings(**values)


def _grown(name: str, old: Any, new: Any, where: Path) -> Any:
    if name in _LISTS:
        return (*old, *(value for value in new if value not in old))
    if name == "seeds":
        return max(old, new)
    if name in _TABLES:
        return {**old, **new}
    _require_equal(_option(name), old, new, where)
    return old


def _require_equal(option: str, old: Any, new: Any, where: Path) -> None:
    if old != new:
        raise ComparisonError(
            f"{option}: this comparison has {_shown(old)}, you gave {_shown(new)} ({where}); leave the option out to "
            "go on, or start another comparison with -o (only --init, --fractions, --folds, --seeds may grow)"
        )


def _option(name: str) -> str:
    return _OPTIONS.get(name, f"--{name}")


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple) and len(value) > 6:
        return f"{' '.join(map(str, value[:4]))} ... ({len(value)} in all)"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value) or "none"


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
