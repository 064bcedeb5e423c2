"""The work on one volume: check whether it is up to date, make it from its scan, complete an older record."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunetv2_pgl.files import sha256_of
from pretraining.data.default_preprocessing import HU_RANGE, preprocess_without_plan
from pretraining.data.planned_preprocessing import PlannedPreprocessing, preprocess_as_planned
from pretraining.data.reading import read_scan
from pretraining.data.reading.headers import NIFTI
from pretraining.data.reading.orientation import Orientation, read_orientation
from pretraining.data.scan import DEFAULT_READER, BadScan, DataError, Scan, Spacing
from pretraining.data.store import Volume, read_record
from pretraining.data.workers import run_tasks
from pretraining.data.writing import discard_record, write_record, write_volume

logger = logging.getLogger(__name__)

_READING = 2  # raised when other voxels or another spacing are read from the same files

Entry = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """Everything that a worker needs to preprocess one scan.

    Attributes:
        scan: The scan.
        path: The ``.b2nd`` file of its volume.
        spacing: (z, y, x) in mm to resample to; None keeps the scan's own.
        crop_size: (z, y, x) of the crops that will be read.
        planned: The plan to follow, if any.
    """

    scan: Scan
    path: Path
    spacing: Spacing | None
    crop_size: tuple[int, int, int]
    planned: PlannedPreprocessing | None

    def settings(self) -> dict[str, Any]:
        """What decides the stored values; a record with other settings is out of date."""
        scan = self.scan
        declared: dict[str, Any] = {"is_ct": list(scan.is_ct), "channels": list(scan.channels)}
        # All versions read NIfTI the same by SimpleITK.
        if scan.reader != DEFAULT_READER or not all(path.lower().endswith(NIFTI) for path in scan.files):
            declared |= {"reader": scan.reader, "reading": _READING}
        if self.planned is not None:
            return {"planned": self.planned.to_dict(), **declared}
        return {
            "spacing": None if self.spacing is None else list(self.spacing),
            **declared,
            "hu_range": list(HU_RANGE),
            "resampling": {"order": 3, "order_z": 0},
        }

    def orientation(self) -> Orientation | None:
        """Orientation of the volume, from the headers of the scan."""
        read = read_orientation(self.scan)
        if read is None or self.planned is None:
            return read
        z, y, x = (read[axis] for axis in self.planned.transpose_forward)
        return (z, y, x)


def stored_volume(task: Task) -> tuple[Volume, bool] | None:
    """The volume on disk, if it was made with the task's settings from these very files.

    Returns:
        The volume, and whether its record has all that this version writes.
    """
    try:
        record = read_record(task.path)
        volume = Volume.from_record(task.path, record)
        is_whole = task.path.stat().st_size == record["file_size"]
        same_files = _identities(record["files"]) == _identities(_file_entries(task.scan))
        same_settings = record["settings"] == task.settings() and record["channels"] == list(task.scan.channels)
        is_no_mask = bool(record.get("is_no_mask")) or not task.scan.may_be_mask
        is_complete = _are_hashed(record["files"]) and "orientation" in record
    except (DataError, OSError, KeyError, TypeError, AttributeError):  # damaged or missing
        return None
    return (volume, is_complete) if is_whole and same_files and same_settings and is_no_mask else None


def make_volume(task: Task) -> tuple[Volume, tuple[str, ...]]:
    """Read, preprocess and write one scan, unless another run has done so by now.

    Returns:
        The volume, and warnings about its values.

    Raises:
        BadScan: If the scan cannot be used.
        DataError: If the disk is full or not writable.
    """
    scan = task.scan
    if stored := stored_volume(task):
        return stored[0], ()
    discard_record(task.path)
    try:
        files = _hashed(_file_entries(scan))  # before reading: a file that changes meanwhile is read again next time
        array, spacing, _ = read_scan(scan)
    except OSError as error:
        raise BadScan(f"{error.filename or scan.files[0]} cannot be read ({error.strerror or error})") from error
    orientation = task.orientation()
    shape = list(array.shape)
    if task.planned is None:
        preprocessed = preprocess_without_plan(array, spacing, scan.is_ct, task.spacing)
    else:
        preprocessed = preprocess_as_planned(array, spacing, task.planned)
    del array
    record = {
        "name": scan.name,
        "source": scan.source,
        "files": files,
        "channels": list(scan.channels),
        "is_ct": list(scan.is_ct),
        "original": {"shape": shape, "spacing": list(spacing)},
        "bbox": [list(axis) for axis in preprocessed.bbox],
        "spacing": list(preprocessed.spacing),
        "orientation": None if orientation is None else list(orientation),
        "mean": list(preprocessed.mean),
        "std": list(preprocessed.std),
        "settings": task.settings(),
        "is_no_mask": scan.may_be_mask,  # its values have been checked
    }
    return write_volume(task.path, preprocessed.data, record, task.crop_size), preprocessed.warnings


def is_undamaged(task: Task) -> bool:
    """Whether the volume is the one that was written, by its checksum."""
    record = read_record(task.path)
    is_same = record.get("sha256") == sha256_of(task.path)
    return is_same and Volume.from_record(task.path, record).fits_its_file()


def complete_records(tasks: Sequence[Task], processes: int, progress: bool) -> Iterator[tuple[Task, Volume]]:
    """Add what records of earlier versions lack, the hashes of the files and the orientation; voxels stay as they are.

    A record that cannot be written, in a read-only store for instance, is completed again by every run.

    Args:
        tasks: Those whose records are not complete.
        processes: Number of workers.
        progress: Show a progress bar.

    Yields:
        Tasks with volumes whose orientation is now known.
    """
    failed: list[Exception] = []
    with tqdm(total=len(tasks), desc="completing records", disable=not (progress and tasks)) as bar:
        for task, outcome in run_tasks(_complete_record, tasks, processes if len(tasks) > 1 else 1):
            bar.update()
            if isinstance(outcome, Exception):
                failed.append(outcome)
                continue
            volume, error = outcome
            failed += [] if error is None else [error]
            yield task, volume
    if failed:
        logger.warning(
            "%d records of an earlier version could not be completed (orientation, file hashes); each run will try "
            "again. First error: %s",
            *(len(failed), failed[0]),
        )


def _complete_record(task: Task) -> tuple[Volume, DataError | None]:
    """The volume, and why its record could not be written, if so."""
    record = read_record(task.path)
    if "orientation" not in record:
        orientation = task.orientation()
        record["orientation"] = None if orientation is None else list(orientation)
    volume = Volume.from_record(task.path, record)
    try:
        if not _are_hashed(record["files"]):
            record["files"] = _hashed(_file_entries(task.scan))
        write_record(task.path, record)
    except DataError as error:
        return volume, error
    except OSError as error:
        return volume, DataError(f"{error.filename} cannot be read ({error.strerror})")
    return volume, None


def _file_entries(scan: Scan) -> list[Entry]:
    """Path, size in bytes and time of change in nanoseconds of each file."""
    stats = [(Path(file), Path(file).stat()) for file in scan.files]
    return [{"path": str(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns} for path, stat in stats]


def _hashed(entries: Sequence[Entry]) -> list[Entry]:
    """The same with the SHA-256 of each file's content."""
    return [{**entry, "sha256": sha256_of(entry["path"])} for entry in entries]


def _are_hashed(entries: Sequence[Entry]) -> bool:
    """Whether all have a SHA-256; records of earlier versions have none."""
    return all(isinstance(entry.get("sha256"), str) for entry in entries)


def _identities(entries: Sequence[Entry]) -> list[tuple[str, int, int]]:
    """Name, size and time of change: moving a whole dataset does not count as a change."""
    return [(Path(entry["path"]).name, entry["size"], entry["mtime_ns"]) for entry in entries]
