"""Scans in a plain folder: image files and DICOM series, searched recursively."""

from __future__ import annotations

import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from pretraining.data.reading.dicom_series import Series, find_series
from pretraining.data.scan import (
    DICOM,
    FILE_ENDINGS,
    Scan,
    Skipped,
    Source,
    escape_non_utf8,
    log_unused,
    path_problem,
    safe_name,
)

logger = logging.getLogger(__name__)

# Words that name segmentations: within the name of a file, or as the whole name of a folder.
_WORDS = r"(?:labels?|masks?|segs?|segmentations?|gt|ground[_-]?truth)"
_MASK_FILE = re.compile(rf"(?:^|[^a-z]){_WORDS}(?:[^a-z]|$)", re.IGNORECASE)
_MASK_FOLDER = re.compile(rf"{_WORDS}[_-]?(?:tr|ts|va|val|train|test)?", re.IGNORECASE)
_DETACHED = (".mhd", ".nhdr")  # headers that name the files with their voxels
_HEADER = 64 * 1024  # bytes at the beginning of such a file in which the names stand


def find_in_folder(source: Source, modality: str | None, use_masks: bool = False) -> tuple[list[Scan], list[Skipped]]:
    """Find all scans below a folder, one channel each. Log the number of files that are not used.

    Args:
        source: The folder to search.
        modality: ``"ct"`` or ``"mr"`` for all; None: DICOM files say theirs, others are CT.
        use_masks: Whether to take scans whose name or values are like those of a segmentation.

    Returns:
        The scans, image files before DICOM series, each in the order of their paths, named after file or series, with
        the folders in front in their identifier; and DICOM files and series that cannot be used.
    """
    folder = source.folder
    is_ct = modality != "mr"
    channels = ("CT" if is_ct else "MR",)
    scans, masks, others, hidden = list[Scan](), list[Path](), list[Path](), list[Path]()
    skipped = list[Skipped]()

    def names(parents: Sequence[str], stem: str) -> tuple[str, str, str, str]:
        return safe_name(stem), safe_name("_".join((*parents, stem))), source.name, source.store

    for directory, files in _walk(folder, skipped):
        parents = directory.relative_to(folder).parts
        for file in files:
            ending = next((ending for ending in FILE_ENDINGS if file.name.lower().endswith(ending)), "")
            stem = file.name[: len(file.name) - len(ending)]
            if file.name.startswith("."):
                hidden.append(file)
            elif reason := path_problem(file) or _special_file(file):
                skipped.append(Skipped(escape_non_utf8(file.name), source.name, reason))
            elif not ending:
                others.append(file)
            elif not use_masks and (_MASK_FILE.search(stem) or any(map(_MASK_FOLDER.fullmatch, parents))):
                masks.append(file)
            else:
                scans.append(Scan(*names(parents, stem), (str(file),), channels, (is_ct,), may_be_mask=not use_masks))
    found = find_series(others)
    unused = [*hidden, *_unused(scans, found.others)]
    for item in found.series:
        stack = item.stack
        if stack.tilt:
            logger.warning("%s: %s has a gantry tilt of %.1f degrees: straightened", folder.name, item.name, stack.tilt)
        channel = (modality or stack.frames[0].modality or "CT").upper()
        parents = item.folder.relative_to(folder).parts[:-1]
        files_of_scan = *names(parents, item.name), stack.files
        scans.append(Scan(*files_of_scan, (channel,), (channel == "CT",), DICOM, stack.geometry, not use_masks))
    _warn_of_copies(folder, found.series)
    _warn_of_modalities(folder, [item.stack.frames[0].modality for item in found.series], modality)
    if masks:
        logger.warning(
            "%s: ignored as segmentations by their names: %d file%s, such as %s (--use_masks takes them)",
            *(folder.name, len(masks), "s" if masks[1:] else "", masks[0].relative_to(folder)),
        )
    log_unused(folder.name, unused)
    return scans, skipped + [Skipped(name, folder.name, reason) for name, reason in found.left_out]


def _special_file(file: Path) -> str:
    """Why a file cannot be opened without waiting forever; empty if it can."""
    try:
        kind = file.stat().st_mode
    except OSError:
        return ""  # for the reader to report
    return "" if stat.S_ISREG(kind) else "is a pipe, socket or device, not a file"


def _warn_of_copies(folder: Path, series: Sequence[Series]) -> None:
    """Warn of series with the same object UIDs: each counts in training, and may be excluded under one name only."""
    same: dict[frozenset[str], list[str]] = {}
    for item in series:
        uids = frozenset(frame.instance for frame in item.stack.frames)
        if len(uids) == len(item.stack.files):
            same.setdefault(uids, []).append(item.name)
    for names in (names for names in same.values() if len(names) > 1):
        logger.warning(
            "%s: the same DICOM series lies there %d times, as %s, and is used as often: take the copies out",
            *(folder.name, len(names), " and ".join(names[:2])),
        )


def _warn_of_modalities(folder: Path, found: Sequence[str], modality: str | None) -> None:
    """Warn where DICOM files are not CT, and where the user overrides what they say."""
    others = Counter(name for name in found if name and (name == "CT") != (modality != "mr"))
    if not others:
        return
    series = ", ".join(f"{count} {name}" for name, count in others.most_common())
    if modality is None:
        logger.warning("%s: DICOM series that are not CT are treated as non-CT: %s", folder.name, series)
    else:
        logger.warning("%s: -modality %s overrides what DICOM files say: %s", folder.name, modality, series)


def _unused(scans: Sequence[Scan], others: Sequence[Path]) -> list[Path]:
    """Files that are not scans and whose names do not stand in the header of one, as its file of voxels."""
    headers: dict[Path, bytes] = {}
    for file in (Path(scan.files[0]) for scan in scans):
        if file.name.lower().endswith(_DETACHED):
            with suppress(OSError), file.open("rb") as stream:
                headers[file.parent] = headers.get(file.parent, b"") + stream.read(_HEADER)
    return [file for file in others if os.fsencode(file.name) not in headers.get(file.parent, b"")]


def _walk(folder: Path, skipped: list[Skipped]) -> Iterator[tuple[Path, list[Path]]]:
    """Every folder that is not hidden, with its files, sorted. Links are followed, but each folder is visited once.

    Folders that cannot be listed are added to ``skipped``.
    """

    def skip(error: OSError) -> None:
        name = escape_non_utf8(os.path.relpath(error.filename, folder))
        skipped.append(Skipped(name, folder.name, f"the folder cannot be listed ({error.strerror})"))

    seen: set[str] = set()
    for directory, subfolders, files in os.walk(folder, onerror=skip, followlinks=True):
        real = os.path.realpath(directory)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        hidden = [name for name in subfolders if name.startswith(".")]  # counted as one file each
        subfolders[:] = sorted(set(subfolders) - set(hidden))
        yield Path(directory), [Path(directory, name) for name in sorted(files + hidden)]
