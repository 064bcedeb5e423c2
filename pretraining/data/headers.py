"""What headers state of the spacing: SimpleITK and nibabel take 1 mm where one does not, and do not tell."""

import gzip
import math
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from pretraining.data.metaimage import read_header
from pretraining.data.scan import BadScan

# What nibabel raises for files that are none of its own, or damaged.
NIFTI_ERRORS = (
    *(ImageFileError, HeaderDataError, WrapStructError),
    *(EOFError, OSError, zlib.error, ValueError, AttributeError, OverflowError),
)
_MOST_OF_NRRD = 1024**2  # bytes of a header
_SPACING = ("spacings", "space directions")
_IN_SPACE = ("domain", "space", "time", "???", "none")  # kinds of axes; ITK takes others for values of a voxel


def require_stated_spacing(path: str) -> None:
    """Refuse a file whose header does not state the spacing, or states an impossible one; other formats pass.

    Raises:
        BadScan: With what is missing.
    """
    name = path.lower()
    if name.endswith((".nii", ".nii.gz")):
        stored = _nifti_spacing(path)
        if not all(math.isfinite(value) and value != 0 for value in stored):
            raise impossible_spacing(path, stored)
    elif name.endswith((".mha", ".mhd")):
        if not read_header(Path(path)).has("ElementSpacing", "ElementSize"):
            raise _no_spacing(path, "ElementSpacing")
    elif name.endswith((".nrrd", ".nhdr")) and not _nrrd_states_spacing(Path(path)):
        raise _no_spacing(path, '"space directions" or "spacings" with a number for each axis')


def impossible_spacing(path: str, spacing: Sequence[float]) -> BadScan:
    """The reason for a spacing (z, y, x) that is not positive and finite."""
    return BadScan(f"{Path(path).name} has an impossible spacing ({', '.join(f'{value:g}' for value in spacing)})")


def _no_spacing(path: str, missing: str) -> BadScan:
    return BadScan(
        f"{Path(path).name} does not state its spacing: its header lacks {missing}; write the spacing in mm into it, "
        "as SimpleITK's Image.SetSpacing and WriteImage do"
    )


def _nifti_spacing(path: str) -> tuple[float, ...]:
    """Spacing (z, y, x) as the header of a NIfTI file has it: ITK and nibabel turn zero into 1 mm, ITK also NaN.

    Raises:
        BadScan: If the file has no such header.
    """
    try:
        return tuple(float(value) for value in nifti_header(Path(path))["pixdim"][3:0:-1])
    except NIFTI_ERRORS as error:
        raise no_nifti(path, error) from error


def no_nifti(path: str | Path, error: Exception) -> BadScan:
    """The reason for what nibabel raises, one of ``NIFTI_ERRORS``."""
    return BadScan(f"{Path(path).name} is no readable NIfTI file ({error})")


def nifti_header(file: Path, check: bool = False) -> Any:
    """The header as it is stored; where it is checked, nibabel corrects it, or raises one of ``NIFTI_ERRORS``."""
    with gzip.open(file) if file.name.lower().endswith(".gz") else file.open("rb") as stream:
        header = stream.read(nibabel.Nifti2Header.sizeof_hdr)
    second = struct.pack("<i", len(header)), struct.pack(">i", len(header))
    fields: Any = nibabel.Nifti2Header if header[:4] in second else nibabel.Nifti1Header
    return fields(header[: fields.sizeof_hdr], check=check)


def _nrrd_states_spacing(file: Path) -> bool:
    """Whether there is a number for each axis in space, in ``spacings`` or ``space directions``.

    Raises:
        BadScan: If it is another format under this name; ITK may read that.
    """
    with file.open("rb") as stream:
        header = re.split(rb"\r?\n\r?\n", stream.read(_MOST_OF_NRRD), maxsplit=1)[0]
    if not header.startswith(b"NRRD"):
        raise BadScan(f"{file.name} is no NRRD file: give it the ending of its format")
    parted = [line.partition(":") for line in header.decode("latin-1").splitlines()]
    fields = {key.strip().lower(): re.findall(r"\([^)]*\)|[^\s()]+", value) for key, _, value in parted}
    axes = fields.get(_SPACING[0]) or fields.get(_SPACING[1]) or []
    kinds = fields.get("kinds", [""] * len(axes))
    in_space = [axis for axis, kind in zip(axes, kinds, strict=False) if kind.lower() in ("", *_IN_SPACE)]
    return bool(in_space) and all(map(_is_finite, in_space))


def _is_finite(axis: str) -> bool:
    """Whether a number, or all of a vector in brackets, are such."""
    try:
        return all(math.isfinite(float(number)) for number in axis.strip("()").split(","))
    except ValueError:
        return False
