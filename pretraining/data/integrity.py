"""Read the formats whose damage SimpleITK does not notice: once, and looking for damage on the way.

What it does, observed with SimpleITK 2.5 (ITK 5.4): NIfTI that ends too early, in the gzip stream or inside it, is
filled up with zeros, and NaN and infinity become zero. A damaged compressed MetaImage gives arbitrary values and a line
on the terminal; an uncompressed one that ends too early, or whose file of voxels is lost, raises an error that does not
say so. NRRD that ends too early raises a true one, and keeps NaN, so it needs no look.

SimpleITK would decompress a second time what was checked, and hold it up to three times. So the voxels go from the file
into the array here; shape, spacing and directions remain SimpleITK's affair.
"""

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from pretraining.data.scan import BadScan

_CHUNK = 4 * 1024**2
_GZIP = b"\x1f\x8b"
_COMPRESSED_CHUNK = 64 * 1024  # it may be a thousand times as large once decompressed
# Bytes before and after the voxels. More is no header and no padding: megabytes of zeros that decompress to terabytes
# would be read for hours.
_MOST_BESIDE_VOXELS = 64 * 1024**2
# What nibabel raises for files that are none of its own, or damaged.
NIFTI_ERRORS = (
    *(ImageFileError, HeaderDataError, WrapStructError),
    *(EOFError, OSError, zlib.error, ValueError, AttributeError, OverflowError),
)
# MetaImage's names of the types that one voxel per value can have; MET_LONG is 4 bytes in a file.
_METAIMAGE_TYPES = {
    **{"MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4"},
    **{"MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8"},
    **{"MET_FLOAT": "f4", "MET_DOUBLE": "f8"},
}


@dataclass(frozen=True)
class _Voxels:
    """Where and how a file holds its voxels.

    Attributes:
        file: The file.
        offset: Bytes before the first voxel; where ``compressed_from`` is given, of what is decompressed.
        dtype: Of the stored values.
        compressed_from: Where in the file a zlib or gzip stream begins; None if there is none.
        slope, intercept: Of the linear function from stored to true values.
    """

    file: Path
    offset: int
    dtype: np.dtype
    compressed_from: int | None
    slope: float = 1.0
    intercept: float = 0.0


def check_file(path: str) -> None:
    """Read a file once, without keeping it, and look for damage: for readers that must read it themselves.

    Raises:
        BadScan: If the file is missing, empty, ends too early, fails its checksum, or holds NaN or infinity.
    """
    require_content(path)
    _pass_over(Path(path), None)


def require_content(path: str) -> None:
    """Refuse a file that is missing or empty.

    Raises:
        BadScan: If it is.
    """
    file = Path(path)
    if not file.is_file():
        raise BadScan(f"{file} does not exist")
    if file.stat().st_size == 0:
        raise BadScan(f"{file.name} is empty")


def nifti_spacing(path: str) -> tuple[float, ...]:
    """Spacing (z, y, x) as the header of a NIfTI file has it: ITK and nibabel turn zero into 1 mm, ITK also NaN.

    Raises:
        BadScan: If the file has no such header.
    """
    file = Path(path)
    try:
        with gzip.open(file) if file.name.lower().endswith(".gz") else file.open("rb") as stream:
            header = stream.read(nibabel.Nifti2Header.sizeof_hdr)
        second = struct.pack("<i", len(header)), struct.pack(">i", len(header))
        fields: Any = nibabel.Nifti2Header if header[:4] in second else nibabel.Nifti1Header
        values = fields(header[: fields.sizeof_hdr], check=False)["pixdim"][3:0:-1]
    except NIFTI_ERRORS as error:
        raise BadScan(f"{file.name} is no readable NIfTI file ({error})") from error
    return tuple(float(value) for value in values)


def read_voxels(path: str, out: np.ndarray) -> bool:
    """Read a file once and look for damage.

    Args:
        path: The file.
        out: float32 (z, y, x), of the shape that the header tells; takes the values, NaN and infinity among them.

    Returns:
        False, with nothing read, for formats that SimpleITK itself checks.

    Raises:
        BadScan: If the file ends too early or fails its checksum.
    """
    return _pass_over(Path(path), out.reshape(-1))


def _pass_over(file: Path, out: np.ndarray | None) -> bool:
    name = file.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        voxels: _Voxels | None
        voxels, count = _nifti_voxels(file)
    elif name.endswith((".mha", ".mhd")):
        voxels, count = _metaimage_voxels(file)
    else:
        return False
    if voxels is None:
        return False
    if voxels.offset > _MOST_BESIDE_VOXELS:
        raise BadScan(f"{file.name} announces that its voxels begin after {voxels.offset} bytes: fetch it again")
    if count < 1:
        raise BadScan(f"{file.name} announces {count} values: its header is damaged")
    if out is not None and count != out.size:
        raise BadScan(f"{file.name} announces {count} values for {out.size} voxels")
    try:
        read = _fill(voxels, count, out)
    except (EOFError, zlib.error) as error:
        raise BadScan(f"{file.name} is truncated or damaged ({error}): fetch it again") from error
    if read < count:
        size = voxels.dtype.itemsize
        raise BadScan(f"{file.name} is truncated: {read * size} of {count * size} bytes of voxels are there")
    return True


