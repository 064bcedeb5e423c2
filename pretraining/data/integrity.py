"""Find damaged image files that SimpleITK reads without complaint.

What it does, observed with SimpleITK 2.5 (ITK 5.4): NIfTI that ends too early, in the gzip stream or inside it, is
filled up with zeros, and NaN and infinity become zero. A damaged compressed MetaImage gives arbitrary values and a line
on the terminal. NRRD and uncompressed MetaImage that end too early raise an error, and keep NaN, so they need no look.
"""

import gzip
import zlib
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from pretraining.data.scan import BadScan

_CHUNK = 4 * 1024**2
_COMPRESSED_CHUNK = 64 * 1024  # it may be a thousand times as large once decompressed


def check_file(path: str) -> None:
    """Decompress a file once, without keeping it, and look for damage.

    Raises:
        BadScan: If the file is empty, ends too early, fails its checksum, or holds NaN or infinity (NIfTI).
    """
    file = Path(path)
    if not file.is_file():
        raise BadScan(f"{file} does not exist")
    if file.stat().st_size == 0:
        raise BadScan(f"{file.name} is empty")
    name = file.name.lower()
    try:
        if name.endswith((".nii", ".nii.gz")):
            _check_nifti(file)
        elif name.endswith((".mha", ".mhd")):
            _check_metaimage(file)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadScan(f"{file.name} is truncated or damaged ({error}): fetch it again") from error


def _check_nifti(file: Path) -> None:
    try:
        image: Any = nibabel.load(file)
        dtype, offset = image.get_data_dtype(), int(image.dataobj.offset)
        voxels = int(np.prod(image.shape, dtype=np.int64))
    except (ImageFileError, HeaderDataError, ValueError, AttributeError) as error:
        raise BadScan(f"{file.name} is no readable NIfTI file ({error})") from error
    with gzip.open(file, "rb") if file.name.lower().endswith(".gz") else file.open("rb") as stream:
        stream.read(offset)
        read = _read_voxels(stream, voxels * dtype.itemsize, dtype, file.name)
        while stream.read(_CHUNK):  # the checksum comes at the very end
            pass
    if read < voxels * dtype.itemsize:
        raise BadScan(f"{file.name} is truncated: {read} of {voxels * dtype.itemsize} bytes of voxels are there")


def _read_voxels(stream: BufferedIOBase, size: int, dtype: np.dtype, name: str) -> int:
    """Pass over the voxels and return how many bytes there were; NaN and infinity end it."""
    read = 0
    step = _CHUNK - _CHUNK % dtype.itemsize
    while read < size:
        chunk = stream.read(min(step, size - read))
        if not chunk:
            break
        read += len(chunk)
        if dtype.kind == "f":
            values = np.frombuffer(chunk, dtype, count=len(chunk) // dtype.itemsize)
            if not np.isfinite(values).all():
                raise BadScan(f"{name} holds NaN or infinite values")
    return read


def _check_metaimage(file: Path) -> None:
    """Decompress the data of a compressed MetaImage; its checksum tells whether they are whole."""
    with file.open("rb") as stream:
        fields = {}
        for line in stream:
            key, _, value = line.decode("latin-1").partition("=")
            fields[key.strip()] = value.strip()
            if key.strip() == "ElementDataFile":
                break
        if fields.get("CompressedData", "").lower() != "true":
            return
        if fields.get("ElementDataFile") == "LOCAL":
            _decompress(stream)
            return
    data = file.with_name(fields.get("ElementDataFile", ""))
    if data.is_file():  # lists and patterns of files are left to ITK
        with data.open("rb") as stream:
            _decompress(stream)


def _decompress(stream: BufferedIOBase) -> None:
    decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # zlib or gzip
    while not decompressor.eof:
        chunk = stream.read(_COMPRESSED_CHUNK)
        if not chunk:
            raise EOFError("the compressed data end too early")
        decompressor.decompress(chunk)
