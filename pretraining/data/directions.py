"""How the axes of a scan lie in the body, from its headers alone; formats and headers that do not tell are None.

What a header does not tell, ITK and nibabel make up: the identity, or an axis turned. So it is looked up whether a
NIfTI file has a form, an NRRD file an anatomical space, a MetaImage file a matrix and a DICOM object an orientation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient

from pretraining.data import metaimage
from pretraining.data.dicom_volume import stack_of
from pretraining.data.orientation import Orientation, orientation_of_direction
from pretraining.data.scan import DICOM, Scan

_KEEP_AXES = (SimpleITKIO.__name__, NibabelIO.__name__)
_TURN_AXES = (SimpleITKIOWithReorient.__name__, NibabelIOWithReorient.__name__)
_TURNED: Orientation = ("S", "A", "R")  # both turn to RAS, which is x, y, z
_METAIMAGE_MATRICES = ("TransformMatrix", "Rotation", "Orientation")  # MetaIO takes each
_ANATOMICAL_SPACE = "left-posterior-superior"  # ITK turns the other two into it


def read_orientation(scan: Scan) -> Orientation | None:
    """Orientation of the array (z, y, x) that `read_scan` gives; no voxel is read.

    Returns:
        None where the format has no directions, the header tells none, or the channels' differ.
    """
    if scan.reader == DICOM:
        return _oriented(_direction_of_series, scan)
    if scan.reader not in (*_KEEP_AXES, *_TURN_AXES):
        return None
    orientations = {_oriented(_direction_of_file, Path(file)) for file in scan.files}
    orientation = orientations.pop() if len(orientations) == 1 else None
    return _TURNED if orientation is not None and scan.reader in _TURN_AXES else orientation


def _oriented(direction_of: Callable[[Any], Sequence[float] | None], what: Any) -> Orientation | None:
    try:
        found = direction_of(what)
    except Exception:  # whatever a header provokes: reading the scan will say what is wrong with it
        return None
    return None if found is None else orientation_of_direction(found)


def _direction_of_series(scan: Scan) -> Sequence[float] | None:
    return (scan.geometry or stack_of(scan.files).geometry).direction


def _direction_of_file(file: Path) -> Sequence[float] | None:
    name = file.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return _of_nifti(file)
    if name.endswith((".nrrd", ".nhdr")):
        return _of_nrrd(file)
    return _of_metaimage(file) if name.endswith((".mha", ".mhd")) else None


def _of_nifti(file: Path) -> Sequence[float] | None:
    image: Any = nibabel.load(file)
    header = image.header
    if not isinstance(header, nibabel.Nifti1Header) or not (header["sform_code"] > 0 or header["qform_code"] > 0):
        return None
    to_world = np.diag((-1.0, -1.0, 1.0))  # nibabel's points to the right, the front and the head
    return (to_world @ image.affine[:3, :3]).ravel().tolist()


def _of_nrrd(file: Path) -> Sequence[float] | None:
    header = _read_header(file)
    known = header.HasMetaDataKey("NRRD_space") and header.GetMetaData("NRRD_space") == _ANATOMICAL_SPACE
    return _of_3d(header) if known else None


def _of_metaimage(file: Path) -> Sequence[float] | None:
    return _of_3d(_read_header(file)) if metaimage.read_header(file).has(*_METAIMAGE_MATRICES) else None


def _of_3d(header: sitk.ImageFileReader) -> Sequence[float] | None:
    return header.GetDirection() if header.GetDimension() == 3 else None


def _read_header(file: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    return reader
