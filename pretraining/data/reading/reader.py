"""Read scans as nnU-Net's own readers do, and refuse what is not a proper 3D scan."""

import math
import os
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from nnunetv2_pgl.errors import size_text
from pretraining.data.reading.dicom_files import read_frames
from pretraining.data.reading.dicom_volume import read_volume, stacked
from pretraining.data.reading.headers import (
    METAIMAGE,
    NIFTI,
    check_geometry,
    nibabel_geometry,
    reason_of,
    require_stated_spacing,
    require_tiff_spacing,
    sitk_geometry,
)
from pretraining.data.reading.voxels import metaimage_voxels, read_voxels
from pretraining.data.scan import DICOM, BadScan, Geometry, Scan

_MAX_LABELS = 16  # different values; no scan has as few
_MIN_LABEL = -1
_SAMPLED_VOXELS = 10_000


def read_geometry(scan: Scan) -> Geometry:
    """Read shape and spacing from the headers alone, where the format allows.

    Raises:
        BadScan: If a header cannot be read, or is not that of a 3D scan with one value per voxel.
    """
    if scan.reader == DICOM:
        return scan.geometry or stacked([frame for file in scan.files for frame in read_frames(file)]).geometry
    if not _is_read_here(scan):
        array, properties = _read_by_nnunet(scan)
        return Geometry(array.shape[1:], tuple(float(value) for value in properties["spacing"]))
    geometry_of = nibabel_geometry if scan.reader == NibabelIO.__name__ else sitk_geometry
    geometries = [geometry_of(path) for path in scan.files]
    for path, geometry in zip(scan.files, geometries, strict=True):
        check_geometry(geometry, Path(path).name)
        if geometry != geometries[0]:
            raise BadScan(f"{Path(path).name} differs from {Path(scan.files[0]).name} in shape or spacing")
    return geometries[0]


def read_scan(scan: Scan) -> tuple[np.ndarray, tuple[float, float, float], dict[str, Any]]:
    """Read a scan and check it.

    Args:
        scan: What ``find_scans`` found.

    Returns:
        Values as float32 (channel, z, y, x), the same as nnU-Net's reader gives; the spacing (z, y, x) in mm; and
        properties like nnU-Net's, at least the spacing.

    Raises:
        BadScan: If the scan is unreadable, truncated, not 3D, coloured, constant, lacks slices, or holds NaN or
            infinity.
    """
    if scan.reader == DICOM:
        geometry = read_geometry(scan)
        _require_memory(geometry.shape, scan.files[:1])
        array, properties = read_volume(scan.files, geometry), {"spacing": geometry.spacing}
    else:
        for file in map(Path, scan.files):
            if not file.is_file():
                raise BadScan(f"{file} does not exist")
            if file.stat().st_size == 0:
                raise BadScan(f"{file.name} is empty")
        if _is_read_here(scan):
            array, properties = _read_files(scan)
        else:
            for path in scan.files:
                read_voxels(path)
            array, properties = _read_by_nnunet(scan)
    spacing = tuple(float(value) for value in properties["spacing"])
    if array.ndim != 4 or array.shape[0] != len(scan.channels):
        raise BadScan(f"expected {len(scan.channels)} channels of 3D data, got an array of shape {array.shape}")
    check_geometry(Geometry(array.shape[1:], spacing), Path(scan.files[0]).name)
    for name, values in zip(scan.channels, array, strict=True):
        low, high = float(values.min()), float(values.max())  # NaN shows in both
        if not (math.isfinite(low) and math.isfinite(high)):
            raise BadScan(f"channel {name} holds NaN or infinite values")
        if low == high:
            raise BadScan(f"channel {name} is constant ({low:g})")
    if scan.may_be_mask and (labels := _few_labels(array)):
        raise BadScan(f"holds only the values {labels}: a segmentation, not a scan (--use_masks accepts it)")
    return array, (spacing[0], spacing[1], spacing[2]), properties


