"""Read preprocessed volumes: one ``.b2nd`` file with the voxels and one JSON record beside it."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from nnunetv2_pgl.files import load_json
from pretraining.data.reading.orientation import LATERAL, Orientation, body_axes
from pretraining.data.scan import DataError

FORMAT_VERSION = 1
_REMEDY = "delete it, and the scan is preprocessed again"
_DTYPES = ("int16", "float16", "float32")
_MAX_CHUNK_BYTES = 1024**3  # that reading decompresses at once; ours are about as large as a crop
_MAX_OPEN_ARRAYS = 16  # what a process has read of them stays mapped: at 64, 140 MiB of 2.5 MB files
_MMAP = {} if os.name == "nt" else {"mmap_mode": "r"}  # blosc2 cannot on Windows


@dataclass(frozen=True)
class Volume:
    """A preprocessed scan on disk. It holds no open file, so it is cheap to pickle; each process opens its own.

    ``(stored - mean[c]) / std[c]`` is channel ``c`` z-scored over the scan.

    Attributes:
        path: The ``.b2nd`` file.
        name: Name of the scan.
        source: Dataset or folder it comes from.
        shape: (channel, z, y, x).
        spacing: (z, y, x) in mm.
        mean: Per channel, of the stored values; 0 where a plan has normalised them.
        std: Per channel, of the stored values; 1 where a plan has normalised them.
        is_ct: Per channel, whether it is CT.
        dtype: Of the stored values, ``int16``, ``float16`` or ``float32``.
        orientation: See `Orientation`; None if the headers of the scan do not state it.
    """

    path: Path
    name: str
    source: str
    shape: tuple[int, int, int, int]
    spacing: tuple[float, float, float]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    is_ct: tuple[bool, ...]
    dtype: str
    orientation: Orientation | None = None

    @classmethod
    def load(cls, path: str | Path) -> "Volume":
        """Read the record of a volume, given by either of its two files.

        Raises:
            DataError: If the record is missing, damaged, or of a newer format.
        """
        return cls.from_record(Path(path).with_suffix(".b2nd"), read_record(path))

    @classmethod
    def from_record(cls, path: Path, record: Mapping[str, Any]) -> "Volume":
        """Build it from the content of its record.

        Raises:
            DataError: If the record is damaged.
        """
        try:
            channels, depth, height, width = (int(size) for size in record["shape"])
            z, y, x = (float(value) for value in record["spacing"])
            mean, std = (tuple(float(value) for value in record[key]) for key in ("mean", "std"))
            is_ct, dtype = tuple(bool(value) for value in record["is_ct"]), str(record["dtype"])
            shape, spacing = (channels, depth, height, width), (z, y, x)
            positive = (*shape, *spacing, *std)
            if not (np.isfinite((*positive, *mean)).all() and min(positive) > 0 and dtype in _DTYPES):
                raise ValueError("impossible values")
            if not len(mean) == len(std) == len(is_ct) == channels:
                raise ValueError("not one mean, std and is_ct for each channel")
            orientation: Orientation | None = None
            if record.get("orientation") is not None:
                first, second, third = record["orientation"]
                orientation = (first, second, third)
                if len(set(body_axes(orientation))) < 3:
                    raise ValueError(f"orientation {orientation}")
            return cls(
                path, str(record["name"]), str(record["source"]), shape, spacing, mean, std, is_ct, dtype, orientation
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{path.with_suffix('.json')} is damaged ({error!r}): {_REMEDY}") from error

    @property
    def lateral_axis(self) -> int | None:
        """Which of (z, y, x) runs from left to right in the body; None if that is unknown."""
        return None if self.orientation is None else body_axes(self.orientation).index(LATERAL)

    def read(self, channel: int, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        """Read the stored values in the box ``[start, stop)``, (z, y, x), of one channel.

        Raises:
            ValueError: If the box is empty or does not lie inside the scan.
            DataError: If the file is missing or damaged.
        """
        sides = list(zip(start, stop, self.shape[1:], strict=True))
        if not 0 <= channel < self.shape[0] or not all(0 <= low < high <= size for low, high, size in sides):
            box = f"channel {channel}, {tuple(start)} to {tuple(stop)}"
            raise ValueError(f"{self.name}: {box} is not inside the scan of shape {self.shape}")
        try:
            array = self._array()
            values = np.empty([high - low for low, high, _ in sides], dtype=array.dtype)
            # What array[...] calls, without its analysis of the index, which takes a fifth of the time.
            array.get_slice_numpy(values, ((channel, *start), (channel + 1, *stop)))
            return values
        except (OSError, RuntimeError, ValueError) as error:
            raise DataError(
                f"{self.path} cannot be read ({error}): add --verify_dataset_integrity to preprocess damaged scans "
                "again"
            ) from error

    def _array(self) -> blosc2.NDArray:
        array = _open(str(self.path), self.path.stat().st_mtime_ns)
        if tuple(array.shape) != self.shape or array.dtype != np.dtype(self.dtype):
            raise RuntimeError(f"its shape {array.shape} or type {array.dtype} is not what the record says")
        return array


@lru_cache(maxsize=_MAX_OPEN_ARRAYS)
def _open(path: str, modified: int) -> blosc2.NDArray:
    """Open a file once per process, and again if ``modified`` shows that it was replaced."""
    array = blosc2.open(path, mode="r", dparams={"nthreads": 1}, **_MMAP)
    if not isinstance(array, blosc2.NDArray):
        raise RuntimeError(f"it holds a {type(array).__name__}, not an array")
    if array.schunk.chunksize > _MAX_CHUNK_BYTES:
        raise RuntimeError(f"its chunks of {array.schunk.chunksize} bytes are larger than {_MAX_CHUNK_BYTES}")
    return array


def read_record(path: str | Path) -> dict[str, Any]:
    """Read the JSON record of a volume, given by either of its two files.

    Raises:
        DataError: If it is missing, damaged, or of a newer format.
    """
    path = Path(path).with_suffix(".json")
    try:
        record = load_json(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): preprocess the scan again") from error
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}): {_REMEDY}") from error
    version = record.get("format_version") if isinstance(record, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(f"{path} has format {version}, this version reads {FORMAT_VERSION}: {_REMEDY}")
    return record
