"""How the axes of a scan lie in the body, from its headers alone; formats and headers that do not tell are None.

What a header does not tell, ITK and nibabel make up: the identity, or an axis turned. So it is looked up whether a
NIfTI file has a form, an NRRD file an anatomical space, a MetaImage file a matrix and a DICOM object an orientation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient

from pretraining.data import metaimage
from pretraining.data.dicom_volume import stack_of
from pretraining.data.integrity import NIFTI_ERRORS
from pretraining.data.orientation import Orientation, orientation_of_direction
from pretraining.data.scan import DICOM, BadScan, Scan

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
        try:
            direction = (scan.geometry or stack_of(scan.files).geometry).direction
        except BadScan:
            return None
        return None if direction is None else orientation_of_direction(direction)
    if scan.reader not in (*_KEEP_AXES, *_TURN_AXES):
        return None
    orientations = {_orientation_of_file(Path(file)) for file in scan.files}
    orientation = orientations.pop() if len(orientations) == 1 else None
    return _TURNED if orientation is not None and scan.reader in _TURN_AXES else orientation


def _orientation_of_file(file: Path) -> Orientation | None:
    name = file.name.lower()
    try:
        if name.endswith((".nii", ".nii.gz")):
            direction = _of_nifti(file)
        elif name.endswith((".nrrd", ".nhdr")):
            direction = _of_nrrd(file)
        elif name.endswith((".mha", ".mhd")):
            direction = _of_metaimage(file)
        else:
            direction = None
    except (*NIFTI_ERRORS, RuntimeError, BadScan):
        return None
    return None if direction is None else orientation_of_direction(direction)


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
