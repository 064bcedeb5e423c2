"""Preprocess the scans in a folder, and read what was stored."""

from pathlib import Path
from typing import Any

import numpy as np

from pretraining.data import Volume, find_scans, preprocess


def run(folder: Path, modality: str | None = None, **options: Any) -> tuple[list[Volume], dict[str, str]]:
    scans, _ = find_scans([str(folder)], modality)
    options = {"spacing": "native", "crop_size": (8, 16, 16), "processes": 1, "progress": False, **options}
    volumes, skipped = preprocess(scans, folder.parent / "preprocessed", **options)
    return volumes, {item.name: item.reason for item in skipped}


def stored(volume: Volume, channel: int = 0) -> np.ndarray:
    return volume.read(channel, (0, 0, 0), volume.shape[1:])
