"""Read the formats whose damage SimpleITK does not notice: once, and looking for damage on the way.

Observed with SimpleITK 2.5 (ITK 5.4): NIfTI that ends too early, in the gzip stream or inside it, is filled up with
zeros, and NaN and infinity become zero. A damaged compressed MetaImage gives arbitrary values and a line on the
terminal; an uncompressed one that ends too early raises an error that does not say so. NRRD that ends too early raises
a clear error and keeps NaN, so it needs no check here.

SimpleITK would decompress again what was checked, and hold it up to three times. So the voxels go from the file into
the array here; shape, spacing and directions are left to the reader. Unusual headers are not interpreted here: such
voxels are only checked, and then read by the dataset's own reader.
"""

import math
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from pretraining.data.reading import metaimage
from pretraining.data.reading.headers import METAIMAGE, NIFTI, NIFTI_ERRORS, nifti_header, not_nifti, sitk_header
from pretraining.data.scan import BadScan

_CHUNK_BYTES = 4 * 1024**2
_COMPRESSED_CHUNK_BYTES = 64 * 1024  # it may be a thousand times as large once decompressed
_GZIP_MAGIC = b"\x1f\x8b"
# Before and after the voxels. More is neither header nor padding: megabytes of zeros that decompress to terabytes would
# be read for hours.
_MAX_BYTES_BESIDE_VOXELS = 64 * 1024**2
_MIN_SLOPE = 1e-12  # ITK ignores smaller ones


@dataclass(frozen=True)
class _Voxels:
    """Where and how a file holds its voxels."""

    file: Path
    dtype: np.dtype  # of the stored values
    count: int
    offset: int = 0  # bytes before the first voxel; if there is a zlib or gzip stream, of what is decompressed
    compressed_from: int | None = None  # byte of the file at which that stream begins
    compressed_size: int = sys.maxsize
    multistream: bool = False  # whether further gzip streams may follow the first
    slope: float = 1.0  # of the linear function from stored to true values
    intercept: float = 0.0
    check_only: bool = False  # look for damage only, and leave the values to the dataset's reader


def read_voxels(path: str, out: np.ndarray | None = None) -> bool:
    """Read a file once and look for damage.

    Args:
        path: The file.
        out: float32 (z, y, x), of the shape that the header states; takes the values, NaN and infinity among them.
            None: only look for damage, NaN and infinity, for readers that must read the file themselves.

    Returns:
        False if the dataset's reader has to read the file: formats whose damage it notices itself, unusual headers.

    Raises:
        BadScan: If the file ends too early, fails its checksum, or is checked only and holds NaN or infinity.
    """
    file = Path(path)
    name, voxels = file.name.lower(), None
    if name.endswith(NIFTI):
        voxels = _nifti_voxels(file)
    elif name.endswith(METAIMAGE):
        voxels = metaimage_voxels(file)
    if voxels is None:
        return False
    if voxels.dtype.kind not in "iuf":
        raise BadScan(f"{file.name} has several values per voxel ({voxels.dtype})")
    if voxels.offset > _MAX_BYTES_BESIDE_VOXELS:
        raise BadScan(f"{file.name} declares that its voxels begin after {voxels.offset} bytes: fetch it again")
    values = None if out is None or voxels.check_only else out.reshape(-1)
    if voxels.count < 1 or (values is not None and voxels.count != values.size):
        raise BadScan(f"{file.name} declares {voxels.count} values, not one for each voxel: its header is damaged")
    try:
        read = _fill(voxels, values)
    except (EOFError, zlib.error) as error:
        raise BadScan(f"{file.name} is truncated or damaged ({error}): fetch it again") from error
    if read < voxels.count:
        size = voxels.dtype.itemsize
        raise BadScan(f"{file.name} is truncated: {read * size} of {voxels.count * size} bytes of voxels are there")
    return not voxels.check_only


def _nifti_voxels(file: Path) -> _Voxels:
    try:
        header = nifti_header(file, check=True)
        dtype, count, offset = header.get_data_dtype(), math.prod(header.get_data_shape()), header.get_data_offset()
    except NIFTI_ERRORS as error:
        raise not_nifti(file, error) from error
    if offset < header.sizeof_hdr:
        raise BadScan(f"{file.name} declares that its voxels begin at byte {offset}, within its header")
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if not math.isfinite(slope) or slope == 0:
        slope, is_unusual = 1.0, intercept != 0 and math.isfinite(intercept)  # nibabel drops it with the slope
        intercept = 0.0
    else:
        is_unusual = abs(slope) < _MIN_SLOPE or not math.isfinite(intercept)
    return _Voxels(
        *(file, dtype, count, int(offset)),
        compressed_from=0 if file.name.lower().endswith(".gz") else None,
        multistream=True,
        slope=slope,
        intercept=intercept,
        check_only=is_unusual,
    )