def _nifti_voxels(file: Path) -> tuple[_Voxels, int]:
    try:
        image: Any = nibabel.load(file)
        proxy = image.dataobj
        compressed_from = 0 if file.name.lower().endswith(".gz") else None
        voxels = _Voxels(file, int(proxy.offset), proxy.dtype, compressed_from, float(proxy.slope), float(proxy.inter))
        return voxels, math.prod(image.shape)
    except NIFTI_ERRORS as error:
        raise BadScan(f"{file.name} is no readable NIfTI file ({error})") from error


def _metaimage_voxels(file: Path) -> tuple[_Voxels | None, int]:
    """None if it is of an unknown type, scattered over several files, or with a header within, which is left to ITK."""
    fields = {}
    with file.open("rb") as stream:
        for line in stream:
            key, _, value = line.decode("latin-1").partition("=")
            fields[key.strip()] = value.strip()
            if key.strip() == "ElementDataFile":
                break
        start = stream.tell()
    named = fields.get("ElementDataFile", "")
    data = file if named == "LOCAL" else file.parent / named
    kind = _METAIMAGE_TYPES.get(fields.get("ElementType", ""))
    if kind is None or not named or "%" in named or named.startswith("LIST") or "HeaderSize" in fields:
        return None, 0
    if not data.is_file():
        raise BadScan(f"{file.name} has its voxels in {named}, which is not there")
    start = start if named == "LOCAL" else 0
    order = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False"))
    dtype = np.dtype((">" if order.lower() == "true" else "<") + kind)
    try:
        count = math.prod(int(size) for size in fields.get("DimSize", "0").split())
        count *= int(fields.get("ElementNumberOfChannels", "1"))
    except ValueError as error:
        raise BadScan(f"{file.name} does not tell how many voxels it has: its header is damaged") from error
    is_compressed = fields.get("CompressedData", "").lower() == "true"
    return (_Voxels(data, 0, dtype, start) if is_compressed else _Voxels(data, start, dtype, None)), count


def _fill(voxels: _Voxels, count: int, out: np.ndarray | None) -> int:
    """Pass over the values, into ``out`` if it is given, and return how many there were; then read to the end."""
    done, rest, beyond = 0, b"", 0
    with voxels.file.open("rb") as stream:
        for chunk in _bytes(stream, voxels):
            chunk = rest + chunk
            values = np.frombuffer(chunk, voxels.dtype, min(len(chunk) // voxels.dtype.itemsize, count - done))
            if out is not None:
                out[done : done + len(values)] = _true_values(values, voxels)
            elif not np.isfinite(values).all():
                raise BadScan(f"{voxels.file.name} holds NaN or infinite values")
            done += len(values)
            rest = chunk[values.nbytes :]
            if done == count:
                beyond, rest = beyond + len(rest), b""
                if beyond > _MOST_BESIDE_VOXELS:
                    raise BadScan(
                        f"{voxels.file.name} goes on for more than {_MOST_BESIDE_VOXELS} bytes after its voxels: its "
                        "header is damaged, or it is no scan"
                    )
    return done


def _true_values(values: np.ndarray, voxels: _Voxels) -> np.ndarray:
    if voxels.slope != 1 or voxels.intercept != 0:
        # ITK turns integers into float32 before it scales them, which those beyond 2 ** 24 show.
        values = values.astype(np.float32) if values.dtype.kind in "iu" else values
        values = values.astype(np.float64) * voxels.slope + voxels.intercept
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
        return values.astype(np.float32, copy=False)


def _bytes(stream: BufferedIOBase, voxels: _Voxels) -> Iterator[bytes]:
    """What follows the header, decompressed."""
    if voxels.compressed_from is None:
        stream.seek(voxels.offset)
        while chunk := stream.read(_CHUNK):
            yield chunk
        return
    stream.seek(voxels.compressed_from)
    skip = voxels.offset
    for chunk in _decompressed(stream):
        yield chunk[skip:]
        skip = max(0, skip - len(chunk))


def _decompressed(stream: BufferedIOBase) -> Iterator[bytes]:
    """One zlib stream, or gzip streams one after another; checksums are compared on the way.

    Raises:
        EOFError: If the last one ends too early.
        zlib.error: If it is damaged.
    """
    decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # zlib or gzip
    while compressed := stream.read(_COMPRESSED_CHUNK):
        yield decompressor.decompress(compressed)
        while decompressor.eof:
            following = decompressor.unused_data.lstrip(b"\0")
            if len(following) < len(_GZIP):
                following += stream.read(_COMPRESSED_CHUNK)
            if not following.startswith(_GZIP):
                return
            decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
            yield decompressor.decompress(following)
    if not decompressor.eof:
        raise EOFError("the compressed data end too early")
