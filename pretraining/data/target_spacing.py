"""The spacing that a pool is resampled to."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from pretraining.data.reading import read_geometry
from pretraining.data.scan import BadScan, DataError, Scan, Skipped
from pretraining.data.workers import run_tasks

Spacing = tuple[float, float, float]

# A median that is off by less is kept: for another one, the volumes of all scans would be made again.
_TOLERANCE = 0.01


def chosen_spacing(spacing: str | Spacing) -> Spacing | None:
    """Check the user's choice.

    Args:
        spacing: (z, y, x) in mm, or "native".

    Returns:
        (z, y, x) in mm, or None for native.

    Raises:
        DataError: If the choice is none of these.
    """
    if spacing == "native":
        return None
    if isinstance(spacing, str):
        raise DataError(f'unknown spacing {spacing!r}: give "median", "native" or three numbers in mm (z y x)')
    if len(spacing) != 3 or not all(math.isfinite(value) and value > 0 for value in spacing):
        raise DataError(f"spacing {spacing} is not three positive numbers in mm (z y x)")
    return (float(spacing[0]), float(spacing[1]), float(spacing[2]))


def header_spacings(scans: Sequence[Scan], skipped: list[Skipped]) -> dict[str, tuple[float, ...]]:
    """Spacing (z, y, x) of each scan by its name, from the headers alone.

    Args:
        scans: The pool.
        skipped: Scans whose header cannot be read are added.

    Raises:
        DataError: If no header can be read.
    """
    spacings = {}
    for scan, outcome in run_tasks(read_geometry, scans, 1):
        if isinstance(outcome, DataError):
            raise outcome
        if isinstance(outcome, BadScan):
            skipped.append(Skipped(scan.name, scan.source, str(outcome)))
        else:
            spacings[scan.name] = outcome.spacing
    if not spacings:
        raise none_left(scans, skipped)
    return spacings


def median_spacing(spacings: Iterable[tuple[float, ...]]) -> Spacing:
    """Median per axis, rounded as in the folder's name."""
    z, y, x = (float(f"{value:g}") for value in np.median(list(spacings), axis=0))
    return (z, y, x)


def differ(spacing: Spacing, other: Spacing) -> bool:
    """Whether two spacings differ by more than 1 % on any axis."""
    return any(abs(one - two) > _TOLERANCE * two for one, two in zip(spacing, other, strict=True))


def spacing_name(spacing: Spacing | None) -> str:
    """A folder name with the spacing, such as ``spacing_3.00x0.80x0.80``."""
    if spacing is None:
        return "spacing_native"
    return "spacing_" + "x".join(f"{v:.2f}" if round(v, 2) == v else f"{v:g}" for v in spacing)


def none_left(scans: Sequence[Scan], skipped: Sequence[Skipped]) -> DataError:
    """The error for a pool without a usable scan."""
    first = f", the first one because: {skipped[0]}" if skipped else ""
    return DataError(f"none of {len(scans)} scans can be used{first}")
