"""What a scan is before it is read, how scans are named, and the two ways in which data can be wrong."""

import hashlib
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_pgl.errors import PGLError, counted

logger = logging.getLogger(__name__)

DICOM = "dicom"
DEFAULT_READER = "SimpleITKIO"
FILE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
_MAX_ENDINGS = 8  # that a message lists

Spacing = tuple[float, float, float]  # (z, y, x) in mm


class DataError(PGLError):
    """The data as a whole cannot be used: one line that says what is wrong and what to do."""


class BadScan(PGLError):  # noqa: N818 - it describes the scan; the run continues without it
    """One scan cannot be used. The message is the reason, as shown to the user."""


@dataclass(frozen=True)
class Source:
    """One thing that ``-d`` names: an nnU-Net dataset or a plain folder."""

    name: str
    folder: Path
    is_dataset: bool

    @property
    def full_name(self) -> str:
        """What stands for it in any working directory: the dataset's name or the absolute folder."""
        return self.name if self.is_dataset else str(self.folder)

    @property
    def store(self) -> str:
        """Folder below nnUNet_preprocessed; that of a plain folder has a hash of its path in its name."""
        if self.is_dataset:
            return self.name
        digest = hashlib.sha256(str(self.folder).encode()).hexdigest()[:8]
        return f"PGL_folders/{safe_name(self.name)}_{digest}"


@dataclass(frozen=True)
class Geometry:
    """What headers say of a scan.

    Attributes:
        shape: In voxels, (z, y, x).
        spacing: In mm, (z, y, x).
        direction: Of DICOM series: where the axes x, y and z go in the patient, ITK's nine numbers.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    direction: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Scan:
    """One 3D scan, found but not read.

    Attributes:
        name: Unique in the pool and safe as a file name.
        identifier: The same within its source alone, so it does not depend on what else is pooled. Files are named
            after it.
        source: Name of the nnU-Net dataset or of the folder.
        store: Folder below ``nnUNet_preprocessed`` that keeps this source's volumes.
        files: One file per channel, or the slices of a DICOM series in their order in space.
        channels: Channel names as in dataset.json, such as ``("CT",)`` or ``("T1", "FLAIR")``.
        is_ct: Per channel, whether its values are Hounsfield units.
        reader: Name of the nnU-Net reader class, or ``DICOM``.
        geometry: Of a DICOM series, from its headers.
        may_be_mask: Whether the scan is to be refused if its values are those of a segmentation.
    """

    name: str
    identifier: str
    source: str
    store: str
    files: tuple[str, ...]
    channels: tuple[str, ...]
    is_ct: tuple[bool, ...]
    reader: str = DEFAULT_READER
    geometry: Geometry | None = None
    may_be_mask: bool = False


@dataclass(frozen=True)
class Skipped:
    """A scan that is left out, and why."""

    name: str
    source: str
    reason: str

    def __str__(self) -> str:
        """One line for the user."""
        return f"{self.source}: {self.name} skipped: {self.reason}"


def summarise_skipped(skipped: Iterable[Skipped]) -> list[str]:
    """Lines for the user; more than three scans of one source with the same reason share one."""
    groups: dict[tuple[str, str], list[Skipped]] = {}
    for item in skipped:
        groups.setdefault((item.source, item.reason), []).append(item)
    lines = []
    for (source, reason), items in groups.items():
        if len(items) > 3:
            lines.append(f"{source}: {items[0].name} and {len(items) - 1} more skipped: {reason}")
        else:
            lines += [str(item) for item in items]
    return lines


def log_unused(source: str, files: Iterable[Path]) -> None:
    """Log the number of files that are not scans, by their endings."""
    counts = Counter(
        "hidden" if file.name.startswith(".") else file.suffix.lower() or "without ending" for file in files
    )
    parts = [f"{count} {ending}" for ending, count in counts.most_common(_MAX_ENDINGS)]
    if others := sum(count for _, count in counts.most_common()[_MAX_ENDINGS:]):
        parts.append(counted(others, "other"))
    if parts:
        logger.warning("%s: ignored files that are not scans: %s", source, ", ".join(parts))


def path_problem(file: Path) -> str:
    """Why a file must not be opened; empty if nothing is wrong.

    SimpleITK ends the process at a path that is not UTF-8. Opening a pipe waits forever.
    """
    path = os.fspath(file)
    if escape_non_utf8(path) != path:
        return f"its path is not UTF-8 text ({escape_non_utf8(path)}): rename it"
    if os.path.exists(path) and not os.path.isfile(path):
        return "is a folder, pipe, socket or device, not a file"
    return ""


def escape_non_utf8(name: str) -> str:
    """The name with escapes for bytes that are not UTF-8."""
    return name.encode(errors="backslashreplace").decode()


def safe_name(text: str) -> str:
    """A name that every file system takes: letters and digits of any script, ``-``, ``_`` and ``.`` are kept."""
    normal = unicodedata.normalize("NFC", text)
    return re.sub(r"[^\w.-]+", "_", normal).strip("._") or "scan"


def unique_names(short: Sequence[str], long: Sequence[str]) -> list[str]:
    """Use the short name where it is unique, else the long one, and a number where that is not unique either.

    Upper and lower case count as the same: some file systems do not distinguish them.
    """
    shared = Counter(name.casefold() for name in short)
    names = [brief if shared[brief.casefold()] == 1 else full for brief, full in zip(short, long, strict=True)]
    taken: set[str] = set()
    for index, name in enumerate(names):
        number = 2
        while names[index].casefold() in taken:
            names[index] = f"{name}_{number}"
            number += 1
        taken.add(names[index].casefold())
    return names
