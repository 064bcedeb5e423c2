"""Scans in a plain folder: image files and DICOM series, searched recursively."""

import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from nnunetv2_pgl.errors import counted
from nnunetv2_pgl.files import walk
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
_MAX_HEADER_BYTES = 64 * 1024


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

    def skip(error: OSError) -> None:
        name = escape_non_utf8(os.path.relpath(error.filename, folder))
        skipped.append(Skipped(name, folder.name, f"the folder cannot be listed ({error.strerror})"))

    def names(parents: Sequence[str], stem: str) -> tuple[str, str, str, str]:
        return safe_name(stem), safe_name("_".join((*parents, stem))), source.name, source.store

    for directory, file_names in walk(folder, skip):
        parents = directory.relative_to(folder).parts
        for file in (directory / name for name in file_names):
            ending = next((ending for ending in FILE_ENDINGS if file.name.lower().endswith(ending)), "")
            stem = file.name[: len(file.name) - len(ending)]
            if file.name.startswith("."):
                hidden.append(file)
            elif reason := path_problem(file):
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
        channel = (modality or stack.frames[0].modality or "CT").upper()
        parents = item.folder.relative_to(folder).parts[:-1]
        files_of_scan = *names(parents, item.name), stack.files
        scans.append(Scan(*files_of_scan, (channel,), (channel == "CT",), DICOM, stack.geometry, not use_masks))
    _warn_of_series(folder, found.series, modality)
    if masks:
        logger.warning(
            "%s: ignored as segmentations by their names: %s, such as %s (--use_masks takes them)",
            *(folder.name, counted(len(masks), "file"), masks[0].relative_to(folder)),
        )
    log_unused(folder.name, unused)
    return scans, skipped + [Skipped(name, folder.name, reason) for name, reason in found.left_out]


def _warn_of_series(folder: Path, series: Sequence[Series], modality: str | None) -> None:
    """Warn of what the user may not expect: straightened slices, copies, and modalities other than the one assumed."""
    copies: dict[frozenset[str], list[str]] = {}
    modalities: Counter[str] = Counter()
    for item in series:
        stack = item.stack
        if stack.tilt:
            logger.warning("%s: %s has a gantry tilt of %.1f degrees: straightened", folder.name, item.name, stack.tilt)
        uids = frozenset(frame.instance for frame in stack.frames)
        if len(uids) == len(stack.files):
            copies.setdefault(uids, []).append(item.name)
        stated = stack.frames[0].modality
        if stated and (stated == "CT") != (modality != "mr"):
            modalities[stated] += 1
    for names in (names for names in copies.values() if len(names) > 1):
        logger.warning(
            "%s: the same DICOM series lies there %d times, as %s, and is used as often: take the copies out",
            *(folder.name, len(names), " and ".join(names[:2])),
        )
    if modalities:
        effect = "DICOM series that are not CT are treated as non-CT"
        if modality is not None:
            effect = f"-modality {modality} overrides what DICOM files say"
        found = ", ".join(f"{count} {name}" for name, count in modalities.most_common())
        logger.warning("%s: %s: %s", folder.name, effect, found)


def _unused(scans: Sequence[Scan], others: Sequence[Path]) -> list[Path]:
    """Files that are not scans and whose names do not stand in the header of one, as its file of voxels."""
    headers: dict[Path, bytes] = {}
    for file in (Path(scan.files[0]) for scan in scans):
        if file.name.lower().endswith(_DETACHED):
            with suppress(OSError), file.open("rb") as stream:
                headers[file.parent] = headers.get(file.parent, b"") + stream.read(_MAX_HEADER_BYTES)
    return [file for file in others if os.fsencode(file.name) not in headers.get(file.parent, b"")]
