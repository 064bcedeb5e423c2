"""Writes phantoms as nnU-Net raw datasets, without labels for pre-training and with labels for training and testing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from nnunetv2_pgl.files import write_nifti
from pretraining.demo.phantoms import DEFAULT_SHAPE, DEFAULT_SPACING, LABELS, Phantom, make_phantom
from pretraining.demo.shapes import Vector

FILE_ENDING = ".nii.gz"


def write_unlabelled_dataset(
    raw: Path,
    dataset_id: int,
    name: str,
    n: int,
    seed: int,
    *,
    shape: tuple[int, int, int] = DEFAULT_SHAPE,
    spacing: Vector = DEFAULT_SPACING,
    spacing_jitter: float = 0.1,
) -> Path:
    """Write a raw dataset that has images only, and a dataset.json without labels.

    Args:
        raw: The folder that nnUNet_raw points to.
        dataset_id: Up to three digits.
        name: The dataset's name without its id.
        n: Number of scans, all in imagesTr.
        seed: Together with ``dataset_id``, sets all scans.
        shape: Voxels (z, y, x) of a scan with the mean spacing; the field of view is the same for all scans.
        spacing: Mean spacing in mm.
        spacing_jitter: Largest relative difference of a scan's spacing from the mean, drawn for z and in plane.

    Returns:
        The dataset's folder.

    Raises:
        FileExistsError: The dataset exists already.
    """
    phantoms = _draw_phantoms(n, [seed, dataset_id], shape, spacing, spacing_jitter)
    with _new_dataset(raw, dataset_id, name) as (folder, final):
        for index, phantom in enumerate(phantoms):
            _write_image(phantom, folder / "imagesTr", f"{name}_{index:03d}")
        _write_dataset_json(folder, n, labels=None)
    return final


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
    spacing_jitter: float = 0.1,
) -> Path:
    """Write a raw dataset with labels: imagesTr, labelsTr, and imagesTs, labelsTs for the evaluation.

    Args:
        raw: The folder that nnUNet_raw points to.
        dataset_id: Up to three digits.
        name: The dataset's name without its id.
        n_train: Number of scans for training and validation.
        n_test: Number of scans for testing.
        seed: Together with ``dataset_id``, sets all scans.
        shape: Voxels (z, y, x) of a scan with the mean spacing; the field of view is the same for all scans.
        spacing: Mean spacing in mm.
        spacing_jitter: Largest relative difference of a scan's spacing from the mean, drawn for z and in plane.

    Returns:
        The dataset's folder.

    Raises:
        FileExistsError: The dataset exists already.
    """
    phantoms = _draw_phantoms(n_train + n_test, [seed, dataset_id], shape, spacing, spacing_jitter)
    with _new_dataset(raw, dataset_id, name) as (folder, final):
        for index, phantom in enumerate(phantoms):
            part = "Tr" if index < n_train else "Ts"
            case = f"{name}_{index:03d}"
            _write_image(phantom, folder / f"images{part}", case)
            _write_volume(phantom.labels, phantom.spacing, folder / f"labels{part}" / f"{case}{FILE_ENDING}")
        _write_dataset_json(folder, n_train, labels={"background": 0, **LABELS})
    return final


def _draw_phantoms(
    n: int, key: list[int], shape: tuple[int, int, int], spacing: Vector, jitter: float
) -> Iterator[Phantom]:
    """Yield ``n`` phantoms, each on its own grid; the first ones do not depend on ``n``."""
    rng = np.random.default_rng(key)
    for _ in range(n):
        seed = int(rng.integers(2**31))
        z, plane = 1 + rng.uniform(-jitter, jitter, size=2)
        own_spacing = (round(spacing[0] * z, 2), round(spacing[1] * plane, 2), round(spacing[2] * plane, 2))
        depth, height, width = (
            max(1, round(cells * mean / mm)) for cells, mean, mm in zip(shape, spacing, own_spacing, strict=True)
        )
        yield make_phantom(seed, (depth, height, width), own_spacing)


@contextmanager
def _new_dataset(raw: Path, dataset_id: int, name: str) -> Iterator[tuple[Path, Path]]:
    """A temporary folder, and the dataset's folder that it becomes when all is written."""
    final = raw / f"Dataset{dataset_id:03d}_{name}"
    if final.exists():
        raise FileExistsError(f"{final} exists already; remove it or choose another dataset id")
    temporary = raw / f".{final.name}.partial"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary, final
    os.replace(temporary, final)


def _write_image(phantom: Phantom, folder: Path, case: str) -> None:
    _write_volume(phantom.image, phantom.spacing, folder / f"{case}_0000{FILE_ENDING}")


def _write_volume(volume: NDArray[Any], spacing: Vector, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing(spacing[::-1])
    write_nifti(image, path)


def _write_dataset_json(folder: Path, n_train: int, labels: dict[str, int] | None) -> None:
    content: dict[str, Any] = {"channel_names": {"0": "CT"}, "numTraining": n_train, "file_ending": FILE_ENDING}
    if labels is not None:
        content["labels"] = labels
    (folder / "dataset.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
