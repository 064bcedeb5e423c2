"""The files that a volume was made from, as its record tells them: are they still the same, and what is in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunetv2_pgl.checkpoint import sha256_of
from pretraining.data.scan import Scan

Entry = dict[str, Any]


def file_entries(scan: Scan) -> list[Entry]:
    """Path, size in bytes and time of change in nanoseconds of each file."""
    stats = [(Path(file), Path(file).stat()) for file in scan.files]
    return [{"path": str(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns} for path, stat in stats]


def hashed(entries: Sequence[Entry]) -> list[Entry]:
    """The same with the SHA-256 of each file's content, which is read for it."""
    return [{**entry, "sha256": sha256_of(entry["path"])} for entry in entries]


def are_hashed(entries: Sequence[Entry]) -> bool:
    """Whether all have a SHA-256; records of earlier versions have none."""
    return all("sha256" in entry for entry in entries)


def same_files(entries: Sequence[Entry], others: Sequence[Entry]) -> bool:
    """Whether name, size and time of change are equal; moving a whole data set does not count as a change."""
    return _identities(entries) == _identities(others)


def _identities(entries: Sequence[Entry]) -> list[tuple[str, int, int]]:
    if not all(isinstance(entry.get("sha256", ""), str) for entry in entries):
        raise TypeError("a hash is no text")
    return [(Path(entry["path"]).name, entry["size"], entry["mtime_ns"]) for entry in entries]
