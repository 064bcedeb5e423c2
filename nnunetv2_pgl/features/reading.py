"""Images for the features: arrays and files, of which damaged ones are refused."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import nibabel
import numpy as np
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from numpy.typing import NDArray

from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.files import unpacked_size


def read_image(
    image: Any, spacing: Sequence[float] | None
) -> tuple[NDArray[np.float32], tuple[float, float, float], str]:
    """The image as (channel, z, y, x), its spacing, and a name for messages."""
    if not isinstance(image, str | os.PathLike) and hasattr(image, "__array__"):
        image = np.asarray(image)
        with suppress(TypeError, ValueError):
            spacing = np.asarray(spacing, dtype=np.float64).tolist()
        if (
            not isinstance(spacing, list)
            or np.shape(spacing) != (3,)
            or not all(0 < value < np.inf for value in spacing)
        ):
            raise PGLError(f"an array needs its spacing, three positive numbers in mm (z, y, x), got {spacing}")
        if image.ndim not in (3, 4) or not image.size:
            raise PGLError(f"an array must be (z, y, x) or (channel, z, y, x), got the shape {image.shape}")
        if image.dtype.kind not in "biuf":
            raise PGLError(f"an array must hold numbers, got {image.dtype}")
        array = image.astype(np.float32)
        return array.reshape(-1, *array.shape[-3:]), triple(spacing), "the array"
    if spacing is not None:
        raise PGLError("the spacing of files is in their headers; leave it out")
    try:
        files = [os.fspath(file) for file in ([image] if isinstance(image, str | os.PathLike) else image)]
    except TypeError as error:
        raise PGLError(f"give a file, a list of files or an array, not a {type(image).__name__}") from error
    if not files:
        raise PGLError("no file is given; one is needed for each channel of the encoder")
    for file in files:
        if not os.path.isfile(file):
            raise PGLError(f"{file}: is no file; a folder with a DICOM series is read by pretraining.data")
        if file.lower().endswith((".nii", ".nii.gz")):
            _require_whole_nifti(file)
    try:
        array, properties = SimpleITKIO().read_images(files)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = (str(error).strip() or "its channels differ").splitlines()[-1]
        raise PGLError(f"{files[0]}: cannot be read ({reason})") from error
    if array.ndim != 4 or min(array.shape[1:]) < 2:
        raise PGLError(f"{files[0]}: is not a 3D image (its shape is {array.shape[1:]})")
    return array, triple(properties["spacing"]), files[0]


def _require_whole_nifti(file: str) -> None:
    """Refuses NIfTI of which SimpleITK would make up spacings or voxels, without a word."""
    there = unpacked_size(file) if file.lower().endswith(".gz") else os.path.getsize(file)
    if not there:
        raise PGLError(f"{file}: is truncated or damaged; copy it again")
    try:
        with nibabel.openers.ImageOpener(file) as opened:  # nibabel itself corrects spacings without a word
            pixdim = nibabel.Nifti1Header.from_fileobj(opened, check=False)["pixdim"][1:4]
        image = nibabel.Nifti1Image.from_filename(file)
        header, values = image.header, image.dataobj
        voxels, size = header.get_data_dtype(), math.prod(values.shape) * int(header["bitpix"]) / 8
    except Exception as error:  # whatever nibabel makes of a damaged header
        raise PGLError(f"{file}: cannot be read ({type(error).__name__}: {error})") from error
    if there < size:
        raise PGLError(f"{file}: is truncated or damaged; copy it again")
    if len(values.shape) != 3 or voxels.kind not in "biuf":
        raise PGLError(f"{file}: is not a 3D image of numbers (shape {values.shape}, {voxels})")
    if not (np.isfinite(pixdim).all() and min(pixdim) > 0):
        raise PGLError(f"{file}: states the spacing {pixdim.tolist()} mm (x, y, z); correct its header")
    if voxels.kind == "f" and not np.isfinite(np.asanyarray(values)).all():
        raise PGLError(f"{file}: holds NaN or infinite values")


def triple(values: Any) -> tuple[Any, Any, Any]:
    """The three values, one for each axis."""
    z, y, x = values
    return z, y, x
