"""Small scans, written with SimpleITK."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk


@pytest.fixture
def ct_values() -> np.ndarray:
    """Whole HU from air to soft tissue, (z, y, x)."""
    return np.random.default_rng(0).integers(-1024, 325, (12, 20, 24)).astype(np.int16)


@pytest.fixture
def write_scan() -> Callable[..., Path]:
    def write(path: Path, values: np.ndarray, spacing: Sequence[float] = (3.0, 1.0, 1.0), **options: bool) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        image = sitk.GetImageFromArray(values, isVector=options.get("colour", False))
        image.SetSpacing([float(value) for value in reversed(spacing)][: image.GetDimension()])
        sitk.WriteImage(image, str(path), options.get("compress", path.name.endswith(".gz")))
        return path

    return write


@pytest.fixture
def write_dicom() -> Callable[..., Path]:
    def write(
        folder: Path,
        values: np.ndarray,
        spacing: Sequence[float] = (3.0, 0.75, 0.75),
        uid: str = "1.2.826.0.1.3",
        left_out: Sequence[int] = (),
        modality: str = "CT",
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        for index, plane in enumerate(values):
            if index in left_out:
                continue
            image = sitk.GetImageFromArray(plane)
            image.SetSpacing([spacing[2], spacing[1]])
            tags = {
                "0008|0018": f"{uid}.{index + 1}",
                "0008|0060": modality,
                "0020|000d": "1.2.826",
                "0020|000e": uid,
                "0020|0011": uid.rsplit(".", 1)[-1],
                "0020|0013": str(index + 1),
                "0020|0032": f"0\\0\\{index * spacing[0]}",
                "0020|0037": "1\\0\\0\\0\\1\\0",
            }
            for key, value in tags.items():
                image.SetMetaData(key, value)
            writer.SetFileName(str(folder / f"{uid}-{len(values) - index:03d}.dcm"))
            writer.Execute(image)
        return folder

    return write
