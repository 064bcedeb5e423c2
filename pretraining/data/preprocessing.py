"""Preprocess a pool of scans: choose the spacing, do in parallel what is not yet there, and go on past bad scans."""

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed
from tqdm import tqdm

from nnunetv2_pgl.checkpoint import sha256_of
from pretraining.data.files import file_entries, hashed
from pretraining.data.older_records import completed, is_complete
from pretraining.data.planned import CT_SCHEME, PlannedPreprocessing, prepare_as_planned
from pretraining.data.preparation import prepare
from pretraining.data.reading import read_scan
from pretraining.data.scan import BadScan, DataError, Scan, Skipped
from pretraining.data.spacing import (
    Spacing,
    chosen_spacing,
    differ,
    header_spacings,
    median_spacing,
    none_left,
    spacing_name,
)
from pretraining.data.store import Volume, read_record
from pretraining.data.tasks import Task, record_if_up_to_date, settings_of
from pretraining.data.workers import run_tasks
from pretraining.data.writing import discard_record, remove_leftovers, write_volume

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Result:
    volume: Volume
    warnings: tuple[str, ...] = ()


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
    """Preprocess scans that are not there yet, with the same settings and from the same files.

    Runs that preprocess the same scans at the same time, as the jobs of an array do, share the work: each takes the
    scans in an order of its own and passes over those that another one has stored by then.

    Args:
        scans: What ``find_scans`` found.
        output_root: Where volumes go; None is ``nnUNet_preprocessed``.
        spacing: (z, y, x) in mm; "median" of the scans that can be used, per axis; or "native", as each scan has it.
        crop_size: (z, y, x) of the crops that will be read; only the layout on disk depends on it.
        processes: Number of worker processes. One works in the calling process.
        progress: Show a progress bar.
        planned: Store what nnU-Net's preprocessor makes of the scans under this plan; ``spacing`` is then the plan's.
        verify: Compare stored volumes with their checksums, and redo those that are damaged.

    Returns:
        The volumes in the order of the scans, named as these, and the scans left out with the reason.

    Raises:
        DataError: If no scan is left, ``nnUNet_preprocessed`` is not set, or the disk cannot be written.
    """
    root = _output_root(output_root)
    skipped: list[Skipped] = []
    spacings: Mapping[str, tuple[float, ...]] = {}
    if planned is not None:
        _warn_of_schemes(scans, planned)
        target: Spacing | None = planned.spacing
    elif spacing == "median":
        spacings = header_spacings(scans, skipped)
        target = median_spacing(spacings.values())
    else:
        target = chosen_spacing(spacing)
    usable = _without(scans, skipped)
    while True:
        folder_name = f"PGL_{spacing_name(target)}" if planned is None else planned.folder_name
        tasks = [
            Task(scan, root / scan.store / folder_name / f"{scan.identifier}.b2nd", target, crop_size, planned)
            for scan in usable
        ]
        results, bad = _volumes_of(tasks, processes, progress, verify)
        skipped += bad
        if not results:
            raise none_left(scans, skipped)
        usable = _without(usable, bad)
        better = median_spacing(spacings[scan.name] for scan in usable) if bad and spacings else target
        if target is None or better is None or not differ(target, better):
            return [results[scan.name] for scan in usable], skipped
        logger.warning(
            "%d scans that were counted for the median spacing cannot be used: without them it is %s mm, not %s mm, "
            "and the others are preprocessed for it; their volumes in %s below %s only save doing this at every start: "
            "name the scans that are left out with -exclude, and the folder can be deleted",
            *(len(spacings) - len(usable), _in_words(better), _in_words(target), folder_name, root),
        )
        target = better  # each time with fewer scans, so this ends


def _in_words(spacing: Spacing) -> str:
    return " x ".join(f"{value:g}" for value in spacing)


def _volumes_of(
    tasks: Sequence[Task], processes: int, progress: bool, verify: bool
) -> tuple[dict[str, Volume], list[Skipped]]:
    """The volumes that are there or can be made, by the names of their scans, and the other scans with the reason."""
    for folder in {task.path.parent for task in tasks}:
        remove_leftovers(folder)
    results: dict[str, Volume] = {}
    skipped: list[Skipped] = []
    todo, older = [], []
    for task in tasks:
        record = record_if_up_to_date(task)
        if record is None:
            todo.append(task)
        else:
            results[task.scan.name] = Volume.from_record(task.path, record).renamed(task.scan.name)
            older += [] if is_complete(record) else [(task.stored, record)]
    for stored, volume in completed(older, processes, progress):
        results[stored.scan.name] = volume.renamed(stored.scan.name)
    if verify:
        for task in _damaged([task for task in tasks if task.scan.name in results], processes, progress):
            discard_record(task.path)
            del results[task.scan.name]
            todo.append(task)
    random.SystemRandom().shuffle(todo)  # of the system: runs with the same seed shall not go side by side
    with tqdm(total=len(todo), desc="preprocessing", disable=not (progress and todo)) as bar:
        for task, outcome in run_tasks(_preprocess_scan, todo, processes):
            bar.update()
            _sort_in(task.scan, outcome, results, skipped)
    return results, skipped


