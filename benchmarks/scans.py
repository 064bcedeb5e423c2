"""Stored scans to measure on: phantoms on the grid of a CT, written as ``pgl_pretrain`` writes scans."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from scipy.ndimage import zoom

from pretraining.data import Volume
from pretraining.data.writing import write_volume
from pretraining.demo.phantoms import make_phantom
from pretraining.views.rendering import largest_source_box

VIEW_SIZE = (16, 96, 96)
SCALE = (1.1, 1.4)
SCAN_SHAPE = (120, 400, 400)

_THREADS = min(8, os.cpu_count() or 1)  # most of a scan is made without Python's lock
_NOISE_HU = 12.0  # of a routine abdominal CT; it decides how well scans compress


def make_scan(seed: int, shape: tuple[int, int, int] = SCAN_SHAPE) -> np.ndarray:
    """A torso, int16 HU, (z, y, x), with noise in every voxel."""
    rng = np.random.default_rng(seed)
    coarse = make_phantom(seed).image.astype(np.float32)
    fine = zoom(coarse, [n / c for n, c in zip(shape, coarse.shape, strict=True)], order=1)
    noisy = fine + _NOISE_HU * rng.standard_normal(fine.shape, dtype=np.float32)
    return np.rint(np.clip(noisy, -1024, 325)).astype(np.int16)


def store_scans(folder: Path, count: int, shape: tuple[int, int, int] = SCAN_SHAPE) -> list[Volume]:
    """Writes ``count`` scans; those that another part has written are there already."""

    def store(seed: int) -> Volume:
        path = folder / f"scan_{seed:04d}.b2nd"
        written = path.with_suffix(".json").exists()  # the record comes last
        return Volume.load(path) if written else store_scan(make_scan(seed, shape), path)

    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(store, range(count)))


def store_scan(image: np.ndarray, path: Path) -> Volume:
    """Writes one scan, (z, y, x)."""
    record = {
        "name": path.stem,
        "source": "benchmark",
        "spacing": [2.5, 0.8, 0.8],
        "mean": [float(image.mean())],
        "std": [float(image.std())],
        "is_ct": [True],
    }
    return write_volume(path, image[None], record, largest_source_box(VIEW_SIZE, SCALE))
