"""Preprocess a pool of scans: choose the spacing, do in parallel what is not yet there, and continue past bad scans."""

import logging
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from nnunetv2.paths import nnUNet_preprocessed
from tqdm import tqdm

from nnunetv2_pgl.errors import counted, size_text
from pretraining.data.planned_preprocessing import CT_SCHEME, PlannedPreprocessing
from pretraining.data.reading import read_geometry
from pretraining.data.scan import BadScan, DataError, Scan, Skipped, Spacing
from pretraining.data.store import Volume
from pretraining.data.volume_tasks import Task, is_undamaged, make_volume, stored_volume
from pretraining.data.workers import run_tasks
from pretraining.data.writing import discard_record, remove_leftovers

logger = logging.getLogger(__name__)

# A median spacing that is off by less is kept: for another one, the volumes of all scans would be made again.
_TOLERANCE = 0.01

R = TypeVar("R")


def preprocess(
    scans: Sequence[Scan],
    output_root: Path | None = None,
    *,
    spacing: str | Spacing = "median",
    crop_size: tuple[int, int, int],
    processes: int,
    progress: bool = True,
    planned: PlannedPreprocessing | None = None,
    verify: bool = False,
) -> tuple[list[Volume], list[Skipped]]:
    """Preprocess the scans that are not yet stored with the same settings and from the same files.

    Runs that preprocess the same scans at the same time, such as the jobs of an array, share the work: each takes the
    scans in a different order and passes over those that another one has stored by then.

    Args:
        scans: What ``find_scans`` found.
        output_root: Where volumes go; None is ``nnUNet_preprocessed``.
        spacing: (z, y, x) in mm; "median" of the scans that can be used, per axis; or "native", as each has it.
        crop_size: (z, y, x) of the crops that will be read; only the layout on disk depends on it.
        processes: Number of worker processes. One works in the calling process.
        progress: Show a progress bar.
        planned: Preprocess by this plan with nnU-Net's preprocessor; ``spacing`` is then ignored.
        verify: Compare stored volumes with their checksums, and preprocess damaged ones again.

    Returns:
        The volumes in the order of the scans, named as these, and the scans left out with the reason.

    Raises:
        DataError: If no scan is left, ``nnUNet_preprocessed`` is not set, or the disk cannot be written.
    """
    if output_root is None and not nnUNet_preprocessed.is_set():
        raise DataError("nnUNet_preprocessed is not set: export nnUNet_preprocessed=/path/to/nnUNet_preprocessed")
    root = Path(nnUNet_preprocessed if output_root is None else output_root)
    skipped: list[Skipped] = []
    spacings: dict[str, Spacing] = {}
    if planned is not None:
        _warn_of_schemes(scans, planned)
        target: Spacing | None = planned.spacing
    elif spacing == "median":
        spacings = _header_spacings(scans, skipped)
        target = _median([*spacings.values()])
    else:
        target = _given_spacing(spacing)
    usable = [scan for scan in scans if not spacings or scan.name in spacings]
    while True:
        folder_name = _folder_name(target) if planned is None else planned.folder_name
        tasks = [
            Task(scan, root / scan.store / folder_name / f"{scan.identifier}.b2nd", target, crop_size, planned)
            for scan in usable
        ]
        volumes = _volumes_of(tasks, skipped, processes, progress, verify)
        if not volumes:
            raise _none_left(scans, skipped)
        usable = [scan for scan in usable if scan.name in volumes]
        better = _median([spacings[scan.name] for scan in usable]) if spacings else target
        if target is None or better is None or np.allclose(better, target, rtol=_TOLERANCE, atol=0):
            return [replace(volumes[scan.name], name=scan.name) for scan in usable], skipped
        logger.warning(
            "%s could not be used, which changes the median spacing from %s to %s mm: preprocessing the others again "
            "at the new spacing. To avoid this, name those scans with -exclude; then the old volumes in %s below %s "
            "are no longer needed. Until then, keep them: each start looks for them first",
            *(counted(len(spacings) - len(usable), "scan"), size_text(target), size_text(better), folder_name, root),
        )
        target = better  # each time with fewer scans, so this ends


