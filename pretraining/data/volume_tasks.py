"""The work on one volume: check whether it is up to date, or make it from its scan."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_pgl.files import sha256_of
from pretraining.data.default_preprocessing import HU_RANGE, preprocess_without_plan
from pretraining.data.planned_preprocessing import PlannedPreprocessing, preprocess_as_planned
from pretraining.data.reading import read_scan
from pretraining.data.reading.headers import NIFTI
from pretraining.data.reading.orientation import Orientation, read_orientation
from pretraining.data.scan import DEFAULT_READER, BadScan, DataError, Scan, Spacing
from pretraining.data.store import Volume, read_record
from pretraining.data.writing import discard_record, write_record, write_volume

_READING = 2  # raised when other voxels or another spacing are read from the same files

Entry = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """Everything that a worker needs to preprocess one scan."""

    scan: Scan
    path: Path  # the .b2nd file of its volume
    spacing: Spacing | None  # (z, y, x) in mm to resample to; None keeps the scan's own
    crop_size: tuple[int, int, int]  # (z, y, x) of the crops that will be read
    planned: PlannedPreprocessing | None  # the plan to follow, if any

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
    """The volume on disk and whether its record has all that this version writes; None if it is out of date.

    It is up to date if it was made with the task's settings from these very files.
    """
    try:
        record = read_record(task.path)
        volume = Volume.from_record(task.path, record)
        is_whole = task.path.stat().st_size == record["file_size"]
        same_files = _identities(record["files"]) == _identities(_file_entries(task.scan))
        same_settings = record["settings"] == task.settings() and record["channels"] == list(task.scan.channels)
        is_no_mask = bool(record.get("is_no_mask")) or not task.scan.may_be_mask
        is_complete = "orientation" in record and all("sha256" in entry for entry in record["files"])
    except (DataError, OSError, KeyError, TypeError, AttributeError):  # damaged or missing
        return None
    return (volume, is_complete) if is_whole and same_files and same_settings and is_no_mask else None


def make_volume(task: Task) -> tuple[Volume, tuple[str, ...], str]:
    """Read, preprocess and write one scan, unless another run has done so by now.

    If an earlier version did so, only what its record lacks is added, the orientation and the hashes of the files. A
    record that cannot be written, in a read-only store for instance, is completed again by every run.

    Returns:
        The volume, warnings about its values, and why its record could not be completed, if so.

    Raises:
        BadScan: If the scan cannot be used.
        DataError: If the disk is full or not writable.
    """
    scan = task.scan
    if stored := stored_volume(task):
        volume, is_complete = stored
        return (volume, (), "") if is_complete else _complete_record(task)
    discard_record(task.path)
    try:
        # Before reading: a file that changes meanwhile is read again next time.
        files = _file_entries(scan, with_hashes=True)
        array, spacing, _ = read_scan(scan)
    except OSError as error:
        raise BadScan(f"{error.filename or scan.files[0]} cannot be read ({error.strerror or error})") from error
    shape = array.shape
    if task.planned is None:
        preprocessed = preprocess_without_plan(array, spacing, scan.is_ct, task.spacing)
    else:
        preprocessed = preprocess_as_planned(array, spacing, task.planned)
    del array
    record = {
        "name": scan.name,
        "source": scan.source,
        "files": files,
        "channels": scan.channels,
        "is_ct": scan.is_ct,
        "original": {"shape": shape, "spacing": spacing},
        "bbox": preprocessed.bbox,
        "spacing": preprocessed.spacing,
        "orientation": task.orientation(),
        "mean": preprocessed.mean,
        "std": preprocessed.std,
        "settings": task.settings(),
        "is_no_mask": scan.may_be_mask,  # its values have been checked
    }
    return write_volume(task.path, preprocessed.data, record, task.crop_size), preprocessed.warnings, ""


def _complete_record(task: Task) -> tuple[Volume, tuple[str, ...], str]:
    record = read_record(task.path)
    if "orientation" not in record:
        record["orientation"] = task.orientation()
    volume = Volume.from_record(task.path, record)
    try:
        record["files"] = _file_entries(task.scan, with_hashes=True)
        write_record(task.path, record)
    except (DataError, OSError) as error:
        return volume, (), str(error)
    return volume, (), ""


def is_undamaged(task: Task) -> bool:
    """Whether the volume is the one that was written, by its checksum.

    Raises:
        DataError: If record and file do not fit each other.
    """
    record = read_record(task.path)
    Volume.from_record(task.path, record).read(0, (0, 0, 0), (1, 1, 1))
    return record.get("sha256") == sha256_of(task.path)


def _file_entries(scan: Scan, with_hashes: bool = False) -> list[Entry]:
    """Path, size in bytes and time of change in nanoseconds of each file, and the SHA-256 of its content."""
    stats = [(file, os.stat(file)) for file in scan.files]
    entries: list[Entry] = [{"path": file, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns} for file, stat in stats]
    return [{**entry, "sha256": sha256_of(entry["path"])} for entry in entries] if with_hashes else entries


def _identities(entries: Sequence[Entry]) -> list[tuple[str, int, int]]:
    """Name, size and time of change: moving a whole dataset does not count as a change."""
    return [(Path(entry["path"]).name, entry["size"], entry["mtime_ns"]) for entry in entries]
