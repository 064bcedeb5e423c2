"""What the records of earlier versions lack: the hashes of the files, and how the axes lie in the body."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pretraining.data.directions import read_orientation
from pretraining.data.files import are_hashed, file_entries, hashed
from pretraining.data.orientation import Orientation
from pretraining.data.scan import DataError, Scan
from pretraining.data.store import Volume, read_record
from pretraining.data.workers import run_tasks
from pretraining.data.writing import write_record

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredVolume:
    """A volume that is there, and the scan it was made from.

    Attributes:
        path: The ``.b2nd`` file.
        scan: With the files as they were when the volume was stored.
        axes: Which axis of the scan as read is the volume's first, second and third.
    """

    path: Path
    scan: Scan
    axes: tuple[int, int, int] = (0, 1, 2)

    def orientation(self) -> Orientation | None:
        """Of the volume, from the scan's headers."""
        read = read_orientation(self.scan)
        return None if read is None else (read[self.axes[0]], read[self.axes[1]], read[self.axes[2]])


def is_complete(record: Mapping[str, Any]) -> bool:
    """Whether a record has all that this version writes."""
    return are_hashed(record["files"]) and "orientation" in record


def completed(
    older: Sequence[tuple[StoredVolume, Mapping[str, Any]]], processes: int, progress: bool
) -> Iterator[tuple[StoredVolume, Volume]]:
    """Complete records, once, and yield the volumes that are now known better; voxels are left alone.

    A record that cannot be written, in a store of somebody else's, say, is completed anew by every run.

    Args:
        older: Volumes and their records.
        processes: Number of workers that hash files.
        progress: Show progress bars.
    """
    _hash_files_of([item for item, record in older if not are_hashed(record["files"])], processes, progress)
    failed = []
    undirected = [item for item, record in older if "orientation" not in record]
    for item in tqdm(undirected, desc="reading headers", disable=not (progress and undirected)):
        try:
            orientation = item.orientation()
            record = {**read_record(item.path), "orientation": None if orientation is None else list(orientation)}
            yield item, Volume.from_record(item.path, record)
            write_record(item.path, record)
        except DataError as error:
            failed.append(error)
    if failed:
        logger.warning(
            "%d records stay without the orientation of their scan, which is read again each time; the first because: "
            "%s",
            *(len(failed), failed[0]),
        )


def _hash_files_of(stored: Sequence[StoredVolume], processes: int, progress: bool) -> None:
    failed = []
    with tqdm(total=len(stored), desc="hashing files", disable=not (progress and stored)) as bar:
        for _, outcome in run_tasks(_hash_files, stored, processes if len(stored) > 1 else 1):
            bar.update()
            failed += [outcome] if isinstance(outcome, Exception) else []
    if failed:
        logger.warning("%d scans stay without the hash of their files, the first because: %s", len(failed), failed[0])


def _hash_files(stored: StoredVolume) -> None:
    record = read_record(stored.path)
    write_record(stored.path, {**record, "files": hashed(file_entries(stored.scan))})
