"""What a download holds and what becomes of it: readers of the data sets return it, the writer takes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunetv2_pgl.dataset_conversion.licences import Licence
from nnunetv2_pgl.dataset_conversion.splits import Fold
from nnunetv2_pgl.errors import PGLError


class ConversionError(PGLError):
    """A download cannot be converted: one line that says what is wrong and what to do."""


@dataclass(frozen=True)
class Case:
    """One scan of a download."""

    name: str
    image: Path
    label: Path | None = None


# Writes a file of a case (second argument) anew under another name (third), as .nii.gz.
Rewrite = Callable[[Case, Path, Path], None]


@dataclass(frozen=True)
class Collection:
    """The cases of one data set.

    Attributes:
        name: Name of the dataset without its id.
        default_id: Dataset id if the user names none.
        source: Folder it was found in.
        licence: Terms of the data.
        training: Cases for imagesTr, and labelsTr if they have labels.
        test: Cases for imagesTs, and labelsTs if they have labels.
        expected: Number of scans of the whole data set, as published.
        labels: Label names and values; None for images alone.
        folds: Training and validation cases, for splits_final.json.
        split: How test set and folds were chosen.
        missing: A line for each scan of the data set that is not among the cases, with the reason.
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
