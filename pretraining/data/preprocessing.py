"""Preprocess a pool of scans: choose the spacing, do in parallel what is not yet there, and continue past bad scans."""

import logging
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from nnunetv2.paths import nnUNet_preprocessed
from tqdm import tqdm

from pretraining.data.planned_preprocessing import CT_SCHEME, PlannedPreprocessing
from pretraining.data.reading import read_geometry
from pretraining.data.scan import BadScan, DataError, Scan, Skipped, Spacing
from pretraining.data.store import Volume
from pretraining.data.volume_tasks import Task, complete_records, is_undamaged, make_volume, stored_volume
from pretraining.data.workers import run_tasks
from pretraining.data.writing import discard_record, remove_leftovers

logger = logging.getLogger(__name__)

# A median spacing that is off by less is kept: for another one, the volumes of all scans would be made again.
_TOLERANCE = 0.01


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
        spacing: (z, y, x) in mm; "median" of the scans that can be used, per axis; or "native", as each scan has it.
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
    spacings: Mapping[str, tuple[float, ...]] = {}
    if planned is not None:
        _warn_of_schemes(scans, planned)
        target: Spacing | None = planned.spacing
    elif spacing == "median":
        spacings = _header_spacings(scans, skipped)
        target = _median_spacing(spacings.values())
    else:
        target = _chosen_spacing(spacing)
    usable = _without(scans, skipped)
    while True:
        folder_name = f"PGL_{_spacing_name(target)}" if planned is None else planned.folder_name
        tasks = [
            Task(scan, root / scan.store / folder_name / f"{scan.identifier}.b2nd", target, crop_size, planned)
            for scan in usable
        ]
        results, bad = _volumes_of(tasks, processes, progress, verify)
        skipped += bad
        if not results:
            raise _none_left(scans, skipped)
        usable = _without(usable, bad)
        better = _median_spacing(spacings[scan.name] for scan in usable) if bad and spacings else target
        if target is None or better is None or not _differ(target, better):
            return [results[scan.name] for scan in usable], skipped
        logger.warning(
            "%d scans could not be used, which changes the median spacing from %s to %s mm: preprocessing the others "
            "again at the new spacing. To avoid this, name those scans with -exclude; then the old volumes in %s below "
            "%s are no longer needed. Until then, keep them: each start looks for them first",
            *(len(spacings) - len(usable), _in_words(target), _in_words(better), folder_name, root),
        )
        target = better  # each time with fewer scans, so this ends


def _in_words(spacing: Spacing) -> str:
    return " x ".join(f"{value:g}" for value in spacing)


def _volumes_of(
    tasks: Sequence[Task], processes: int, progress: bool, verify: bool
) -> tuple[dict[str, Volume], list[Skipped]]:
    """The volumes that exist or can be made, by the names of their scans, and the other scans with the reason."""
    for folder in {task.path.parent for task in tasks}:
        remove_leftovers(folder)
    results: dict[str, Volume] = {}
    skipped: list[Skipped] = []
    todo: list[Task] = []
    older: list[Task] = []
    for task in tasks:
        if (stored := stored_volume(task)) is None:
            todo.append(task)
            continue
        volume, is_complete = stored
        results[task.scan.name] = volume.renamed(task.scan.name)
        if not is_complete:
            older.append(task)
    for task, volume in complete_records(older, processes, progress):
        results[task.scan.name] = volume.renamed(task.scan.name)
    if verify:
        for task in _damaged([task for task in tasks if task.scan.name in results], processes, progress):
            discard_record(task.path)
            del results[task.scan.name]
            todo.append(task)
    random.SystemRandom().shuffle(todo)  # not seeded: runs with the same seed must not take the same order
    with tqdm(total=len(todo), desc="preprocessing", disable=not (progress and todo)) as bar:
        for task, outcome in run_tasks(make_volume, todo, processes):
            bar.update()
            scan = task.scan
            if isinstance(outcome, DataError):  # no fault of the scan, such as a full disk
                raise outcome
            if isinstance(outcome, BadScan):
                skipped.append(Skipped(scan.name, scan.source, str(outcome)))
                continue
            volume, warnings = outcome
            for warning in warnings:
                logger.warning("%s: %s: %s", scan.source, scan.name, warning)
            results[scan.name] = volume.renamed(scan.name)
    return results, skipped


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


def _without(scans: Sequence[Scan], skipped: Sequence[Skipped]) -> list[Scan]:
    names = {item.name for item in skipped}
    return [scan for scan in scans if scan.name not in names]


def _damaged(tasks: Sequence[Task], processes: int, progress: bool) -> list[Task]:
    """Tasks whose stored volume is not the one that was written."""
    damaged = []
    with tqdm(total=len(tasks), desc="checking stored scans", disable=not (progress and tasks)) as bar:
        for task, outcome in run_tasks(is_undamaged, tasks, processes):
            bar.update()
            if outcome is not True:
                damaged.append(task)
                logger.warning(
                    "%s: %s is damaged, or was stored without a checksum by an earlier version: preprocessing it again",
                    *(task.scan.source, task.path),
                )
    return damaged


def _chosen_spacing(spacing: str | Spacing) -> Spacing | None:
    """The user's choice, (z, y, x) in mm; None for native."""
    if spacing == "native":
        return None
    if isinstance(spacing, str):
        raise DataError(f'unknown spacing {spacing!r}: give "median", "native" or three numbers in mm (z y x)')
    if len(spacing) != 3 or not all(math.isfinite(value) and value > 0 for value in spacing):
        raise DataError(f"spacing {spacing} is not three positive numbers in mm (z y x)")
    return (float(spacing[0]), float(spacing[1]), float(spacing[2]))


def _header_spacings(scans: Sequence[Scan], skipped: list[Skipped]) -> dict[str, tuple[float, ...]]:
    """Spacing of each scan by its name, from its header; scans whose header is unreadable are added to ``skipped``."""
    spacings = {}
    for scan, outcome in run_tasks(read_geometry, scans, 1):
        if isinstance(outcome, DataError):
            raise outcome
        if isinstance(outcome, BadScan):
            skipped.append(Skipped(scan.name, scan.source, str(outcome)))
        else:
            spacings[scan.name] = outcome.spacing
    if not spacings:
        raise _none_left(scans, skipped)
    return spacings


def _median_spacing(spacings: Iterable[tuple[float, ...]]) -> Spacing:
    """Median per axis, rounded as in the folder's name."""
    z, y, x = (float(f"{value:g}") for value in np.median(list(spacings), axis=0))
    return (z, y, x)


def _differ(spacing: Spacing, other: Spacing) -> bool:
    """Whether two spacings differ by more than 1 % on any axis."""
    return any(abs(one - two) > _TOLERANCE * two for one, two in zip(spacing, other, strict=True))


def _spacing_name(spacing: Spacing | None) -> str:
    """A folder name with the spacing, such as ``spacing_3.00x0.80x0.80``."""
    if spacing is None:
        return "spacing_native"
    return "spacing_" + "x".join(f"{v:.2f}" if round(v, 2) == v else f"{v:g}" for v in spacing)


def _none_left(scans: Sequence[Scan], skipped: Sequence[Skipped]) -> DataError:
    """The error for a pool without a usable scan."""
    first = f", the first one because: {skipped[0]}" if skipped else ""
    return DataError(f"none of {len(scans)} scans can be used{first}")
