"""A dataset as it is found in a download: its files, its terms, and which part each case goes to.

Test sets and folds are chosen by ``numpy.random.RandomState`` on purpose: numpy guarantees that its numbers never
change.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.files import walk

FILE_ENDINGS = (".nii.gz", ".nii")
DEFAULT_SEED = 12345
NUM_FOLDS = 5  # so each holds 20 % of the training scans for validation, as in the paper (section 5.1)

# An entry of nnU-Net's splits_final.json: "train" and "val" with the names of the cases.
Fold = dict[str, list[str]]


@dataclass(frozen=True)
class Licence:
    """Terms of a dataset: name, where its makers state them, and what they mean here, as a sentence."""

    name: str
    reference: str
    consequence: str


@dataclass(frozen=True)
class Case:
    """One scan of a download."""

    name: str
    image: Path
    label: Path | None = None


# Writes a file of a case (second argument) under another name (third), as .nii.gz.
Rewrite = Callable[[Case, Path, Path], None]


@dataclass(frozen=True)
class DownloadedDataset:
    """The cases of one dataset and what becomes of them.

    Attributes:
        name: Name of the dataset without its id.
        default_id: Dataset id if the user names none.
        source: Folder it was found in.
        licence: Terms of the data.
        training: Cases for imagesTr, and labelsTr if they have labels.
        test: Cases for imagesTs, and labelsTs if they have labels.
        expected: Number of scans of the whole dataset, as published.
        labels: Label names and values; None for images alone.
        folds: Training and validation cases, for splits_final.json.
        split: How test set and folds were chosen.
        missing: A line for each scan of the dataset that is not among the cases, with the reason.
        notes: What else the user should know, a line each.
        rewrite_image: Makes the image file; None copies or links it as it is.
        rewrite_label: The same for label files.
    """

    name: str
    default_id: int
    source: Path
    licence: Licence
    training: tuple[Case, ...]
    test: tuple[Case, ...]
    expected: int
    labels: dict[str, int] | None = None
    folds: tuple[Fold, ...] = ()
    split: dict[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    rewrite_image: Rewrite | None = None
    rewrite_label: Rewrite | None = None


def divide(cases: dict[str, Case], held_out: frozenset[str], seed: int, rule: str = "random") -> dict[str, Any]:
    """Training and test set, folds and split of labelled cases, as arguments of `DownloadedDataset`."""
    training = [name for name in cases if name not in held_out]
    return {
        "training": tuple(cases[name] for name in training),
        "test": tuple(case for name, case in cases.items() if name in held_out),
        "folds": make_folds(training, seed),
        "split": {"rule": rule, "seed": seed},
    }


def hold_out(cases: Sequence[str], number: int, seed: int) -> frozenset[str]:
    """Chooses test cases by the seed, whatever the order of ``cases``.

    These are all cases of the dataset as published, not only those at hand, so that a case's part does not depend on
    which others were downloaded.
    """
    return frozenset(np.random.RandomState(seed).permutation(sorted(cases))[:number].tolist())


def make_folds(cases: Sequence[str], seed: int) -> tuple[Fold, ...]:
    """Divides the training cases at hand into folds by the seed; each case is in the validation part of one.

    Returns:
        Five folds, or fewer if there are fewer cases; none for a single case, which cannot be divided. Fold 0
        validates on ``len(cases) // 5`` cases.
    """
    names = sorted(cases)
    if len(names) < 2:
        return ()
    # array_split makes the first parts the larger ones; from the end, fold 0 is one of the smaller.
    parts = np.array_split(np.random.RandomState(seed).permutation(names), min(NUM_FOLDS, len(names)))[::-1]
    return tuple({"train": sorted({*names}.difference(part)), "val": sorted(part.tolist())} for part in parts)


def image_files(folder: Path) -> Iterator[Path]:
    """Yield all NIfTI files below a folder, sorted within each; links are followed, each folder is seen once.

    Hidden files are passed over: archives made on a Mac hold a ``._`` file beside every scan.

    Raises:
        PGLError: If there is no such folder.
    """
    if not folder.is_dir():
        raise PGLError(f"{folder} is not a folder: -i takes the folder of the unpacked download")
    for directory, names in walk(folder):
        if "__MACOSX" not in directory.relative_to(folder).parts:
            yield from (directory / n for n in names if not n.startswith(".") and n.endswith(FILE_ENDINGS))


def files_by_case(folder: Path, pattern: str) -> dict[str, Path]:
    """The file of each case, at any depth below a folder.

    Args:
        folder: Where to search.
        pattern: Regular expression for parent folder and file name without its ending ("case_00001/imaging"); its
            group is the case.

    Raises:
        PGLError: If there is no such folder, or two files for one case.
    """
    found: dict[str, Path] = {}
    for path in image_files(folder):
        if match := re.fullmatch(rf"{pattern}\.nii(\.gz)?", f"{path.parent.name}/{path.name}"):
            other = found.setdefault(match[1], path)
            if other != path:
                raise PGLError(f"{match[1]} is there twice, as {other} and {path}: move one of them away")
    return found


def complete_cases(
    names: Sequence[str], images: dict[str, Path], labels: dict[str, Path] | None = None
) -> tuple[dict[str, Case], tuple[str, ...]]:
    """Joins images and labels.

    Args:
        names: The cases of the dataset as published.
        images: Image file of each case found.
        labels: Label file of each case found; None for images alone.

    Returns:
        The complete cases in the order of ``names``, and a line for each that is not.
    """
    found = {"image": images} if labels is None else {"image": images, "label": labels}
    cases, missing = {}, []
    for name in names:
        if lacking := [kind for kind, files in found.items() if name not in files]:
            missing.append(f"{name}: {' and '.join(lacking)} missing")
        else:
            cases[name] = Case(name, images[name], labels[name] if labels else None)
    return cases, tuple(missing)
