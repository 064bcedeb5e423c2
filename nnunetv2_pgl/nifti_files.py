"""NIfTI files, of which SimpleITK does not tell whether they were written."""

from __future__ import annotations

import errno
import gzip
import os
import zlib
from pathlib import Path

import SimpleITK as sitk

from nnunetv2_pgl.whole_files import replacing

_BLOCK = 1 << 22


def write_nifti(image: sitk.Image, path: Path) -> None:
    """Writes a ``.nii.gz`` file, at once.

    On a full disk SimpleITK's writer leaves what fitted and raises nothing, so the file is read again.

    Raises:
        OSError: If it cannot be written, or not to its end.
    """
    with replacing(path) as temporary:
        # SimpleITK compresses by the name's end.
        whole = temporary.with_name(f"{temporary.name}.nii.gz")
        try:
            sitk.WriteImage(image, str(whole), useCompression=True)
            _require_voxels(image, whole)
            os.replace(whole, temporary)
        finally:
            whole.unlink(missing_ok=True)


def _require_voxels(image: sitk.Image, path: Path) -> None:
    expected = image.GetNumberOfPixels() * image.GetNumberOfComponentsPerPixel() * image.GetSizeOfPixelComponent()
    found = 0
    try:
        with gzip.open(path) as file:
            while block := file.read(_BLOCK):
                found += len(block)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        found = 0
    if found < expected:
        raise OSError(errno.ENOSPC, "the disk is full, or does not keep what is written")
