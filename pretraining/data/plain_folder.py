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

from pretraining.data.candidate import Candidate, odd_path, printable, tell_unused
from pretraining.data.dicom_series import Series, find_series
from pretraining.data.scan import DICOM, FILE_ENDINGS, Skipped

logger = logging.getLogger(__name__)

# Words that name segmentations: within the name of a file, or as the whole name of a folder.
_WORDS = r"(?:labels?|masks?|segs?|segmentations?|gt|ground[_-]?truth)"
_MASK_FILE = re.compile(rf"(?:^|[^a-z]){_WORDS}(?:[^a-z]|$)", re.IGNORECASE)
_MASK_FOLDER = re.compile(rf"{_WORDS}[_-]?(?:tr|ts|va|val|train|test)?", re.IGNORECASE)
_DETACHED = (".mhd", ".nhdr")  # headers that name the files of their voxels
_HEADER = 64 * 1024  # bytes of one in which these names stand


def find_in_folder(
    folder: Path, modality: str | None, use_masks: bool = False
) -> tuple[list[Candidate], list[Skipped]]:
    """Find all scans below a folder, one channel each. Lines of the log count the files that are not used.

    Args:
        folder: Where to search.
        modality: ``"ct"`` or ``"mr"`` for all; None: DICOM files tell theirs, others are CT.
        use_masks: Whether to take what has a name or values like a segmentation.

    Returns:
        The scans, image files before DICOM series, each in the order of their paths; and DICOM files and series that
        cannot be used.
    """
    is_ct = modality != "mr"
    channels = ("CT" if is_ct else "MR",)
    candidates, masks, others, hidden = list[Candidate](), list[Path](), list[Path](), list[Path]()
    skipped = list[Skipped]()
    for directory, files in _walk(folder, skipped):
        parents = directory.relative_to(folder).parts
        for file in files:
            ending = next((ending for ending in FILE_ENDINGS if file.name.lower().endswith(ending)), None)
            stem = file.name.removesuffix(file.name[-len(ending) :]) if ending else file.name
            if file.name.startswith("."):
                hidden.append(file)
            elif reason := _no_readable_file(file):
                skipped.append(Skipped(printable(file.name), folder.name, reason))
            elif ending is None:
                others.append(file)
            elif not use_masks and (_MASK_FILE.search(stem) or any(map(_MASK_FOLDER.fullmatch, parents))):
                masks.append(file)
            else:
                candidates.append(Candidate(stem, parents, (str(file),), channels, (is_ct,), may_be_mask=not use_masks))
    found = find_series(others)
    candidates += [_candidate(item, folder, modality, not use_masks) for item in found.series]
    _tell_copies(folder, found.series)
    _tell_modality(folder, [item.stack.frames[0].modality for item in found.series], modality)
    if masks:
        logger.warning(
            "%s: passed over as segmentations by their names: %d file%s, such as %s (--use_masks takes them)",
            *(folder.name, len(masks), "s" if masks[1:] else "", masks[0].relative_to(folder)),
        )
    tell_unused(folder.name, [*hidden, *_unused(candidates, found.others)])
    return candidates, skipped + [Skipped(name, folder.name, reason) for name, reason in found.left_out]


def _candidate(item: Series, folder: Path, modality: str | None, may_be_mask: bool) -> Candidate:
    """A DICOM series as a scan of the folder; a tilted one is told."""
    stack, parents = item.stack, item.folder.relative_to(folder).parts[:-1]
    if stack.tilt:
        logger.warning("%s: %s has a gantry tilt of %.1f degrees: straightened", folder.name, item.name, stack.tilt)
    told = modality or stack.frames[0].modality or "CT"
    is_ct = told.upper() == "CT"
    return Candidate(
        *(item.name, parents, stack.files, (told.upper(),), (is_ct,), DICOM, stack.geometry),
        may_be_mask=may_be_mask,
    )


def _no_readable_file(file: Path) -> str:
    """Why a file cannot be opened without harm; empty if it can."""
    if reason := odd_path(file):
        return reason
    try:
        kind = file.stat().st_mode
    except OSError:
        return ""  # for the reader to say
    return "" if stat.S_ISREG(kind) else "is no file but a pipe, socket or device"


def _tell_copies(folder: Path, series: Sequence[Series]) -> None:
    """Say which series are the same by the UIDs of their objects: each counts, and may be left out only once."""
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


def _tell_modality(folder: Path, told: Sequence[str], modality: str | None) -> None:
    """Say where DICOM files are no CT, and where the user overrules them."""
    others = Counter(name for name in told if name and (name == "CT") != (modality != "mr"))
    if not others:
        return
    series = ", ".join(f"{count} {name}" for name, count in others.most_common())
    if modality is None:
        logger.warning("%s: DICOM series that are no CT, and are not treated as CT: %s", folder.name, series)
    else:
        logger.warning("%s: -modality %s overrules what DICOM files say: %s", folder.name, modality, series)


def _unused(candidates: Sequence[Candidate], others: Sequence[Path]) -> list[Path]:
    """Files that are neither scans nor named as voxels in the header of one."""
    headers: dict[Path, bytes] = {}
    for file in (Path(candidate.files[0]) for candidate in candidates):
        if file.name.lower().endswith(_DETACHED):
            with suppress(OSError), file.open("rb") as stream:
                headers[file.parent] = headers.get(file.parent, b"") + stream.read(_HEADER)
    return [file for file in others if os.fsencode(file.name) not in headers.get(file.parent, b"")]


def _walk(folder: Path, skipped: list[Skipped]) -> Iterator[tuple[Path, list[Path]]]:
    """Yield every folder that is not hidden with its files, sorted; links are followed, each folder is seen once.

    Folders that cannot be listed are added to ``skipped``.
    """

    def tell(error: OSError) -> None:
        name = printable(os.path.relpath(error.filename, folder))
        skipped.append(Skipped(name, folder.name, f"the folder cannot be listed ({error.strerror})"))

    seen: set[str] = set()
    for directory, subfolders, files in os.walk(folder, onerror=tell, followlinks=True):
        real = os.path.realpath(directory)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        hidden = [name for name in subfolders if name.startswith(".")]  # counted as one file each
        subfolders[:] = sorted(set(subfolders) - set(hidden))
        yield Path(directory), [Path(directory, name) for name in sorted(files + hidden)]
