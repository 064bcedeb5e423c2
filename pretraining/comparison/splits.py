"""The cases of a labelled nnU-Net dataset, and which of them are for testing, training and validation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.crossval_split import generate_crossval_split
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.files import load_json
from pretraining.comparison.files import read_json

TEST_FRACTION = 0.3
_TEST_SEED = 12345  # of the test set; the seeds of the repetitions do not change it


@dataclass(frozen=True)
class Case:
    """A labelled case: one image per channel, and the segmentation."""

    images: tuple[Path, ...]
    label: Path


@dataclass(frozen=True)
class LabelledDataset:
    """An nnU-Net dataset in its raw form.

    Attributes:
        name: DatasetXXX_Name.
        file_ending: Of images and segmentations.
        classes: Label of each foreground class, or the labels of each region.
        ignore_label: Label of voxels that are not counted, if there is one.
        training: Cases of imagesTr by name.
        test: Those of imagesTs, if every one of them has a label; else none.
    """

    name: str
    file_ending: str
    classes: Mapping[str, int | tuple[int, ...]]
    ignore_label: int | None
    training: Mapping[str, Case]
    test: Mapping[str, Case]

    @classmethod
    def load(cls, name: str) -> LabelledDataset:
        """Lists the files; reads no image.

        Raises:
            PGLError: Images, labels or the list of labels are missing.
        """
        folder = Path(nnUNet_raw) / name
        content = read_json(folder / "dataset.json")
        if not content.get("labels") or "file_ending" not in content:
            raise PGLError(f"{folder / 'dataset.json'}: names no labels or no file_ending: not a labelled dataset")
        ending = str(content["file_ending"])
        if "dataset" in content:  # files elsewhere
            listed = get_filenames_of_train_images_and_targets(str(folder), content).items()
            training = {str(k): Case(tuple(map(Path, files["images"])), Path(files["label"])) for k, files in listed}
        else:
            training = _cases(folder, "Tr", ending)
        if not training:
            raise PGLError(f"{folder / 'imagesTr'} holds no image that ends with {ending}")
        if missing := [case.label for case in training.values() if not case.label.is_file()]:
            raise PGLError(f"{missing[0]} is missing: every case of imagesTr needs its label")
        test = _cases(folder, "Ts", ending)
        if not all(case.label.is_file() for case in test.values()):
            test = {}
        if twice := sorted(test.keys() & training.keys()):
            raise PGLError(f"{folder}: {twice[0]} is in imagesTr and in imagesTs; rename one of them")
        labels = {k: v for k, v in content["labels"].items() if k not in ("background", "ignore")}
        classes = {k: tuple(map(int, v)) if isinstance(v, list) else int(v) for k, v in labels.items()}
        return cls(name, ending, classes, content["labels"].get("ignore"), training, test)

    def case(self, name: str) -> Case:
        """A case of either folder."""
        return self.training[name] if name in self.training else self.test[name]


def _cases(folder: Path, part: str, ending: str) -> dict[str, Case]:
    """Cases of imagesTr or imagesTs, with the channels in their order."""
    images: dict[str, list[Path]] = {}
    for file in sorted((folder / f"images{part}").glob(f"*{ending}")):
        if match := re.fullmatch(r"(.+)_\d{4}", file.name.removesuffix(ending)):
            images.setdefault(match[1], []).append(file)
    return {name: Case(tuple(files), folder / f"labels{part}" / f"{name}{ending}") for name, files in images.items()}


@dataclass(frozen=True)
class Fold:
    """Cases of one fold.

    Attributes:
        validation: Cases to validate on.
        training_by_seed: For each seed the training cases in the order in which a growing fraction takes them in.
    """

    validation: tuple[str, ...]
    training_by_seed: tuple[tuple[str, ...], ...]

    def training(self, fraction: float, seed: int) -> tuple[str, ...]:
        """The training cases of a fraction; those of a smaller one are among them."""
        order = self.training_by_seed[seed]
        return order[: max(1, round(fraction * len(order)))]


@dataclass(frozen=True)
class Splits:
    """The role of each case; kept in splits.json, so that it stays as it is.

    Attributes:
        test: Cases that no run is trained, validated or pre-trained on.
        test_from: Where they come from, in words.
        folds_from: Where the folds come from, in words.
        folds: All folds of the cross-validation.
    """

    test: tuple[str, ...]
    test_from: str
    folds_from: str
    folds: tuple[Fold, ...]

    @classmethod
    def load(cls, path: Path) -> Splits:
        """Reads a splits.json, which holds the fields.

        Raises:
            PGLError: It is not a splits.json.
        """
        content = read_json(path)
        try:
            folds = [Fold(tuple(f["validation"]), tuple(map(tuple, f["training_by_seed"]))) for f in content["folds"]]
            return cls(tuple(content["test"]), content["test_from"], content["folds_from"], tuple(folds))
        except (KeyError, TypeError) as error:
            raise PGLError(f"{path}: not the splits of a comparison ({error!r})") from error

    def with_seeds(self, seeds: int) -> Splits:
        """The same with orders for at least so many seeds; those that are there stay."""
        folds = []
        for number, fold in enumerate(self.folds):
            cases, there = sorted(fold.training_by_seed[0]), len(fold.training_by_seed)
            new = (_shuffled(cases, number, seed) for seed in range(there, seeds))
            folds.append(Fold(fold.validation, (*fold.training_by_seed, *new)))
        return replace(self, folds=tuple(folds))


def make_splits(
    dataset: LabelledDataset,
    test_fraction: float | None,
    test_cases: tuple[str, ...] | None,
    max_validation: int | None,
) -> Splits:
    """Draws the test set and divides the rest.

    Raises:
        PGLError: A named case does not exist, or too few are left.
    """
    if test_cases is not None:
        test, test_from = sorted(set(test_cases)), "named by --test_cases"
        if unknown := sorted(set(test) - dataset.training.keys() - dataset.test.keys()):
            message = f"{unknown[0]} is not a labelled case of {dataset.name} ({len(unknown)} are not)"
            raise PGLError(f"--test_cases: {message}")
    elif test_fraction is None and dataset.test:
        test, test_from = sorted(dataset.test), "all of imagesTs"
    else:
        share = TEST_FRACTION if test_fraction is None else test_fraction
        cases = sorted(dataset.training)
        drawn = np.random.default_rng(_TEST_SEED).permutation(len(cases))[: max(1, round(share * len(cases)))]
        test, test_from = sorted(cases[i] for i in drawn), f"{share:g} of imagesTr, drawn with seed {_TEST_SEED}"
    stored, folds_from = _folds(dataset, sorted(dataset.training.keys() - set(test)))
    folds = []
    for number, fold in enumerate(stored):
        training, validation = (sorted(set(fold[part]) - set(test)) for part in ("train", "val"))
        if not training or not validation:
            raise PGLError(f"fold {number} ({folds_from}) has no training or no validation case beside the test set")
        folds.append(Fold(tuple(validation[:max_validation]), (_shuffled(training, number, 0),)))
    return Splits(tuple(test), test_from, folds_from, tuple(folds))


def _folds(dataset: LabelledDataset, rest: list[str]) -> tuple[list[dict[str, list[str]]], str]:
    """Training and validation cases of each fold, test cases perhaps among them, and where that comes from."""
    # nnU-Net copies the file from the raw folder when it plans, which may be still to do.
    files = [Path(folder) / dataset.name / "splits_final.json" for folder in (nnUNet_preprocessed, nnUNet_raw)]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        if len(rest) < 5:
            raise PGLError(f"{dataset.name} has {len(rest)} cases beside the test set; five folds need at least 5")
        folds = generate_crossval_split(rest, seed=12345, n_splits=5)
        return [
            {part: list(map(str, fold[part])) for part in fold} for fold in folds
        ], "nnU-Net's five folds of the other cases"
    try:
        stored = [{part: list(map(str, fold[part])) for part in ("train", "val")} for fold in load_json(file)]
    except (ValueError, KeyError, TypeError):
        stored = []
    if not stored:
        raise PGLError(f"{file}: not nnU-Net's list of folds with train and val")
    if unknown := sorted({c for fold in stored for part in fold.values() for c in part} - dataset.training.keys()):
        raise PGLError(f"{file} names {unknown[0]}, which is not in imagesTr of {dataset.name}")
    return stored, "splits_final.json of the dataset, less the test cases"


def _shuffled(cases: list[str], fold: int, seed: int) -> tuple[str, ...]:
    order = np.random.default_rng([seed, fold]).permutation(len(cases))
    return tuple(cases[index] for index in order)
