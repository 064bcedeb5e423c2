"""What a scan is before it is read, and the two ways in which data can be wrong."""

from collections.abc import Iterable
from dataclasses import dataclass

from nnunetv2_pgl.errors import PGLError

DICOM = "dicom"
DEFAULT_READER = "SimpleITKIO"
FILE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")


class DataError(PGLError):
    """The data as a whole cannot be used: one line that says what is wrong and what to do."""


class BadScan(PGLError):  # noqa: N818 - it describes the scan; the run goes on without it
    """One scan cannot be used. The message is the reason, as shown to the user."""


@dataclass(frozen=True)
class Geometry:
    """What headers tell of a scan.

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
        geometry: Of a DICOM series, from the headers that it was found by.
        may_be_mask: Whether values like those of a segmentation tell that it is none.
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


def in_few_lines(skipped: Iterable[Skipped], most: int = 3) -> list[str]:
    """Lines for the user; more than ``most`` scans of one source with the same reason share one."""
    groups: dict[tuple[str, str], list[Skipped]] = {}
    for item in skipped:
        groups.setdefault((item.source, item.reason), []).append(item)
    lines = []
    for (source, reason), items in groups.items():
        if len(items) > most:
            lines.append(f"{source}: {items[0].name} and {len(items) - 1} more skipped: {reason}")
        else:
            lines += [str(item) for item in items]
    return lines
