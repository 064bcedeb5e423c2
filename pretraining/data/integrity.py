"""Read the formats whose damage SimpleITK does not notice: once, and looking for damage on the way.

What it does, observed with SimpleITK 2.5 (ITK 5.4): NIfTI that ends too early, in the gzip stream or inside it, is
filled up with zeros, and NaN and infinity become zero. A damaged compressed MetaImage gives arbitrary values and a line
on the terminal; an uncompressed one that ends too early raises an error that does not say so. NRRD that ends too early
raises a true one, and keeps NaN, so it needs no look.

SimpleITK would decompress a second time what was checked, and hold it up to three times. So the voxels go from the file
into the array here; shape, spacing and directions remain the reader's affair. What is unusual in a header is not
interpreted here: such voxels are checked only, and then read by the data set's own reader.
"""

import logging
import math
import zlib
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path

import numpy as np

from pretraining.data.headers import NIFTI_ERRORS, nifti_header, no_nifti
from pretraining.data.metaimage import metaimage_voxels
from pretraining.data.scan import BadScan
from pretraining.data.voxels import Voxels

logging.getLogger("nibabel.global").setLevel(logging.CRITICAL + 1)  # it names no file; what matters is a scan's reason

_CHUNK = 4 * 1024**2
_GZIP = b"\x1f\x8b"
_COMPRESSED_CHUNK = 64 * 1024  # it may be a thousand times as large once decompressed
# Bytes before and after the voxels. More is no header and no padding: megabytes of zeros that decompress to terabytes
# would be read for hours.
_MOST_BESIDE_VOXELS = 64 * 1024**2
# ITK takes smaller slopes for none.
_SMALLEST_SLOPE = 1e-12


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


def read_voxels(path: str, out: np.ndarray) -> bool:
    """Read a file once and look for damage.

    Args:
        path: The file.
        out: float32 (z, y, x), of the shape that the header tells; takes the values, NaN and infinity among them.

    Returns:
        False, with nothing read, for what the data set's reader shall read: formats whose damage it notices itself,
        and unusual headers.

    Raises:
        BadScan: If the file ends too early or fails its checksum.
    """
    return _pass_over(Path(path), out.reshape(-1))


def _pass_over(file: Path, out: np.ndarray | None) -> bool:
    name = file.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        voxels: Voxels | None = _nifti_voxels(file)
    elif name.endswith((".mha", ".mhd")):
        voxels = metaimage_voxels(file)
    else:
        return False
    if voxels is None:
        return False
    if voxels.dtype.kind not in "iuf":
        raise BadScan(f"{file.name} has several values per voxel ({voxels.dtype})")
    if voxels.offset > _MOST_BESIDE_VOXELS:
        raise BadScan(f"{file.name} announces that its voxels begin after {voxels.offset} bytes: fetch it again")
    if voxels.count < 1:
        raise BadScan(f"{file.name} announces {voxels.count} values: its header is damaged")
    if voxels.only_checked:
        out = None
    if out is not None and voxels.count != out.size:
        raise BadScan(f"{file.name} announces {voxels.count} values for {out.size} voxels")
    try:
        read = _fill(voxels, out)
    except (EOFError, zlib.error) as error:
        raise BadScan(f"{file.name} is truncated or damaged ({error}): fetch it again") from error
    if read < voxels.count:
        size = voxels.dtype.itemsize
        raise BadScan(f"{file.name} is truncated: {read * size} of {voxels.count * size} bytes of voxels are there")
    return not voxels.only_checked


def _nifti_voxels(file: Path) -> Voxels:
    try:
        header = nifti_header(file, check=True)
        dtype, count, offset = header.get_data_dtype(), math.prod(header.get_data_shape()), header.get_data_offset()
    except NIFTI_ERRORS as error:
        raise no_nifti(file, error) from error
    if offset < header.sizeof_hdr:
        raise BadScan(f"{file.name} announces that its voxels begin at byte {offset}, within its header")
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if not math.isfinite(slope) or slope == 0:
        slope, is_unusual = 1.0, intercept != 0 and math.isfinite(intercept)  # nibabel drops it with the slope
        intercept = 0.0
    else:
        is_unusual = abs(slope) < _SMALLEST_SLOPE or not math.isfinite(intercept)
    return Voxels(
        *(file, dtype, count, int(offset)),
        compressed_from=0 if file.name.lower().endswith(".gz") else None,
        in_parts=True,
        slope=slope,
        intercept=intercept,
        only_checked=is_unusual,
    )


def _fill(voxels: Voxels, out: np.ndarray | None) -> int:
    """Pass over the values, into ``out`` if it is given, and return how many there were; then read to the end."""
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
                if beyond > _MOST_BESIDE_VOXELS:
                    raise BadScan(
                        f"{voxels.file.name} goes on for more than {_MOST_BESIDE_VOXELS} bytes after its voxels: its "
                        "header is damaged, or it is no scan"
                    )
    return done


def _true_values(values: np.ndarray, voxels: Voxels) -> np.ndarray:
    if voxels.slope != 1 or voxels.intercept != 0:
        # ITK turns integers into float32 before it scales them, which those beyond 2 ** 24 show.
        values = values.astype(np.float32) if values.dtype.kind in "iu" else values
        values = values.astype(np.float64) * voxels.slope + voxels.intercept
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
        return values.astype(np.float32, copy=False)


def _bytes(stream: BufferedIOBase, voxels: Voxels) -> Iterator[bytes]:
    """What follows the header, decompressed."""
    if voxels.compressed_from is None:
        stream.seek(voxels.offset)
        while chunk := stream.read(_CHUNK):
            yield chunk
        return
    stream.seek(voxels.compressed_from)
    skip = voxels.offset
    for chunk in _decompressed(_parts(stream, voxels.compressed_size), voxels.in_parts):
        yield chunk[skip:]
        skip = max(0, skip - len(chunk))


def _parts(stream: BufferedIOBase, size: int) -> Iterator[bytes]:
    while size > 0 and (part := stream.read(min(_COMPRESSED_CHUNK, size))):
        yield part
        size -= len(part)


def _decompressed(parts: Iterator[bytes], in_parts: bool) -> Iterator[bytes]:
    """One zlib or gzip stream, or several of gzip one after another; checksums are compared on the way.

    Raises:
        EOFError: If the last one ends too early.
        zlib.error: If it is damaged.
    """
    decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # zlib or gzip
    for compressed in parts:
        yield decompressor.decompress(compressed)
        while decompressor.eof:
            following = decompressor.unused_data.lstrip(b"\0")
            if len(following) < len(_GZIP):
                following += next(parts, b"")
            if not in_parts or not following.startswith(_GZIP):
                return
            decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
            yield decompressor.decompress(following)
    if not decompressor.eof:
        raise EOFError("the compressed data end too early")
