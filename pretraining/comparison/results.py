"""The rows of results.csv: a run, a test case, a class."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from pretraining.comparison.errors import ComparisonError
from pretraining.comparison.folder import write_atomically

Run = tuple[int, int]  # fold, seed


@dataclass(frozen=True)
class CaseResult:
    """What a run achieves for a class of a test case.

    Attributes:
        init: Name of the initialisation.
        fraction: Share of the training cases that the run was trained on.
        training_cases: Their number.
        fold: Of the cross-validation.
        seed: Of the repetition.
        case: Name of the test case.
        class_name: Name of the class, or region.
        dice: 0 to 1; like all measures nan where the truth is empty.
        iou: 0 to 1.
        hd: Hausdorff distance in mm.
        hd95: Its 95th percentile in mm.
        surface_dice: 0 to 1, at the tolerance of the comparison.
        missed: The truth is not empty but the prediction is: Dice 0, distances the diagonal of the image.
        truth_voxels: Number of voxels of the truth.
        predicted_voxels: Number of voxels of the prediction.
    """

    init: str
    fraction: float
    training_cases: int
    fold: int
    seed: int
    case: str
    class_name: str
    dice: float
    iou: float
    hd: float
    hd95: float
    surface_dice: float
    missed: bool
    truth_voxels: int
    predicted_voxels: int

    @property
    def run(self) -> Run:
        """Fold and seed."""
        return self.fold, self.seed

    @property
    def key(self) -> tuple[Any, ...]:
        """What there is one row of."""
        return self.init, self.fraction, self.fold, self.seed, self.case, self.class_name

    @property
    def empty(self) -> bool:
        """The truth does not have the class: nothing is averaged."""
        return self.truth_voxels == 0

    @property
    def spurious(self) -> bool:
        """The truth does not have the class, the prediction does."""
        return self.empty and self.predicted_voxels > 0


@dataclass(frozen=True)
class ResultSet:
    """All rows, sorted into those of one initialisation at one fraction."""

    cells: Mapping[tuple[str, float], tuple[CaseResult, ...]]

    @classmethod
    def of(cls, results: Iterable[CaseResult]) -> ResultSet:
        """Sorts the rows."""
        cells: dict[tuple[str, float], list[CaseResult]] = {}
        for row in results:
            cells.setdefault((row.init, row.fraction), []).append(row)
        return cls({cell: tuple(rows) for cell, rows in cells.items()})

    def rows(self, init: str, fraction: float) -> tuple[CaseResult, ...]:
        """The rows of an initialisation at a fraction; none if it has no run there."""
        return self.cells.get((init, fraction), ())

    @cached_property
    def fractions(self) -> tuple[float, ...]:
        """All fractions, the smallest first."""
        return tuple(sorted({fraction for _, fraction in self.cells}))

    @cached_property
    def inits(self) -> frozenset[str]:
        """All initialisations."""
        return frozenset(init for init, _ in self.cells)

    def training_cases(self, fraction: float) -> tuple[int, ...]:
        """Numbers of training cases of a fraction; several if the folds differ."""
        return tuple(sorted({r.training_cases for (_, f), rows in self.cells.items() if f == fraction for r in rows}))


def write_results(results: Sequence[CaseResult], path: Path) -> None:
    """Write rows to a CSV file with a header, one column per field, atomically. Floats keep all their digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [field.name for field in fields(CaseResult)]
    writer.writerow(names)
    writer.writerows([repr(v) if isinstance(v, float) else v for v in (getattr(r, n) for n in names)] for r in results)
    write_atomically(path, text.getvalue())


def read_results(path: Path) -> list[CaseResult]:
    """The inverse of `write_results`.

    Raises:
        ComparisonError: (a ValueError) The file cannot be read, or is not such a table; the message names line and
            column.
    """
    try:
        lines = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ComparisonError(f"{path}: cannot be read ({error})") from error
    names = [field.name for field in fields(CaseResult)]
    header = lines[0] if lines else []
    for name in [*names, *header]:
        if (name in names) != (name in header):
            problem = "is missing" if name in names else "is unknown"
            raise ComparisonError(f"{path}: column {name} {problem}; the columns are {', '.join(names)}")
    if len(header) != len(names):
        raise ComparisonError(f"{path}: a column is there twice; the columns are {', '.join(names)}")
    results = [_parse(header, line, f"{path}, line {number}") for number, line in enumerate(lines[1:], start=2)]
    _require_unique(results, path)
    return results


def _require_unique(results: Sequence[CaseResult], path: Path) -> None:
    first: dict[tuple[Any, ...], int] = {}
    for number, row in enumerate(results, start=2):
        if first.setdefault(row.key, number) != number:
            raise ComparisonError(f"{path}: lines {first[row.key]} and {number} are of the same run, case and class")


def _parse(header: Sequence[str], line: Sequence[str], where: str) -> CaseResult:
    if len(line) != len(header):
        raise ComparisonError(f"{where}: {len(line)} values, the header has {len(header)}")
    values: dict[str, Any] = {}
    kinds = {field.name: _PARSERS[str(field.type)] for field in fields(CaseResult)}
    for name, text in zip(header, line, strict=True):
        try:
            values[name] = kinds[name](text)
        except ValueError:
            raise ComparisonError(f"{where}, column {name}: {text!r} is not a value of this column") from None
    return CaseResult(**values)


def _text(text: str) -> str:
    if not text:
        raise ValueError
    return text


def _truth_value(text: str) -> bool:
    if text not in ("True", "False"):
        raise ValueError
    return text == "True"


def _number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError
    return value


_PARSERS: dict[str, Callable[[str], Any]] = {"str": _text, "int": int, "float": _number, "bool": _truth_value}