def _volumes_of(
    tasks: Sequence[Task], skipped: list[Skipped], processes: int, progress: bool, verify: bool
) -> dict[str, Volume]:
    """The volumes that exist or can be made, by the names of their scans; the other scans are added to ``skipped``."""
    volumes = _stored_volumes(tasks, processes, progress, verify)
    todo = [task for task in tasks if task.scan.name not in volumes]
    random.SystemRandom().shuffle(todo)  # not seeded: runs with the same seed must not take the same order
    not_completed: list[str] = []
    for task, outcome in _run(make_volume, todo, "preprocessing", processes, progress):
        scan = task.scan
        if isinstance(outcome, BadScan):
            skipped.append(Skipped(scan.name, scan.source, str(outcome)))
            continue
        if isinstance(outcome, Exception):  # no fault of the scan, such as a full disk
            raise outcome
        volumes[scan.name], warnings, problem = outcome
        for warning in warnings:
            logger.warning("%s: %s: %s", scan.source, scan.name, warning)
        not_completed += [problem] if problem else []
    if not_completed:
        logger.warning(
            "%s of an earlier version could not be completed (orientation, file hashes); each run will try again. "
            "First error: %s",
            *(counted(len(not_completed), "record"), not_completed[0]),
        )
    return volumes


def _stored_volumes(tasks: Sequence[Task], processes: int, progress: bool, verify: bool) -> dict[str, Volume]:
    """Volumes that are up to date and have complete records, by the names of their scans."""
    for folder in {task.path.parent for task in tasks}:
        remove_leftovers(folder)
    stored = {task.scan.name: found for task in tasks if (found := stored_volume(task))}
    if verify:
        to_check = [task for task in tasks if task.scan.name in stored]
        for task, is_whole in _run(is_undamaged, to_check, "checking stored scans", processes, progress):
            if is_whole is not True:
                discard_record(task.path)
                del stored[task.scan.name]
                logger.warning(
                    "%s: %s is damaged, or was stored without a checksum by an earlier version: preprocessing it again",
                    *(task.scan.source, task.path),
                )
    return {name: volume for name, (volume, is_complete) in stored.items() if is_complete}


def _run(
    function: Callable[[Task], R], tasks: Sequence[Task], title: str, processes: int, progress: bool
) -> Iterable[tuple[Task, R | Exception]]:
    """`run_tasks` with a progress bar."""
    return tqdm(run_tasks(function, tasks, processes), title, len(tasks), disable=not (progress and tasks))


def _header_spacings(scans: Sequence[Scan], skipped: list[Skipped]) -> dict[str, Spacing]:
    """Spacings by the names of the scans; scans without a readable header are added to ``skipped``."""
    spacings: dict[str, Spacing] = {}
    for scan, outcome in run_tasks(read_geometry, scans, 1):
        if isinstance(outcome, Exception):
            skipped.append(Skipped(scan.name, scan.source, str(outcome)))
        else:
            z, y, x = outcome.spacing
            spacings[scan.name] = (z, y, x)
    if not spacings:
        raise _none_left(scans, skipped)
    return spacings


def _median(spacings: Sequence[Spacing]) -> Spacing:
    z, y, x = (float(f"{value:g}") for value in np.median(spacings, axis=0))  # rounded as in the folder's name
    return (z, y, x)


def _given_spacing(spacing: str | Spacing) -> Spacing | None:
    """What to resample to; None for native."""
    if spacing == "native":
        return None
    if isinstance(spacing, str):
        raise DataError(f'unknown spacing {spacing!r}: give "median", "native" or three numbers in mm (z y x)')
    if len(spacing) != 3 or not all(math.isfinite(value) and value > 0 for value in spacing):
        raise DataError(f"spacing {spacing} is not three positive numbers in mm (z y x)")
    return (float(spacing[0]), float(spacing[1]), float(spacing[2]))


def _folder_name(spacing: Spacing | None) -> str:
    sizes = ("native",) if spacing is None else (f"{v:.2f}" if round(v, 2) == v else f"{v:g}" for v in spacing)
    return f"PGL_spacing_{'x'.join(sizes)}"


def _warn_of_schemes(scans: Sequence[Scan], planned: PlannedPreprocessing) -> None:
    """Warn once for each source where a plan treats a channel as CT that is not declared so."""
    schemes = planned.normalization_schemes
    warned = set()
    for scan in scans:
        each = schemes * len(scan.is_ct) if len(schemes) == 1 else schemes
        for scheme, channel, is_ct in zip(each, scan.channels, scan.is_ct, strict=False):
            if scheme == CT_SCHEME and not is_ct and (scan.store, channel) not in warned:
                warned.add((scan.store, channel))
                logger.warning(
                    "%s: %s clips channel %s as CT, which it is not declared to be",
                    *(scan.source, planned.plans_name, channel),
                )


def _none_left(scans: Sequence[Scan], skipped: Sequence[Skipped]) -> DataError:
    first = f", the first one because: {skipped[0]}" if skipped else ""
    return DataError(f"none of {len(scans)} scans can be used{first}")