def metaimage_voxels(file: Path) -> _Voxels | None:
    """Where the voxels are; None if SimpleITK notices by itself when some are missing.

    Raises:
        BadScan: If the file of the voxels is missing, or SimpleITK would read something else instead of them.
    """
    header = metaimage.read_header(file)
    try:
        read = sitk_header(str(file))
        size, channels = read.GetSize(), read.GetNumberOfComponents()
        dtype = sitk.GetArrayFromImage(sitk.Image([1, 1], read.GetPixelID(), channels)).dtype
    except RuntimeError:
        return None  # the reader will raise it again
    located = metaimage.locate_voxels(file, header, slices=size[-1])
    if located is None:
        return None
    data, start, is_compressed = located
    count, is_big_endian = math.prod(size) * channels, header.is_big_endian()
    if is_big_endian is not None:
        dtype = dtype.newbyteorder(">" if is_big_endian else "<")
    if not is_compressed:
        return None if is_big_endian is None else _Voxels(data, dtype, count, start)
    there, declared = data.stat().st_size - start, header.compressed_size
    if is_big_endian is not None and declared == there:
        return _Voxels(data, dtype, count, compressed_from=start)
    if header.has("HeaderSize") or (data == file and not declared):
        raise BadScan(
            f"{file.name} does not say where its compressed voxels lie (CompressedDataSize, HeaderSize) in the way "
            "that SimpleITK understands: write it again without compression"
        )
    stored = np.dtype(np.uint8), count * dtype.itemsize
    return _Voxels(data, *stored, compressed_from=start, compressed_size=declared or there, check_only=True)


def _fill(voxels: _Voxels, out: np.ndarray | None) -> int:
    """Read the file to its end, the values into ``out`` if it is given; return how many values there were."""
    done, rest, beyond = 0, b"", 0
    with voxels.file.open("rb") as stream:
        for chunk in _bytes(stream, voxels):
            chunk = rest + chunk
            values = np.frombuffer(chunk, voxels.dtype, min(len(chunk) // voxels.dtype.itemsize, voxels.count - done))
            if out is not None:
                out[done : done + len(values)] = _true_values(values, voxels)
            elif not np.isfinite(values).all():
                raise BadScan(f"{voxels.file.name} holds NaN or infinite values")
            done += len(values)
            rest = chunk[values.nbytes :]
            if done == voxels.count:
                beyond, rest = beyond + len(rest), b""
                if beyond > _MAX_BYTES_BESIDE_VOXELS:
                    raise BadScan(
                        f"{voxels.file.name} continues for more than {_MAX_BYTES_BESIDE_VOXELS} bytes after its "
                        "voxels: its header is damaged, or it is not a scan"
                    )
    return done


def _true_values(values: np.ndarray, voxels: _Voxels) -> np.ndarray:
    if voxels.slope != 1 or voxels.intercept != 0:
        # ITK turns integers into float32 before it scales them, which shows beyond 2 ** 24.
        values = values.astype(np.float32) if values.dtype.kind in "iu" else values
        values = values.astype(np.float64) * voxels.slope + voxels.intercept
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
        return values.astype(np.float32, copy=False)


def _bytes(stream: BufferedIOBase, voxels: _Voxels) -> Iterator[bytes]:
    """What follows the header, decompressed."""
    if voxels.compressed_from is None:
        stream.seek(voxels.offset)
        while chunk := stream.read(_CHUNK_BYTES):
            yield chunk
        return
    stream.seek(voxels.compressed_from)
    skip, end = voxels.offset, voxels.compressed_from + voxels.compressed_size
    parts = iter(lambda: stream.read(min(_COMPRESSED_CHUNK_BYTES, end - stream.tell())), b"")
    for chunk in _decompressed(parts, voxels.multistream):
        yield chunk[skip:]
        skip = max(0, skip - len(chunk))


def _decompressed(parts: Iterator[bytes], multistream: bool) -> Iterator[bytes]:
    """One zlib or gzip stream, or several gzip streams one after another; checksums are compared on the way.

    Raises:
        EOFError: If the last stream ends too early.
        zlib.error: If one is damaged.
    """
    decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # zlib or gzip
    for compressed in parts:
        yield decompressor.decompress(compressed)
        while decompressor.eof:
            following = decompressor.unused_data.lstrip(b"\0")
            if len(following) < len(_GZIP_MAGIC):
                following += next(parts, b"")
            if not multistream or not following.startswith(_GZIP_MAGIC):
                return
            decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
            yield decompressor.decompress(following)
    if not decompressor.eof:
        raise EOFError("the compressed data end too early")
