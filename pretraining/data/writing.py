"""Write preprocessed volumes: compressed in blocks that suit the crops, and never seen half written."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from nnunetv2_pgl.files import write_bytes, write_text
from pretraining.data.scan import DataError
from pretraining.data.store import FORMAT_VERSION, Volume

_MIN_LEFTOVER_AGE = 600.0  # s without a change; the writer of an older temporary file is dead
_MAX_BLOCK_SIDE = 32  # voxels: 8 x 32 x 32 int16 are 16 KiB, which stays in the first-level cache

# Measured with 25 x 137 x 137 crops from int16 120 x 400 x 400 (a CT resampled to that size, with noise of 12 HU; file
# cached, one thread, 2-core machine, median of 120): blocks of 8 x 32 x 32 in chunks of about a crop 0.55 ms and 54 %
# of the raw size with LZ4HC, 0.73 ms and 60 % with LZ4; without memory mapping 0.90 ms; nnU-Net's layout (blocks of
# 16 x 64 x 64) 1.4 ms; uncompressed 0.12 ms from the page cache, at twice the size.
_COMPRESSION = {
    "codec": blosc2.Codec.LZ4HC,
    "clevel": 5,
    "filters": [blosc2.Filter.SHUFFLE],
    "filters_meta": [0],
    "nthreads": 1,
}


def write_volume(path: Path, data: np.ndarray, record: Mapping[str, Any], crop_size: Sequence[int]) -> Volume:
    """Write voxels and record, each at once: a reader never sees half a file, and the record comes last.

    A record with the same settings may already be there, from another run on the same scans: it stays in place until
    it is replaced, since that run may be reading it. One that is out of date must be deleted first, by
    `discard_record`.

    Args:
        path: The ``.b2nd`` file to write.
        data: (channel, z, y, x).
        record: What to write beside shape, dtype, file size and checksum.
        crop_size: (z, y, x) of the crops that will be read, which decides the layout.

    Raises:
        DataError: If the disk is full or not writable.
    """
    chunks, blocks = storage_layout(data.shape, crop_size)
    # In memory first: blosc2 itself reports a full disk as an error of the array.
    array = blosc2.asarray(np.ascontiguousarray(data), chunks=chunks, blocks=blocks, cparams=_COMPRESSION)
    content = array.to_cframe()
    del array
    with _writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content, shared=True)
    record = {
        "format_version": FORMAT_VERSION,
        **record,
        "shape": list(data.shape),
        "dtype": data.dtype.name,
        "file_size": len(content),
        "sha256": sha256(content).hexdigest(),
    }
    write_record(path, record)
    return Volume.from_record(path, record)


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write the record of the volume ``path``, at once.

    Raises:
        DataError: If the disk is full or not writable.
    """
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    with _writable(path):
        write_text(path.with_suffix(".json"), text, shared=True)


def discard_record(path: Path) -> None:
    """Delete the record of the volume ``path``, if there is one, so that no run considers the volume up to date.

    Raises:
        DataError: If the disk is not writable.
    """
    with _writable(path):
        path.with_suffix(".json").unlink(missing_ok=True)


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f"could not write {path}: {error.strerror}" if error.strerror else str(error)
        raise DataError(f"{reason}; check space and rights") from error


def storage_layout(shape: Sequence[int], crop_size: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Choose the shapes of chunks and blocks, (channel, z, y, x), for reading random crops of one channel.

    A block is about a third of a crop (z, y, x) per axis, a chunk about a crop.
    """
    chunks, blocks = [1], [1]
    for size, crop in zip(shape[1:], crop_size, strict=True):
        third = max(1, crop // 3)
        block = min(2 ** (third.bit_length() - 1), _MAX_BLOCK_SIDE, size)
        blocks.append(block)
        chunks.append(block * min(max(1, round(crop / block)), -(-size // block)))
    return tuple(chunks), tuple(blocks)


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files whose writer was killed; those of a running process are younger, and stay."""
    for path in folder.glob(".*.tmp"):
        if time.time() - path.stat().st_mtime > _MIN_LEFTOVER_AGE:
            path.unlink(missing_ok=True)
