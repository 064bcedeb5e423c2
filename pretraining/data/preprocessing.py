"""Preprocess a pool of scans: choose the spacing, do in parallel what is not yet there, and go on past bad scans."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed
from tqdm import tqdm

from pretraining.data.preparation import HU_RANGE, prepare
from pretraining.data.reading import read_scan
from pretraining.data.scan import BadScan, DataError, Scan, Skipped
from pretraining.data.spacing import Spacing, none_left, spacing_name, target_spacing
from pretraining.data.store import Volume, read_record
from pretraining.data.workers import run_tasks
from pretraining.data.writing import remove_leftovers, write_volume

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Task:
    """Everything a worker needs to preprocess one scan."""

    scan: Scan
    path: Path
    spacing: Spacing | None
    crop_size: tuple[int, int, int]


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
) -> tuple[list[Volume], list[Skipped]]:
    """Preprocess scans that are not there yet, with the same settings and from the same files.

    Args:
        scans: What ``find_scans`` found.
        output_root: Where volumes go; None is ``nnUNet_preprocessed``.
        spacing: (z, y, x) in mm; "median" of the pool, per axis; or "native", as each scan has it.
        crop_size: (z, y, x) of the crops that will be read; only the layout on disk depends on it.
        processes: Number of worker processes. One works in the calling process.
        progress: Show a progress bar.

    Returns:
        The volumes in the order of the scans, named as these, and the scans left out with the reason.

    Raises:
        DataError: If no scan is left, ``nnUNet_preprocessed`` is not set, or the disk cannot be written.
    """
    root = _output_root(output_root)
    skipped: list[Skipped] = []
    target = target_spacing(scans, spacing, skipped)
    usable = _without(scans, skipped)
    tasks = [_Task(scan, _volume_path(root, scan, target), target, crop_size) for scan in usable]
    for folder in {task.path.parent for task in tasks}:
        remove_leftovers(folder)
    results: dict[str, Volume] = {}
    todo = []
    for task in tasks:
        volume = _up_to_date(task)
        if volume is None:
            todo.append(task)
        else:
            results[task.scan.name] = volume
    with tqdm(total=len(todo), desc="preprocessing", disable=not (progress and todo)) as bar:
        for task, outcome in run_tasks(_preprocess_scan, todo, processes):
            bar.update()
            _sort_in(task.scan, outcome, results, skipped)
    if not results:
        raise none_left(scans, skipped)
    return [results[scan.name] for scan in usable if scan.name in results], skipped


def _output_root(output_root: Path | None) -> Path:
    if output_root is not None:
        return Path(output_root)
    if not nnUNet_preprocessed.is_set():
        raise DataError("nnUNet_preprocessed is not set: export nnUNet_preprocessed=/path/to/nnUNet_preprocessed")
    return Path(nnUNet_preprocessed)


def _volume_path(root: Path, scan: Scan, spacing: Spacing | None) -> Path:
    return root / scan.store / f"PGL_{spacing_name(spacing)}" / f"{scan.identifier}.b2nd"


def _without(scans: Sequence[Scan], skipped: Sequence[Skipped]) -> list[Scan]:
    names = {item.name for item in skipped}
    return [scan for scan in scans if scan.name not in names]


def _settings(task: _Task) -> dict[str, Any]:
    """What decides the stored values; a record with other settings is out of date."""
    return {
        "spacing": None if task.spacing is None else list(task.spacing),
        "is_ct": list(task.scan.is_ct),
        "channels": list(task.scan.channels),
        "hu_range": list(HU_RANGE),
        "resampling": {"order": 3, "order_z": 0},
    }


def _file_stats(scan: Scan) -> list[dict[str, Any]]:
    stats = [(Path(file), Path(file).stat()) for file in scan.files]
    return [{"path": str(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns} for path, stat in stats]


def _up_to_date(task: _Task) -> Volume | None:
    """The volume on disk, if it was made with these settings from these very files.

    Files are the same if name, size and time of change are; moving a whole dataset does not count as a change.
    """
    try:
        record = read_record(task.path)
        same_files = _identities(record["files"]) == _identities(_file_stats(task.scan))
        whole = task.path.stat().st_size == record["file_size"]
        if not (whole and same_files and record["settings"] == _settings(task)):
            return None
        return Volume.from_record(task.path, record).renamed(task.scan.name)
    except (DataError, OSError, KeyError, TypeError):
        return None


def _identities(files: Sequence[dict[str, Any]]) -> list[tuple[str, int, int]]:
    return [(Path(file["path"]).name, file["size"], file["mtime_ns"]) for file in files]


def _preprocess_scan(task: _Task) -> _Result:
    """Read, prepare and write one scan; runs in a worker."""
    scan = task.scan
    files = _file_stats(scan)  # before reading: a file that changes meanwhile is redone next time
    array, spacing, _ = read_scan(scan)
    shape = list(array.shape)
    prepared = prepare(array, spacing, scan.is_ct, task.spacing)
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
        "mean": list(prepared.mean),
        "std": list(prepared.std),
        "settings": _settings(task),
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
