"""Scans from single files, and what reading them gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pretraining.data import BadScan, Scan, read_scan


def scan_of(*files: Path, reader: str = "SimpleITKIO") -> Scan:
    """One scan, with a file for each channel."""
    channels = tuple(f"channel{index}" for index in range(len(files)))
    return Scan("s", "s", "src", "src", tuple(map(str, files)), channels, (True,) * len(files), reader)


def values_of(path: Path, reader: str = "SimpleITKIO") -> np.ndarray:
    """The voxels of a scan of one file."""
    return read_scan(scan_of(path, reader=reader))[0][0]


def reason(*files: Path, reader: str = "SimpleITKIO") -> str:
    """Why the scan is refused, in one line."""
    with pytest.raises(BadScan) as error:
        read_scan(scan_of(*files, reader=reader))
    assert "\n" not in str(error.value)
    return str(error.value)
