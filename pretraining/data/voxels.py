"""Where and how a file holds its voxels."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Voxels:
    """What is needed to pass over the voxels of a file.

    Attributes:
        file: The file.
        dtype: Of the stored values.
        count: Number of values.
        offset: Bytes before the first voxel; where ``compressed_from`` is given, of what is decompressed.
        compressed_from: Where in the file a zlib or gzip stream begins; None if there is none.
        compressed_size: Bytes from there on that count.
        in_parts: Whether further gzip streams may follow the first.
        slope, intercept: Of the linear function from stored to true values.
        only_checked: The values are the reader's affair; here only damage is looked for.
    """

    file: Path
    dtype: np.dtype
    count: int
    offset: int = 0
    compressed_from: int | None = None
    compressed_size: int = sys.maxsize
    in_parts: bool = False
    slope: float = 1.0
    intercept: float = 0.0
    only_checked: bool = False
