"""What a report tells besides the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

BASELINE = "random"


@dataclass(frozen=True)
class RunRecord:
    """A run that is done.

    Attributes:
        init: Name of the initialisation.
        fraction: Share of the training cases.
        fold: Of the cross-validation.
        seed: Of the repetition.
        predictions: Folder of the predicted segmentations, named as the cases.
        file_ending: Of these files.
        training_log: nnU-Net's log of the training; logs of earlier sittings lie beside it. None: there is none.
        seconds: Time it took; None: unknown.
    """

    init: str
    fraction: float
    fold: int
    seed: int
    predictions: Path
    file_ending: str
    training_log: Path | None
    seconds: float | None

    def prediction(self, case: str) -> Path:
        """File of the segmentation of a case."""
        return self.predictions / f"{case}{self.file_ending}"


@dataclass(frozen=True)
class Story:
    """What was compared, and how.

    Attributes:
        title: Of the report.
        facts: Name and value: data sets, folds, schedule and the like.
        commands: That reproduce the comparison.
        inits: In the order of the tables; the baseline "random" first where it is there.
        reference: The initialisation that the others are tested against.
        tolerance_mm: Of the surface Dice.
        runs: Those that are done.
        missing: Runs that are not done yet, by name.
        images: First channel of each test case.
        truths: Truth of each test case.
        classes: Label, or labels, of each class, in the order of the tables.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    commands: tuple[str, ...]
    inits: tuple[str, ...]
    reference: str
    tolerance_mm: float
    runs: tuple[RunRecord, ...]
    missing: tuple[str, ...]
    images: Mapping[str, Path]
    truths: Mapping[str, Path]
    classes: Mapping[str, int | tuple[int, ...]]