def _is_read_here(scan: Scan) -> bool:
    """Whether its reader keeps the axes as stored, so that shape and spacing are those in the header."""
    of_nifti = all(path.lower().endswith(NIFTI) for path in scan.files)
    return scan.reader == SimpleITKIO.__name__ or (scan.reader == NibabelIO.__name__ and of_nifti)


def _read_files(scan: Scan) -> tuple[np.ndarray, dict[str, Any]]:
    """The same as nnU-Net's reader gives, in one pass over each file and without a second copy of the voxels."""
    try:
        geometry = read_geometry(scan)
    except BadScan:
        for path in scan.files:
            read_voxels(path)  # finds the damage, which explains more than ITK's message
        raise
    _require_memory(geometry.shape, scan.files)
    array = np.empty((len(scan.files), *geometry.shape), np.float32)
    for path, out in zip(scan.files, array, strict=True):
        if read_voxels(path, out):
            continue
        if scan.reader == NibabelIO.__name__:
            out[...] = _read_with_nnunet(scan.reader, (path,))[0][0]
            continue
        try:
            image = sitk.ReadImage(path)
        except RuntimeError as error:
            raise BadScan(f"{Path(path).name} cannot be read: {reason_of(error)}") from error
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
            np.copyto(out, sitk.GetArrayViewFromImage(image), casting="unsafe")
    return array, {"spacing": list(geometry.spacing)}


def _require_memory(shape: Sequence[int], files: Sequence[str]) -> None:
    """Refuse what the memory of this machine cannot hold, before anything is decompressed for it."""
    size, memory = 4 * math.prod(shape) * len(files), memory_of_machine()
    if size > memory:
        raise BadScan(
            f"{Path(files[0]).name} declares {size_text(shape)} voxels, {size / 2**30:.0f} GiB as float32 on a "
            f"machine with {memory / 2**30:.0f} GiB of memory: check its header"
        )


def memory_of_machine() -> float:
    """Bytes; infinite if the system does not report them."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return math.inf


def _read_by_nnunet(scan: Scan) -> tuple[np.ndarray, dict[str, Any]]:
    for path in scan.files:
        if scan.reader == SimpleITKIOWithReorient.__name__:
            check_geometry(sitk_geometry(path), Path(path).name)
            if path.lower().endswith(METAIMAGE):
                metaimage_voxels(Path(path))  # refuses headers that would end the process
        elif path.lower().endswith(NIFTI):
            require_stated_spacing(path)
    if scan.reader == Tiff3DIO.__name__:
        require_tiff_spacing(scan.files[0])
    return _read_with_nnunet(scan.reader, scan.files)


def _read_with_nnunet(reader: str, files: Sequence[str]) -> tuple[np.ndarray, dict[str, Any]]:
    printed = StringIO()  # some readers print the reason and raise an empty error
    try:
        with redirect_stdout(printed):
            return recursive_find_reader_writer_by_name(reader)().read_images(files)
    except Exception as error:  # whatever it raises, and whatever the libraries below it do
        errors = [line for line in printed.getvalue().splitlines() if line.startswith("ERROR")]
        said = [reason_of(error)] if str(error).strip() else errors[:1]
        cause = ": ".join((type(error).__name__, *said))
        raise BadScan(f"{Path(files[0]).name} cannot be read by nnU-Net's {reader} ({cause})") from error


def _few_labels(array: np.ndarray) -> str:
    """The values as text if they are few whole numbers, as in a segmentation; empty for a scan."""
    if any(part.min() < _MIN_LABEL for part in (array[:, 0], array)):  # the first slice decides for most scans
        return ""
    found: set[float] = set()
    # A few voxels decide for all other scans; a segmentation is searched slice by slice.
    for part in (array.reshape(-1)[:: max(1, array.size // _SAMPLED_VOXELS)], *array.reshape(-1, *array.shape[2:])):
        found.update(np.unique(part).tolist())
        if len(found) > _MAX_LABELS:
            return ""
    if any(value != round(value) for value in found) or (len(found) > 2 and max(found) > 2 * len(found)):
        return ""
    values = [f"{value:g}" for value in sorted(found)]
    return ", ".join(values if len(values) <= 4 else [*values[:2], "...", values[-1]])
