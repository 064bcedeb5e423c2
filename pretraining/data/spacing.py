"""Which spacing the pool is resampled to."""

import math
from collections.abc import Sequence

import numpy as np

from pretraining.data.reading import read_geometry
from pretraining.data.scan import BadScan, DataError, Scan, Skipped
from pretraining.data.workers import run_tasks

Spacing = tuple[float, float, float]


def target_spacing(scans: Sequence[Scan], spacing: str | Spacing, skipped: list[Skipped]) -> Spacing | None:
    """Turn the user's choice into millimetres.

    Args:
        scans: The pool.
        spacing: (z, y, x) in mm, "median" or "native".
        skipped: Takes the scans whose header cannot be read, where headers are needed.

    Returns:
        (z, y, x) in mm, or None for native.

    Raises:
        DataError: If the choice is none of these, or no header can be read.
    """
    if spacing == "native":
        return None
    if isinstance(spacing, str):
        if spacing != "median":
            raise DataError(f'unknown spacing {spacing!r}: give "median", "native" or three numbers in mm (z y x)')
        return _median_spacing(scans, skipped)
    if len(spacing) != 3 or not all(math.isfinite(value) and value > 0 for value in spacing):
        raise DataError(f"spacing {spacing} is not three positive numbers in mm (z y x)")
    return (float(spacing[0]), float(spacing[1]), float(spacing[2]))


def _median_spacing(scans: Sequence[Scan], skipped: list[Skipped]) -> Spacing:
    """Median per axis over the pool, from the headers, with the digits that the folder's name tells."""
    spacings = []
    for scan, outcome in run_tasks(read_geometry, scans, 1):
        if isinstance(outcome, DataError):
            raise outcome
        if isinstance(outcome, BadScan):
            skipped.append(Skipped(scan.name, scan.source, str(outcome)))
        else:
            spacings.append(outcome.spacing)
    if not spacings:
        raise none_left(scans, skipped)
    z, y, x = (float(f"{value:g}") for value in np.median(spacings, axis=0))
    return (z, y, x)


def spacing_name(spacing: Spacing | None) -> str:
    """A folder name that tells the spacing, such as ``spacing_3.00x0.80x0.80``."""
    if spacing is None:
        return "spacing_native"
    return "spacing_" + "x".join(f"{v:.2f}" if round(v, 2) == v else f"{v:g}" for v in spacing)


def none_left(scans: Sequence[Scan], skipped: Sequence[Skipped]) -> DataError:
    """The error for a pool without a usable scan."""
    first = f", the first one because: {skipped[0]}" if skipped else ""
    return DataError(f"none of {len(scans)} scans can be used{first}")
