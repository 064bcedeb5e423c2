"""Downloads in miniature: the real folders and file names, a few voxels each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import nibabel
import numpy as np
import pytest

WriteNifti = Callable[..., Path]

# KiTS19: slices first and downwards, then rows to the back, then columns to the left; nibabel's world is RAS.
KITS_AFFINE = np.array([[0, 0, -0.9, 0], [0, -0.9, 0, 0], [-3.0, 0, 0, 0], [0, 0, 0, 1]])


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path / "nnUNet_raw"


@pytest.fixture
def write_nifti() -> WriteNifti:
    def write(path: Path, values: np.ndarray | None = None, affine: np.ndarray | None = None) -> Path:
        """Values are in NIfTI order (i, j, k)."""
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.zeros((4, 4, 3), np.int16) if values is None else values
        nibabel.save(nibabel.Nifti1Image(values, np.diag([0.9, 0.9, 3, 1]) if affine is None else affine), path)
        return path

    return write


@pytest.fixture
def ribfrac(tmp_path: Path, write_nifti: WriteNifti) -> Callable[..., Path]:
    """The archives of Zenodo, unpacked into one folder."""

    def make(numbers: Iterable[int], labels: dict[int, np.ndarray] | None = None) -> Path:
        folder = tmp_path / "RibFrac"
        scan = write_nifti(tmp_path / "one.nii.gz")
        for number in numbers:
            place = folder / _ribfrac_folder(number, "images") / f"RibFrac{number}-image.nii.gz"
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(scan, place)
        for number, mask in (labels or {}).items():
            write_nifti(folder / _ribfrac_folder(number, "labels") / f"RibFrac{number}-label.nii.gz", mask)
        header = "public_id,label_id,label_code\n"
        (folder / "ribfrac-train-info-1.csv").write_text(header + "RibFrac1,0,0\nRibFrac1,1,-1\nRibFrac1,2,4\n")
        return folder

    return make


def _ribfrac_folder(number: int, kind: str) -> str:
    if number <= 300:
        return f"ribfrac-train-{kind}-1/Part1"
    if number <= 420:
        return f"ribfrac-train-{kind}-2/Part2"
    return f"ribfrac-{'val' if number <= 500 else 'test'}-{kind}"


@pytest.fixture
def decathlon(tmp_path: Path, write_nifti: WriteNifti) -> Callable[..., Path]:
    """A task of the decathlon, with the hidden files that its archives hold."""

    def make(task: str, training: int, test: int) -> Path:
        folder, stem = tmp_path / task, task.split("_")[1].lower()
        scan = write_nifti(tmp_path / "one.nii.gz")
        names = {"Tr": [f"{stem}_{n}" for n in range(training)], "Ts": [f"{stem}_{training + n}" for n in range(test)]}
        places = [folder / f"images{part}" / f"{name}.nii.gz" for part in names for name in names[part]]
        places += [folder / "labelsTr" / f"{name}.nii.gz" for name in names["Tr"]]
        for place in places:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(scan, place)
            place.with_name(f"._{place.name}").write_bytes(b"Mac OS X")
        content = {
            "name": task,
            "modality": {"0": "CT"},
            "labels": {"0": "background", "1": stem, "2": "cancer"},
            "training": [
                {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in names["Tr"]
            ],
            "test": [f"./imagesTs/{name}.nii.gz" for name in names["Ts"]],
        }
        (folder / "dataset.json").write_text(json.dumps(content))
        return folder

    return make


@pytest.fixture
def kits19(tmp_path: Path, write_nifti: WriteNifti) -> Callable[..., Path]:
    """Cases of 5 slices of 6 x 7 pixels, all voxels different; every second voxel is labelled."""

    def make(numbers: Iterable[int], affine: np.ndarray = KITS_AFFINE) -> Path:
        folder = tmp_path / "kits19"
        for number in numbers:
            values = np.arange(5 * 6 * 7, dtype=np.float32).reshape(5, 6, 7) + 1000 * number
            case = folder / "data" / f"case_{number:05d}"
            write_nifti(case / "imaging.nii.gz", values, affine)
            write_nifti(case / "segmentation.nii.gz", (values % 2).astype(np.uint8), affine)
        return folder

    return make


@pytest.fixture
def bcv(tmp_path: Path, write_nifti: WriteNifti) -> Path:
    """RawData.zip, unpacked."""
    folder = tmp_path / "RawData"
    for number in (*range(1, 11), *range(21, 41)):
        write_nifti(folder / "Training" / "img" / f"img{number:04d}.nii.gz")
        write_nifti(folder / "Training" / "label" / f"label{number:04d}.nii.gz")
    write_nifti(folder / "Testing" / "img" / "img0061.nii.gz")
    return folder
