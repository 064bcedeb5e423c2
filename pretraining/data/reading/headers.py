"""Shape and spacing from headers alone, and only where a header states them.

SimpleITK and nibabel take 1 mm where a header has no spacing, and do not report it. What cannot be used raises
`BadScan`, with the reason.
"""

import gzip
import logging
import math
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from nnunetv2_pgl.errors import size_text
from nnunetv2_pgl.files import load_json
from pretraining.data.reading import metaimage
from pretraining.data.scan import BadScan, Geometry

for _library in ("nibabel.global", "tifffile"):  # they name no file; what matters becomes the reason for a bad scan
    logging.getLogger(_library).setLevel(logging.CRITICAL + 1)

NIFTI, NRRD, METAIMAGE = (".nii", ".nii.gz"), (".nrrd", ".nhdr"), (".mha", ".mhd")
# What nibabel raises for damaged files and for other formats.
NIFTI_ERRORS = (
    *(ImageFileError, HeaderDataError, WrapStructError),
    *(EOFError, OSError, zlib.error, ValueError, AttributeError, OverflowError),
)
_MAX_NRRD_HEADER_BYTES = 1024**2
_IN_SPACE = ("domain", "space", "time", "???", "none")  # kinds of axes; ITK takes others for values of a voxel


def sitk_header(path: str) -> sitk.ImageFileReader:
    """A file whose header SimpleITK has read, and no voxel; RuntimeError if it cannot."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(path)
    reader.ReadImageInformation()
    return reader


def sitk_geometry(path: str) -> Geometry:
    """Shape and spacing as SimpleITK reads them, if they are stated and there is one value per voxel."""
    try:
        header = sitk_header(path)
    except RuntimeError as error:
        if "orthonormal" in str(error):
            return nibabel_geometry(path)
        raise BadScan(f"{Path(path).name} cannot be read: {reason_of(error)}") from error
    if header.GetNumberOfComponents() > 1:
        raise BadScan(f"{Path(path).name} has {header.GetNumberOfComponents()} values per voxel (colour?)")
    require_stated_spacing(path)
    return Geometry(tuple(reversed(header.GetSize())), tuple(reversed(header.GetSpacing())))


def nibabel_geometry(path: str) -> Geometry:
    """Shape and spacing as nibabel reads them, if they are stated and there is one value per voxel."""
    require_stated_spacing(path)
    try:
        header: Any = nibabel.load(path).header
    except NIFTI_ERRORS as error:
        raise not_nifti(path, error) from error
    if header.get_data_dtype().kind not in "iuf":
        raise BadScan(f"{Path(path).name} has several values per voxel ({header.get_data_dtype()})")
    return Geometry(tuple(reversed(header.get_data_shape())), tuple(float(v) for v in reversed(header.get_zooms())))


def check_geometry(geometry: Geometry, name: str) -> None:
    """Refuse what is not 3D, and impossible sizes; ``name`` is that of the file."""
    size = size_text(geometry.shape)
    if min(geometry.shape, default=0) < 1:
        raise BadScan(f"{name} declares {size} voxels: its header is damaged")
    if len(geometry.shape) != 3 or min(geometry.shape) == 1:
        kind = "2D" if sum(size > 1 for size in geometry.shape) < 3 else f"{len(geometry.shape)}D"
        raise BadScan(f"{name} is {kind} ({size} voxels), not a 3D scan")
    if not all(np.isfinite(value) and value > 0 for value in geometry.spacing):
        raise _impossible_spacing(name, geometry.spacing)


def reason_of(error: Exception) -> str:
    """The last line of a message, where ITK puts the cause."""
    lines = str(error).strip().splitlines()
    if lines and lines[-1].startswith("Reason: "):  # of the last error of the system, which may be an older one
        return "SimpleITK finds its header incomplete, or too few voxels"
    return lines[-1].strip() if lines else type(error).__name__


def require_stated_spacing(path: str) -> None:
    """Refuse a file whose header does not state the spacing, or an impossible one; other formats pass."""
    file, name = Path(path), path.lower()
    if name.endswith(NIFTI):
        try:
            stored = tuple(float(value) for value in nifti_header(file)["pixdim"][3:0:-1])
        except NIFTI_ERRORS as error:
            raise not_nifti(path, error) from error
        if not all(math.isfinite(value) and value != 0 for value in stored):  # ITK and nibabel make 1 mm of zero
            raise _impossible_spacing(file.name, stored)
        return
    if name.endswith(METAIMAGE) and not metaimage.read_header(file).has("ElementSpacing", "ElementSize"):
        missing = "ElementSpacing"
    elif name.endswith(NRRD) and not _nrrd_states_spacing(file):
        missing = '"space directions" or "spacings" with a number for each axis'
    else:
        return
    raise BadScan(
        f"{file.name} does not state its spacing: its header lacks {missing}; write the spacing in mm into it, "
        "as SimpleITK's Image.SetSpacing and WriteImage do"
    )


def _impossible_spacing(name: str, spacing: Sequence[float]) -> BadScan:
    return BadScan(f"{name} has an impossible spacing ({', '.join(f'{value:g}' for value in spacing)})")


def not_nifti(path: str | Path, error: Exception) -> BadScan:
    """A reason for one of ``NIFTI_ERRORS``."""
    return BadScan(f"{Path(path).name} is not a NIfTI file that can be read ({error})")


def nifti_header(file: Path, check: bool = False) -> Any:
    """The header as it is stored; with ``check``, nibabel corrects it or raises one of ``NIFTI_ERRORS``."""
    with gzip.open(file) if file.name.lower().endswith(".gz") else file.open("rb") as stream:
        header = stream.read(nibabel.Nifti2Header.sizeof_hdr)
    second = struct.pack("<i", len(header)), struct.pack(">i", len(header))
    fields: Any = nibabel.Nifti2Header if header[:4] in second else nibabel.Nifti1Header
    return fields(header[: fields.sizeof_hdr], check=check)


def _nrrd_states_spacing(file: Path) -> bool:
    """Whether there is a number for each axis in space, in ``spacings`` or ``space directions``.

    Another format under this name is refused; ITK may read it.
    """
    with file.open("rb") as stream:
        header = re.split(rb"\r?\n\r?\n", stream.read(_MAX_NRRD_HEADER_BYTES), maxsplit=1)[0]
    if not header.startswith(b"NRRD"):
        raise BadScan(f"{file.name} is not an NRRD file: give it the ending of its format")
    lines = [line.partition(":") for line in header.decode("latin-1").splitlines()]
    fields = {key.strip().lower(): re.findall(r"\([^)]*\)|[^\s()]+", value) for key, _, value in lines}
    axes = fields.get("spacings") or fields.get("space directions") or []
    kinds = fields.get("kinds", [""] * len(axes))
    in_space = [axis for axis, kind in zip(axes, kinds, strict=False) if kind.lower() in ("", *_IN_SPACE)]
    try:
        numbers = [float(number) for axis in in_space for number in axis.strip("()").split(",")]
    except ValueError:
        return False
    return bool(numbers) and all(map(math.isfinite, numbers))


def tiff_spacing_file(file: str) -> Path:
    """Where nnU-Net looks for the spacing of a 3D TIFF such as ``cell_0000.tif``: ``cell.json``."""
    path = Path(file)
    return path.with_name(f"{path.name.removesuffix(path.suffix)[: -len('_0000')]}.json")


def require_tiff_spacing(file: str) -> None:
    """Refuse a file with the spacing that does not hold three positive numbers."""
    path = tiff_spacing_file(file)
    if not path.is_file():  # nnU-Net takes 1 mm
        return
    try:
        spacing = load_json(path)["spacing"]
        is_good = len(spacing) == 3 and all(math.isfinite(value) and value > 0 for value in spacing)
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        is_good = False
    if not is_good:
        raise BadScan(
            f'{path.name} beside {Path(file).name} has no "spacing" of three positive numbers (z y x, in mm): '
            "correct it"
        )
