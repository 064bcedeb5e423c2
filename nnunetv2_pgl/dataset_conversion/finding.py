"""Image files below the folder of a download."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from nnunetv2_pgl.dataset_conversion.collection import Case, ConversionError

FILE_ENDINGS = (".nii.gz", ".nii")


def image_files(folder: Path) -> Iterator[Path]:
    """Yield all NIfTI files below a folder, sorted within each; links are followed, each folder is seen once.

    Hidden files are passed over: archives made on a Mac hold a ``._`` file beside every scan.

    Raises:
        ConversionError: If there is no such folder.
    """
    if not folder.is_dir():
        raise ConversionError(f"{folder} is not a folder: -i takes the folder of the unpacked download")
    seen: set[str] = set()
    for directory, subfolders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(directory)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name != "__MACOSX")
        yield from (Path(directory, n) for n in sorted(files) if not n.startswith(".") and n.endswith(FILE_ENDINGS))


def files_by_case(folder: Path, pattern: str) -> dict[str, Path]:
    """Find the file of each case.

    Args:
        folder: Where to search, recursively.
        pattern: Regular expression for parent folder and file name without its ending ("case_00001/imaging"); its
            group is the case.

    Raises:
        ConversionError: If there is no such folder, or two files for one case.
    """
    found: dict[str, Path] = {}
    for path in image_files(folder):
        stem = re.sub(r"\.nii(\.gz)?$", "", path.name)
        match = re.fullmatch(pattern, f"{path.parent.name}/{stem}")
        if match is None:
            continue
        other = found.setdefault(match[1], path)
        if other != path:
            raise ConversionError(f"{match[1]} is there twice, as {other} and {path}: move one of them away")
    return found


def labelled_cases(
    names: list[str], images: dict[str, Path], labels: dict[str, Path]
) -> tuple[dict[str, Case], list[str]]:
    """Join images and labels.

    Args:
        names: The cases of the data set as published.
        images: Image file of each case found.
        labels: Label file of each case found.

    Returns:
        The complete cases in the order of ``names``, and a line for each that is not.
    """
    cases, missing = {}, []
    for name in names:
        lacking = [kind for kind, files in (("image", images), ("label", labels)) if name not in files]
        if lacking:
            missing.append(f"{name}: {' and '.join(lacking)} missing")
        else:
            cases[name] = Case(name, images[name], labels[name])
    return cases, missing
