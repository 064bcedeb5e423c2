"""What there is to preprocess, and whether it is done: the record tells how a volume was made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretraining.data.files import file_entries, same_files
from pretraining.data.older_records import StoredVolume
from pretraining.data.planned import PlannedPreprocessing
from pretraining.data.preparation import HU_RANGE
from pretraining.data.scan import DEFAULT_READER, DataError, Scan
from pretraining.data.spacing import Spacing
from pretraining.data.store import Volume, read_record

_READING = 2  # raised when other voxels or another spacing are read from the same files


@dataclass(frozen=True)
class Task:
    """Everything a worker needs to preprocess one scan."""

    scan: Scan
    path: Path
    spacing: Spacing | None
    crop_size: tuple[int, int, int]
    planned: PlannedPreprocessing | None

    @property
    def stored(self) -> StoredVolume:
        """Where the volume is, and what it is made from."""
        return StoredVolume(self.path, self.scan, (0, 1, 2) if self.planned is None else self.planned.transpose_forward)


def settings_of(task: Task) -> dict[str, Any]:
    """What decides the stored values; a record with other settings is out of date."""
    declared = {"is_ct": list(task.scan.is_ct), "channels": list(task.scan.channels), **_way_of_reading(task.scan)}
    if task.planned is not None:
        return {"planned": task.planned.to_dict(), **declared}
    return {
        "spacing": None if task.spacing is None else list(task.spacing),
        **declared,
        "hu_range": list(HU_RANGE),
        "resampling": {"order": 3, "order_z": 0},
    }


def _way_of_reading(scan: Scan) -> dict[str, Any]:
    """Nothing for NIfTI by SimpleITK, of which all versions read the same."""
    if scan.reader == DEFAULT_READER and all(path.lower().endswith((".nii", ".nii.gz")) for path in scan.files):
        return {}
    return {"reader": scan.reader, "reading": _READING}


def record_if_up_to_date(task: Task) -> dict[str, Any] | None:
    """The record on disk, if its volume was made with these settings from these very files."""
    try:
        record = read_record(task.path)
        whole = task.path.stat().st_size == record["file_size"]
        current = same_files(record["files"], file_entries(task.scan)) and record["settings"] == settings_of(task)
        current &= bool(record.get("is_no_mask")) or not task.scan.may_be_mask
        Volume.from_record(task.path, record)
        return record if whole and current and record["channels"] == list(task.scan.channels) else None
    except (DataError, OSError, KeyError, TypeError, AttributeError):
        return None
