"""Find the DICOM series of a folder that are one volume each, and the reason why other files are not used."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from nnunetv2_pgl.errors import counted
from pretraining.data.reading.dicom_files import may_be_dicom, read_frames
from pretraining.data.reading.dicom_frames import PHASES, Frame
from pretraining.data.reading.dicom_volume import Stack, stacked
from pretraining.data.scan import BadScan

_ENDINGS = (".dcm", ".dicom", ".ima")
_MAX_SCOUT_SHARE = 0.1  # of the slices of a series
K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True)
class Series:
    """A scan in DICOM files."""

    folder: Path  # of its slices, or the common parent of their folders
    name: str  # of that folder, with what distinguishes the series from others there
    stack: Stack


@dataclass
class Found:
    """Outcome of a search: scans, names and reasons of what is left out, and files that are not DICOM."""

    series: list[Series] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)


def find_series(files: Sequence[Path]) -> Found:
    """Find the DICOM series among the files of a folder and its subfolders.

    A series is one scan if its slices are one volume, wherever they lie. If they are not, the slices in one folder are
    tried, and among them the slices of one phase. Localizers are set aside first.
    """
    found, frames, bad = Found(), list[Frame](), dict[Path, str]()
    for file in tqdm(files, "reading DICOM headers", delay=5, leave=False, disable=None):
        try:
            own = read_frames(str(file)) if may_be_dicom(file) else []
            if not own and file.suffix.lower() in _ENDINGS:
                raise BadScan(f"{file.name} is not a DICOM file, or is damaged: fetch it again")
            found.others += [] if own else [file]
            frames += own
        except OSError as error:
            bad[file] = f"{file.name} cannot be read ({error.strerror or error})"
        except BadScan as error:
            bad[file] = str(error)
    series_in: dict[Path, set[tuple[str, ...]]] = {}
    for frame in frames:
        series_in.setdefault(frame.folder, set()).add(frame.series)
    for group in _grouped(frames, [frame.series for frame in frames]).values():
        is_alone = all(len(series_in[folder]) == 1 for folder in {frame.folder for frame in group})
        _add_series(found, group, label=() if is_alone else group[0].label)
    kinds = [(file.parent, reason.removeprefix(file.name).partition(" (")[0]) for file, reason in bad.items()]
    folders = Counter(folder for folder, _ in dict.fromkeys(kinds))
    for (folder, _), alike in _grouped(bad, kinds).items():
        first = alike[0]
        name = f"{folder.name}/{first.name}" if folder in series_in or folders[folder] > 1 else folder.name
        more = f"; the same for {counted(len(alike) - 1, 'more file')} there" if alike[1:] else ""
        found.left_out.append((name, bad[first] + more))
    return found


def _add_series(found: Found, frames: list[Frame], label: Sequence[str]) -> None:
    """Add the scans among frames with one series UID, and the reasons for the others."""
    folder = Path(os.path.commonpath([frame.folder for frame in frames]))
    name = "_".join((folder.name, *label))
    try:
        scouts = _scouts(frames)
        if len(scouts) == len(frames):
            raise BadScan("holds only localizers (scout views), which are not a volume")
        slices = _without(frames, scouts)
        # Screenshots and reports: a few frames that are coloured or have no position at all.
        pictures = [frame for frame in slices if not frame.is_grey or not (frame.position or frame.cosines)]
        pictures = _whole_files(pictures, slices, _MAX_SCOUT_SHARE)
        volumes = _volumes(_without(slices, pictures))
        found.series += [Series(folder, "_".join((name, *suffix)), stack) for suffix, stack in volumes.items()]
        found.left_out += [(f"{name}/{scout.name}", "a localizer: set aside") for scout in scouts]
        found.left_out += [(f"{name}/{one.name}", "a picture, not a slice: set aside") for one in pictures]
    except BadScan as error:
        by_folder = _grouped(frames, [frame.folder for frame in frames])
        by_itself = Found()
        if len(by_folder) > 1:
            for part in by_folder.values():
                _add_series(by_itself, part, label)
        if by_itself.series:
            found.series += by_itself.series
            found.left_out += by_itself.left_out
        else:
            names = [part.name for part in by_folder]
            where = f"; its slices lie in {len(names)} folders: {' '.join(names[:3])}{' ...' if names[3:] else ''}"
            found.left_out.append((name, f"{error}{where if names[1:] else ''}"))


def _volumes(frames: list[Frame]) -> dict[tuple[str, ...], Stack]:
    """The frames as one volume, or one for each phase or each file, by what distinguishes these.

    Raises:
        BadScan: If they are neither; with the reason why they are not one volume.
    """
    try:
        return {(): stacked(frames)}
    except BadScan:
        for values in zip(*((*frame.phase, Path(frame.file).stem) for frame in frames), strict=True):
            parts = _grouped(frames, values)
            files = sum(len({frame.file for frame in part}) for part in parts.values())
            of_whole_files = files == len({frame.file for frame in frames})
            if of_whole_files and 1 < len(parts) <= len(frames) / 3:
                try:
                    return {(value,): stacked(part) for value, part in parts.items()}
                except BadScan:
                    continue
        raise


def _scouts(frames: Sequence[Frame]) -> list[Frame]:
    """Localizers by their image type; without such, a few slices across all the others."""
    scouts = [frame for frame in frames if "LOCALIZER" in frame.phase[PHASES.index("ImageType")].upper().split()]
    if scouts or not all(frame.cosines for frame in frames):
        return _whole_files(scouts, frames)
    normals = np.array([np.cross(frame.cosines[:3], frame.cosines[3:]) for frame in frames])
    usual = Counter(map(tuple, normals.round(2).tolist())).most_common(1)[0][0]
    across = [frame for frame, normal in zip(frames, normals, strict=True) if abs(normal @ usual) < 0.5]
    return _whole_files(across, frames, _MAX_SCOUT_SHARE)


def _whole_files(some: Sequence[Frame], frames: Sequence[Frame], max_share: float = 1.0) -> list[Frame]:
    """Frames of ``some`` whose files hold no other frame, since all frames of a file are read; none if too many."""
    others = Counter(frame.file for frame in frames) - Counter(frame.file for frame in some)
    return [frame for frame in some if frame.file not in others] if len(some) <= max_share * len(frames) else []


def _without(frames: Sequence[Frame], some: Sequence[Frame]) -> list[Frame]:
    files = {frame.file for frame in some}
    return [frame for frame in frames if frame.file not in files]


def _grouped(items: Iterable[T], keys: Iterable[K]) -> dict[K, list[T]]:
    """Items by their keys, in the order of first occurrence."""
    groups: dict[K, list[T]] = {}
    for item, key in zip(items, keys, strict=True):
        groups.setdefault(key, []).append(item)
    return groups
