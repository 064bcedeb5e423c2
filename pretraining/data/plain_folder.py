"""Scans in a plain folder: image files and DICOM series, searched recursively."""

import os
from collections.abc import Iterator
from pathlib import Path

from pretraining.data.candidate import Candidate
from pretraining.data.dicom import find_series
from pretraining.data.scan import DICOM, FILE_ENDINGS, Skipped

LABEL_FOLDERS = {"labelsTr", "labelsTs"}


def find_in_folder(folder: Path, modality: str | None) -> tuple[list[Candidate], list[Skipped]]:
    """Find all scans below a folder, one channel each; labels of a dataset layout and hidden files are passed over.

    Args:
        folder: Where to search.
        modality: ``"mr"`` for MR; everything else is CT.

    Returns:
        The scans in the order of their paths, and DICOM objects that are no images.
    """
    is_ct = modality != "mr"
    channels = ("CT" if is_ct else "MR",)
    candidates: list[Candidate] = []
    skipped: list[Skipped] = []
    for directory, files in _walk(folder):
        parents = directory.relative_to(folder).parts
        others = []
        for file in files:
            ending = next((ending for ending in FILE_ENDINGS if file.name.lower().endswith(ending)), None)
            if ending is None:
                others.append(file)
            else:
                stem = file.name[: -len(ending)]
                candidates.append(Candidate(stem, parents, (str(file),), channels, (is_ct,)))
        series, no_images = find_series(directory, others)
        skipped += [Skipped(name, folder.name, reason) for name, reason in no_images]
        candidates += [Candidate(name, parents[:-1], slices, channels, (is_ct,), DICOM) for name, slices in series]
    return candidates, skipped


def _walk(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Yield every folder with its visible files, sorted; links are followed, each folder is seen once."""
    seen: set[str] = set()
    for directory, subfolders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(directory)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if name not in LABEL_FOLDERS and not name.startswith("."))
        yield Path(directory), [Path(directory, name) for name in sorted(files) if not name.startswith(".")]
