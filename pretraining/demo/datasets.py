"""Writes phantoms as nnU-Net raw datasets, without labels for pre-training and with labels for training and testing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from nnunetv2_pgl.files import write_nifti
from pretraining.demo.ellipsoids import Vector
from pretraining.demo.phantoms import DEFAULT_SHAPE, DEFAULT_SPACING, LABELS, Phantom, make_phantom

FILE_ENDING = ".nii.gz"
_SPACING_JITTER = 0.1  # relative


def write_unlabelled_dataset(
    raw: Path,
    dataset_id: int,
    name: str,
    n: int,
    seed: int,
    *,
    shape: tuple[int, int, int] = DEFAULT_SHAPE,
    spacing: Vector = DEFAULT_SPACING,
) -> Path:
    """Write a raw dataset that has images only, and a dataset.json without labels.

    Args:
        raw: The folder that nnUNet_raw points to.
        dataset_id: Up to three digits.
        name: The dataset's name without its id.
        n: Number of scans, all in imagesTr.
        seed: Together with ``dataset_id``, sets all scans.
        shape: Voxels (z, y, x) of a scan with the mean spacing; the field of view is the same for all scans.
        spacing: Mean spacing in mm; that of a scan differs by up to 10 %, along z and in plane.

    Returns:
        The dataset's folder.

    Raises:
        FileExistsError: The dataset exists already.
    """
    phantoms = _draw_phantoms(n, [seed, dataset_id], shape, spacing)
    return _write_dataset(raw, f"Dataset{dataset_id:03d}_{name}", phantoms, n, labels=None)


def write_labelled_dataset(
    raw: Path,
    dataset_id: int,
    name: str,
    n_train: int,
    n_test: int,
    seed: int,
    *,
    shape: tuple[int, int, int] = DEFAULT_SHAPE,
    spacing: Vector = DEFAULT_SPACING,
) -> Path:
    """Write a raw dataset with labels: imagesTr, labelsTr, and imagesTs, labelsTs for the evaluation.

    Args, result and errors are those of `write_unlabelled_dataset`, but for ``n_train``, the number of scans for
    training and validation, and ``n_test``, that for testing.
    """
    phantoms = _draw_phantoms(n_train + n_test, [seed, dataset_id], shape, spacing)
    labels = {"background": 0, **LABELS}
    return _write_dataset(raw, f"Dataset{dataset_id:03d}_{name}", phantoms, n_train, labels)


def _draw_phantoms(n: int, key: list[int], shape: tuple[int, int, int], spacing: Vector) -> Iterator[Phantom]:
    """Yield ``n`` phantoms, each on its own grid; the first ones do not depend on ``n``."""
    rng = np.random.default_rng(key)
    for _ in range(n):
        seed = int(rng.integers(2**31))
        z, plane = 1 + rng.uniform(-_SPACING_JITTER, _SPACING_JITTER, size=2)
        scan_spacing = (round(spacing[0] * z, 2), round(spacing[1] * plane, 2), round(spacing[2] * plane, 2))
        depth, height, width = (
            max(1, round(cells * mean / mm)) for cells, mean, mm in zip(shape, spacing, scan_spacing, strict=True)
        )
        yield make_phantom(seed, (depth, height, width), scan_spacing)


def _write_dataset(
    raw: Path, folder_name: str, phantoms: Iterator[Phantom], n_train: int, labels: dict[str, int] | None
) -> Path:
    """Write all files under a temporary name, then rename the folder."""
    final, temporary = raw / folder_name, raw / f".{folder_name}.partial"
    if final.exists():
        raise FileExistsError(f"{final} exists already; remove it or choose another dataset id")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for index, phantom in enumerate(phantoms):
        part = "Tr" if index < n_train else "Ts"
        case = f"{folder_name.split('_', 1)[1]}_{index:03d}"
        _write_volume(phantom.image, phantom.spacing, temporary / f"images{part}" / f"{case}_0000{FILE_ENDING}")
        if labels is not None:
            _write_volume(phantom.labels, phantom.spacing, temporary / f"labels{part}" / f"{case}{FILE_ENDING}")
    content: dict[str, Any] = {"channel_names": {"0": "CT"}, "numTraining": n_train, "file_ending": FILE_ENDING}
    if labels is not None:
        content["labels"] = labels
    (temporary / "dataset.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, final)
    return final


def _write_volume(volume: NDArray[Any], spacing: Vector, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing(spacing[::-1])
    write_nifti(image, path)
