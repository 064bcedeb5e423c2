"""Files of a converted dataset: as they are, z first, or with other label values."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunetv2_pgl.dataset_conversion.collection import Case, ConversionError
from nnunetv2_pgl.nifti_files import write_nifti
from nnunetv2_pgl.whole_files import replacing


def place(source: Path, target: Path, link: bool) -> None:
    """Copy a file, or link to it; one that is not compressed is compressed in any case."""
    write: Callable[[Path, Path], object]
    if source.suffix != ".gz":
        write = _compress
    elif link:
        write = _link
    else:
        write = shutil.copyfile
    with replacing(target) as temporary:
        temporary.unlink(missing_ok=True)  # a link cannot be made over what was left there
        write(source, temporary)


def z_first(case: Case, source: Path, target: Path) -> None:
    """Write a scan or its label anew with its slices along z.

    Voxels are transposed and flipped together with the header (to the axes left, posterior, superior), so each keeps
    its value and its place in the world.

    Args:
        case: The case it belongs to; its image's header decides for the label, too.
        source: The image or label file of the case.
        target: The file to write.

    Raises:
        ConversionError: If the file is damaged, its header differs from the image's, or says that pixels of a slice
            are not square, which no CT has: then the slices lie along another axis than the header says.
    """
    image = _read(source)
    _require_same_grid(image, case, source)
    oriented = sitk.DICOMOrient(image, "LPS")
    x, y, _ = oriented.GetSpacing()
    if abs(x - y) > 0.01 * max(x, y):
        raise ConversionError(
            f"{source}: the header says that pixels are {x:g} x {y:g} mm, so it does not tell which axis is which "
            "(KiTS19 had such headers before 16 April 2019, see its issues 8 and 15): download it again"
        )
    write_nifti(oriented, target)


def one_class(case: Case, source: Path, target: Path) -> None:
    """Write a label anew: 1 wherever it is not 0, so for every instance and for negative values."""
    label = _read(source)
    values = (sitk.GetArrayFromImage(label) != 0).astype(np.uint8)
    merged = sitk.GetImageFromArray(values)
    merged.CopyInformation(label)
    write_nifti(merged, target)


def _link(source: Path, target: Path) -> None:
    target.symlink_to(source.resolve())


def _compress(source: Path, target: Path) -> None:
    with open(source, "rb") as plain, gzip.open(target, "wb", compresslevel=6) as packed:
        shutil.copyfileobj(plain, packed)


def _read(path: Path) -> sitk.Image:
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise ConversionError(f"{path} cannot be read, it is damaged or incomplete: download it again") from error
    if image.GetDimension() != 3:
        raise ConversionError(f"{path} has {image.GetDimension()} dimensions: a single scan has 3")
    return image


def _require_same_grid(image: sitk.Image, case: Case, source: Path) -> None:
    """Files turned each by its own header fit afterwards only if they did before."""
    if source == case.image:
        return
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(case.image))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ConversionError(f"{case.image} cannot be read, it is damaged or incomplete: download it again") from error
    same = image.GetSize() == reader.GetSize() and np.allclose(image.GetDirection(), reader.GetDirection(), atol=1e-3)
    if not same or not np.allclose(image.GetSpacing(), reader.GetSpacing(), rtol=1e-3):
        raise ConversionError(
            f"{case.name}: {source.name} and {case.image.name} differ in size, spacing or direction: "
            "download both again"
        )