def _output_root(output_root: Path | None) -> Path:
    if output_root is not None:
        return Path(output_root)
    if not nnUNet_preprocessed.is_set():
        raise DataError("nnUNet_preprocessed is not set: export nnUNet_preprocessed=/path/to/nnUNet_preprocessed")
    return Path(nnUNet_preprocessed)


def _warn_of_schemes(scans: Sequence[Scan], planned: PlannedPreprocessing) -> None:
    """Say once for each source where a plan treats as CT what is none."""
    schemes = planned.normalization_schemes
    told = set()
    for scan in scans:
        each = schemes * len(scan.is_ct) if len(schemes) == 1 else schemes
        for scheme, channel, is_ct in zip(each, scan.channels, scan.is_ct, strict=False):
            if scheme == CT_SCHEME and not is_ct and (scan.store, channel) not in told:
                told.add((scan.store, channel))
                logger.warning(
                    "%s: %s clips channel %s as CT, which it is not declared to be",
                    *(scan.source, planned.plans_name, channel),
                )


def _without(scans: Sequence[Scan], skipped: Sequence[Skipped]) -> list[Scan]:
    names = {item.name for item in skipped}
    return [scan for scan in scans if scan.name not in names]


def _damaged(tasks: Sequence[Task], processes: int, progress: bool) -> list[Task]:
    """Those whose volume is not the one that was written."""
    damaged = []
    with tqdm(total=len(tasks), desc="checking stored scans", disable=not (progress and tasks)) as bar:
        for task, is_whole in run_tasks(_is_whole, tasks, processes):
            bar.update()
            if is_whole is not True:
                damaged.append(task)
                logger.warning(
                    "%s: %s is damaged, or was stored without a checksum by an earlier version: it is made anew",
                    *(task.scan.source, task.path),
                )
    return damaged


def _is_whole(task: Task) -> bool:
    record = read_record(task.path)
    same = record.get("sha256") == sha256_of(task.path)
    return same and Volume.from_record(task.path, record).fits_its_file()


def _preprocess_scan(task: Task) -> _Result:
    """Read, prepare and write one scan; runs in a worker."""
    scan = task.scan
    stored = record_if_up_to_date(task)
    if stored is not None:  # by another run, since the list was made
        return _Result(Volume.from_record(task.path, stored))
    discard_record(task.path)
    try:
        files = hashed(file_entries(scan))  # before reading: a file that changes meanwhile is redone next time
        array, spacing, _ = read_scan(scan)
    except OSError as error:
        raise BadScan(f"{error.filename or scan.files[0]} cannot be read ({error.strerror or error})") from error
    orientation = task.stored.orientation()
    shape = list(array.shape)
    if task.planned is None:
        prepared = prepare(array, spacing, scan.is_ct, task.spacing)
    else:
        prepared = prepare_as_planned(array, spacing, task.planned)
    del array
    record = {
        "name": scan.name,
        "source": scan.source,
        "files": files,
        "channels": list(scan.channels),
        "is_ct": list(scan.is_ct),
        "original": {"shape": shape, "spacing": list(spacing)},
        "bbox": [list(axis) for axis in prepared.bbox],
        "spacing": list(prepared.spacing),
        "orientation": None if orientation is None else list(orientation),
        "mean": list(prepared.mean),
        "std": list(prepared.std),
        "settings": settings_of(task),
        "is_no_mask": scan.may_be_mask,  # its values have been looked at
    }
    return _Result(write_volume(task.path, prepared.data, record, task.crop_size), prepared.warnings)


def _sort_in(
    scan: Scan, outcome: _Result | BadScan | DataError, results: dict[str, Volume], skipped: list[Skipped]
) -> None:
    """File a scan's outcome; an error that is not the scan's own stops the run."""
    if isinstance(outcome, DataError):
        raise outcome
    if isinstance(outcome, BadScan):
        skipped.append(Skipped(scan.name, scan.source, str(outcome)))
        return
    for warning in outcome.warnings:
        logger.warning("%s: %s: %s", scan.source, scan.name, warning)
    results[scan.name] = outcome.volume.renamed(scan.name)
