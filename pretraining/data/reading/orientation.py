"""How the axes of a scan lie in the body, from its headers alone.

ITK and nibabel make up what a header does not state: the identity, or a flipped axis. So this module checks whether a
NIfTI file has a sform or qform, an NRRD file an anatomical space, a MetaImage file a matrix and a DICOM object an
orientation.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import nibabel
import numpy as np
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient

from pretraining.data.reading import metaimage
from pretraining.data.reading.headers import METAIMAGE, NIFTI, NRRD, sitk_header
from pretraining.data.reading.reader import read_geometry
from pretraining.data.scan import DICOM, Scan

# The direction in which the index grows along (z, y, x), such as ("S", "P", "L"): to the left or right of the body, to
# its back (P) or front (A), to its head (S) or feet (I).
Orientation: TypeAlias = tuple[str, str, str]

LATERAL = "left-right"
# The world's axes in ITK and DICOM point to the left, the back and the head: negative, positive direction, name.
_WORLD = (("R", "L", LATERAL), ("A", "P", "front-back"), ("I", "S", "head-feet"))
_AXIS_OF = {letter: name for *letters, name in _WORLD for letter in letters}

_KEEP_AXES = (SimpleITKIO.__name__, NibabelIO.__name__)
_REORIENT = (SimpleITKIOWithReorient.__name__, NibabelIOWithReorient.__name__)
_REORIENTED: Orientation = ("S", "A", "R")  # both reorient to RAS, which is x, y, z
_METAIMAGE_MATRICES = ("TransformMatrix", "Rotation", "Orientation")  # MetaIO takes each
_ANATOMICAL_SPACE = "left-posterior-superior"  # ITK turns the other two into it


def body_axes(orientation: Orientation) -> tuple[str, str, str]:
    """Axis of the body, either way, that (z, y, x) run along."""
    z, y, x = (_AXIS_OF[letter] for letter in orientation)
    return (z, y, x)


def orientation_of_direction(direction: Sequence[float]) -> Orientation | None:
    """Letters for direction cosines.

    The axis with the largest component from left to right is the lateral one, whatever the others are; the other two
    are assigned such that the sum of their components is largest.

    Args:
        direction: ITK's nine numbers, row by row: column i is the direction of the array's axis 2 - i. Columns may
            have any length.

    Returns:
        None if they do not span the space.
    """
    columns = np.reshape(np.asarray(direction, dtype=np.float64), (3, 3))[:, ::-1]
    if not np.isfinite(columns).all() or (lengths := np.linalg.norm(columns, axis=0)).min() == 0:
        return None
    columns = columns / lengths
    if abs(np.linalg.det(columns)) < 1e-3:
        return None
    sizes = np.abs(columns)
    lateral = int(sizes[0].argmax())
    one, two = (axis for axis in range(3) if axis != lateral)
    if sizes[1, one] + sizes[2, two] < sizes[1, two] + sizes[2, one]:
        one, two = two, one
    letters = {axis: _WORLD[world][int(columns[world, axis] > 0)] for world, axis in enumerate((lateral, one, two))}
    return (letters[0], letters[1], letters[2])


def read_orientation(scan: Scan) -> Orientation | None:
    """Orientation of the array (z, y, x) that `read_scan` gives; no voxel is read.

    Returns:
        None if the format has no directions, the header states none, or those of the channels differ.
    """
    if scan.reader != DICOM and scan.reader not in (*_KEEP_AXES, *_REORIENT):
        return None
    try:
        if scan.reader == DICOM:
            directions: list[Sequence[float] | None] = [read_geometry(scan).direction]
        else:
            directions = [_direction_of_file(Path(file)) for file in scan.files]
        orientations = {None if one is None else orientation_of_direction(one) for one in directions}
    except Exception:  # whatever a header provokes: reading the scan will report what is wrong with it
        return None
    orientation = orientations.pop() if len(orientations) == 1 else None
    return _REORIENTED if orientation is not None and scan.reader in _REORIENT else orientation


def _direction_of_file(file: Path) -> Sequence[float] | None:
    """ITK's nine numbers, as the header states them."""
    name = file.name.lower()
    if name.endswith(NIFTI):
        image: Any = nibabel.load(file)
        header = image.header
        if not isinstance(header, nibabel.Nifti1Header) or not (header["sform_code"] > 0 or header["qform_code"] > 0):
            return None
        to_world = np.diag((-1.0, -1.0, 1.0))  # nibabel's axes point to the right, the front and the head
        return (to_world @ image.affine[:3, :3]).ravel().tolist()
    if name.endswith(METAIMAGE):
        if not metaimage.read_header(file).has(*_METAIMAGE_MATRICES):
            return None
        read = sitk_header(str(file))
    elif name.endswith(NRRD):
        read = sitk_header(str(file))
        if not read.HasMetaDataKey("NRRD_space") or read.GetMetaData("NRRD_space") != _ANATOMICAL_SPACE:
            return None
    else:
        return None
    return read.GetDirection() if read.GetDimension() == 3 else None
