"""RibFrac: 660 chest CT scans with rib fractures (https://ribfrac.grand-challenge.org)."""

from __future__ import annotations

from pathlib import Path

from nnunetv2_pgl.dataset_conversion.collection import Case, Collection, ConversionError
from nnunetv2_pgl.dataset_conversion.finding import files_by_case, labelled_cases
from nnunetv2_pgl.dataset_conversion.images import one_class
from nnunetv2_pgl.dataset_conversion.licences import RIBFRAC

# The numbers of the scans tell which part of the challenge they belong to.
TRAINING = range(1, 421)
VALIDATION = range(421, 501)
TEST = range(501, 661)


def read_ribfrac(folder: Path, with_labels: bool = False) -> Collection:
    """Find the scans, whatever the folders are called that the archives were unpacked to.

    Without labels all scans become training images, for pre-training. With labels, training and validation scans
    become fold 0 and the test scans, whose labels are not public, imagesTs. The masks hold a number per fracture, the
    csv files its type; type -1 means a fracture whose type is unclear. Here all are one class, fracture, type -1 too.

    Args:
        folder: A folder that holds all of them, at any depth: RibFrac1-image.nii.gz, RibFrac1-label.nii.gz, ...
        with_labels: Take the fracture masks as well.

    Raises:
        ConversionError: If there is no scan, or one of them twice.
    """
    images = files_by_case(folder, r".*/(RibFrac\d+)-image")
    if not images:
        raise ConversionError(f"{folder} holds no RibFrac scan: looked for files such as RibFrac1-image.nii.gz")
    if with_labels:
        return _labelled(folder, images)
    names = _names(TRAINING) + _names(VALIDATION) + _names(TEST)
    return Collection(
        "RibFrac",
        15,
        folder,
        RIBFRAC,
        training=tuple(Case(name, images[name]) for name in names if name in images),
        test=(),
        expected=len(names),
        missing=tuple(f"{name}: image missing" for name in names if name not in images),
        notes=_strangers(images),
    )


def _labelled(folder: Path, images: dict[str, Path]) -> Collection:
    labels = files_by_case(folder, r".*/(RibFrac\d+)-label")
    cases, missing = labelled_cases(_names(TRAINING) + _names(VALIDATION), images, labels)
    if not cases:
        raise ConversionError(f"{folder} holds no RibFrac label: looked for files such as RibFrac1-label.nii.gz")
    training = [name for name in _names(TRAINING) if name in cases]
    validation = [name for name in _names(VALIDATION) if name in cases]
    return Collection(
        "RibFrac",
        15,
        folder,
        RIBFRAC,
        training=tuple(cases.values()),
        test=tuple(Case(name, images[name]) for name in _names(TEST) if name in images),
        expected=len(TRAINING) + len(VALIDATION) + len(TEST),
        labels={"background": 0, "fracture": 1},
        folds=({"train": training, "val": validation},) if training and validation else (),
        split={"rule": "the challenge's training and validation scans"},
        missing=(*missing, *(f"{name}: image missing" for name in _names(TEST) if name not in images)),
        notes=_strangers(images),
        rewrite_label=one_class,
    )


def _names(numbers: range) -> list[str]:
    return [f"RibFrac{number}" for number in numbers]


def _strangers(images: dict[str, Path]) -> tuple[str, ...]:
    known = {*_names(TRAINING), *_names(VALIDATION), *_names(TEST)}
    return tuple(f"{name} is not one of the 660 scans: left out" for name in sorted(set(images) - known))
