"""Who is tested, and who is trained and validated on in each fold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunetv2_pgl.files import load_json
from pretraining.comparison.cases import LabelledDataset
from pretraining.comparison.errors import ComparisonError
from pretraining.comparison.folder import read_json

TEST_FRACTION = 0.3
_TEST_SEED = 12345  # of the test set; the seeds of the repetitions do not change it


@dataclass(frozen=True)
class Fold:
    """Cases of one fold.

    Attributes:
        validation: Cases to validate on.
        orders: For each seed the training cases in the order in which a growing fraction takes them in.
    """

    validation: tuple[str, ...]
    orders: tuple[tuple[str, ...], ...]

    def training(self, fraction: float, seed: int) -> tuple[str, ...]:
        """The training cases of a fraction; those of a smaller one are among them."""
        order = self.orders[seed]
        return order[: max(1, round(fraction * len(order)))]


@dataclass(frozen=True)
class Splits:
    """Who is what; kept in splits.json, so that it stays as it is.

    Attributes:
        test: Cases that are trained, validated and pre-trained on by no run.
        test_from: Where they come from, in words.
        folds_from: Where the folds come from, in words.
        folds: All folds of the cross-validation.
    """

    test: tuple[str, ...]
    test_from: str
    folds_from: str
    folds: tuple[Fold, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        folds = [{"validation": fold.validation, "training_by_seed": fold.orders} for fold in self.folds]
        return {"test": self.test, "test_from": self.test_from, "folds_from": self.folds_from, "folds": folds}

    @classmethod
    def load(cls, path: Path) -> Splits:
        """The inverse of `to_dict`, from a file.

        Raises:
            ComparisonError: It is not a splits.json.
        """
        content = read_json(path)
        try:
            folds = tuple(
                Fold(tuple(fold["validation"]), tuple(tuple(order) for order in fold["training_by_seed"]))
                for fold in content["folds"]
            )
            return cls(tuple(content["test"]), content["test_from"], content["folds_from"], folds)
        except (KeyError, TypeError) as error:
            raise ComparisonError(f"{path}: not the splits of a comparison ({error!r})") from error

    def with_seeds(self, seeds: int) -> Splits:
        """The same with orders for at least so many seeds; those that are there stay."""
        folds = []
        for number, fold in enumerate(self.folds):
            cases = sorted(fold.orders[0])
            new = tuple(_shuffled(cases, number, seed) for seed in range(len(fold.orders), seeds))
            folds.append(Fold(fold.validation, (*fold.orders, *new)))
        return Splits(self.test, self.test_from, self.folds_from, tuple(folds))


def make_splits(
    dataset: LabelledDataset,
    test_fraction: float | None,
    test_cases: tuple[str, ...] | None,
    max_validation: int | None,
) -> Splits:
    """Draws the test set and divides the rest.

    Raises:
        ComparisonError: A named case does not exist, or too few are left.
    """
    test, test_from = _test_set(dataset, test_fraction, test_cases)
    rest = sorted(dataset.training.keys() - set(test))
    pairs, folds_from = _folds(dataset, rest)
    folds = []
    for number, (training, validation) in enumerate(pairs):
        training, validation = [_without(cases, test) for cases in (training, validation)]
        if not training or not validation:
            raise ComparisonError(
                f"fold {number} ({folds_from}) has no training or no validation case beside the test set"
            )
        folds.append(Fold(tuple(validation[:max_validation]), (_shuffled(training, number, 0),)))
    return Splits(test, test_from, folds_from, tuple(folds))


def _test_set(
    dataset: LabelledDataset, fraction: float | None, named: tuple[str, ...] | None
) -> tuple[tuple[str, ...], str]:
    if named is not None:
        unknown = sorted(set(named) - dataset.training.keys() - dataset.test.keys())
        if unknown:
            raise ComparisonError(
                f"--test_cases: {unknown[0]} is no labelled case of {dataset.name} ({len(unknown)} are not)"
            )
        return tuple(sorted(set(named))), "named by --test_cases"
    if fraction is None and dataset.test:
        return tuple(sorted(dataset.test)), "all of imagesTs"
    share = TEST_FRACTION if fraction is None else fraction
    cases = sorted(dataset.training)
    count = max(1, round(share * len(cases)))
    drawn = np.random.default_rng(_TEST_SEED).permutation(len(cases))[:count]
    return tuple(sorted(cases[index] for index in drawn)), f"{share:g} of imagesTr, drawn with seed {_TEST_SEED}"


def _folds(dataset: LabelledDataset, rest: list[str]) -> tuple[list[tuple[list[str], list[str]]], str]:
    """Training and validation cases of each fold, test cases perhaps among them, and where that comes from."""
    # nnU-Net copies the file from the raw folder when it plans, which may be still to do.
    folders = [Path(folder) / dataset.name for folder in (nnUNet_preprocessed, nnUNet_raw)]
    file = next((f for f in (folder / "splits_final.json" for folder in folders) if f.is_file()), None)
    if file is None:
        if len(rest) < 5:
            raise ComparisonError(
                f"{dataset.name} has {len(rest)} cases beside the test set; five folds need at least 5"
            )
        made = generate_crossval_split(rest, seed=12345, n_splits=5)
        pairs = [(_names(fold["train"]), _names(fold["val"])) for fold in made]
        return pairs, "nnU-Net's five folds of the other cases"
    stored = _stored_folds(file)
    pairs = [(_names(fold["train"]), _names(fold["val"])) for fold in stored]
    unknown = sorted({case for pair in pairs for part in pair for case in part} - dataset.training.keys())
    if unknown:
        raise ComparisonError(f"{file} names {unknown[0]}, which is not in imagesTr of {dataset.name}")
    return pairs, "splits_final.json of the data set, less the test cases"


def _stored_folds(path: Path) -> list[dict[str, Any]]:
    """nnU-Net's list of folds."""
    try:
        content = load_json(path)
        good = bool(content) and all({"train", "val"} <= fold.keys() for fold in content)
    except (ValueError, AttributeError, TypeError):
        good = False
    if not good:
        raise ComparisonError(f"{path}: not nnU-Net's list of folds with train and val")
    return content


def _names(cases: Iterable[Any]) -> list[str]:
    return [str(case) for case in cases]


def _without(cases: Iterable[str], test: Iterable[str]) -> list[str]:
    left_out = set(test)
    return sorted(case for case in cases if case not in left_out)


def _shuffled(cases: list[str], fold: int, seed: int) -> tuple[str, ...]:
    order = np.random.default_rng([seed, fold]).permutation(len(cases))
    return tuple(cases[index] for index in order)
