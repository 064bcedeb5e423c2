"""Writes the cases of a download as an nnU-Net raw dataset; files are copied, turned, or get other label values."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from nnunetv2.paths import nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets
from tqdm import tqdm

from nnunetv2_pgl.dataset_conversion.downloaded import Case, DownloadedDataset, Rewrite
from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.files import load_json, replacing, write_nifti, write_text

FILE_ENDING = ".nii.gz"
RECORD = "conversion.json"


def write_dataset(dataset: DownloadedDataset, dataset_id: int, *, link: bool = False, processes: int = 1) -> Path:
    """Writes the dataset to a temporary folder and renames that when it is complete.

    A conversion that was interrupted continues where it stopped if it is started again with the same settings.

    Args:
        dataset: The dataset as downloaded.
        dataset_id: Its id in nnU-Net.
        link: Link to files that need no change instead of copying them.
        processes: How many files to write at a time.

    Returns:
        The dataset's folder: imagesTr, imagesTs, labelsTr, labelsTs, dataset.json, splits_final.json (which nnU-Net
        copies to nnUNet_preprocessed when it plans) and conversion.json.

    Raises:
        PGLError: If nnUNet_raw is not set, the id is taken, or a file is damaged.
        OSError: If something cannot be written.
    """
    final = _new_folder(dataset, dataset_id)
    record = _record(dataset, link)
    temporary = final.with_name(f".{final.name}.partial")
    same = False
    with suppress(OSError, ValueError):
        same = load_json(temporary / RECORD) == record
    if not same:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _write_json(temporary / RECORD, record)
    _write_files(dataset, temporary, link, processes)
    _write_json(temporary / "dataset.json", _dataset_json(dataset))
    if dataset.folds:
        _write_json(temporary / "splits_final.json", list(dataset.folds))
    os.replace(temporary, final)
    return final


def _new_folder(dataset: DownloadedDataset, dataset_id: int) -> Path:
    if not nnUNet_raw.is_set():
        raise PGLError("nnUNet_raw is not set: export nnUNet_raw=/path/to/nnUNet_raw, where datasets are kept")
    taken = [str(name) for name in find_candidate_datasets(dataset_id)]
    if taken:
        raise PGLError(
            f"dataset id {dataset_id} is taken by {', '.join(taken)} (in nnUNet_raw, nnUNet_preprocessed or "
            "nnUNet_results): nothing is overwritten; choose another id with -id"
        )
    return Path(os.path.abspath(str(nnUNet_raw)), f"Dataset{dataset_id:03d}_{dataset.name}")


def _write_files(dataset: DownloadedDataset, folder: Path, link: bool, processes: int) -> None:
    """Writes every image and label that is not there yet."""
    write_image = dataset.rewrite_image or partial(place, link=link)
    write_label = dataset.rewrite_label or partial(place, link=link)
    tasks: list[tuple[Rewrite, Case, Path, Path]] = []
    for part, cases in (("Tr", dataset.training), ("Ts", dataset.test)):
        for case in cases:
            image = folder / f"images{part}" / f"{case.name}_0000{FILE_ENDING}"
            tasks.append((write_image, case, case.image, image))
            if case.label is not None:
                label = folder / f"labels{part}" / f"{case.name}{FILE_ENDING}"
                tasks.append((write_label, case, case.label, label))

    def write(task: tuple[Rewrite, Case, Path, Path]) -> None:
        rewrite, case, source, target = task
        target.parent.mkdir(exist_ok=True)
        if not target.exists():
            rewrite(case, source, target)

    with ThreadPoolExecutor(processes) as pool:  # SimpleITK and zlib work without the interpreter's lock
        for _ in tqdm(pool.map(write, tasks), total=len(tasks), desc=dataset.name, unit="file", disable=None):
            pass


def _dataset_json(dataset: DownloadedDataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "channel_names": {"0": "CT"},
        **({} if dataset.labels is None else {"labels": dataset.labels}),
        "numTraining": len(dataset.training),
        "file_ending": FILE_ENDING,
        "licence": dataset.licence.name,
        "reference": dataset.licence.reference,
        "converted_by": "nnunetv2-pgl, pgl_convert",
    }


def _record(dataset: DownloadedDataset, link: bool) -> dict[str, Any]:
    """What was converted and how; the same record means the same files."""
    return {
        "format_version": 1,
        "name": dataset.name,
        "source": os.path.abspath(dataset.source),
        "linked": link,
        "expected": dataset.expected,
        "split": dataset.split,
        "training": [case.name for case in dataset.training],
        "test": [case.name for case in dataset.test],
        "missing": list(dataset.missing),
    }


def _write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def place(case: Case, source: Path, target: Path, *, link: bool) -> None:
    """Copies a file, or links to it; one that is not compressed is compressed in any case."""
    with replacing(target) as temporary:
        temporary.unlink(missing_ok=True)  # a link cannot be made over what was left there
        if source.suffix != ".gz":
            with open(source, "rb") as plain, gzip.open(temporary, "wb", compresslevel=6) as packed:
                shutil.copyfileobj(plain, packed)
        elif link:
            temporary.symlink_to(source.resolve())
        else:
            shutil.copyfile(source, temporary)


def z_first(case: Case, source: Path, target: Path) -> None:
    """Writes a scan or its label with its slices along z.

    Voxels are transposed and flipped together with the header (to the axes left, posterior, superior), so each keeps
    its value and its place in the world.

    Raises:
        PGLError: If the file is damaged, its header differs from the image's, or says that pixels of a slice
            are not square, which no CT has: then the slices lie along another axis than the header says.
    """
    image = _read(source)
    if source != case.image:
        _require_same_grid(image, case, source)
    oriented = sitk.DICOMOrient(image, "LPS")
    x, y, _ = oriented.GetSpacing()
    if abs(x - y) > 0.01 * max(x, y):
        raise PGLError(
            f"{source}: the header says that pixels are {x:g} x {y:g} mm, so it does not say which axis is which "
            "(KiTS19 had such headers before 16 April 2019, see its issues 8 and 15): download it again"
        )
    write_nifti(oriented, target)


def one_class(case: Case, source: Path, target: Path) -> None:
    """Writes a label of one class: 1 wherever it is not 0, so for every instance and for negative values."""
    write_nifti(_read(source) != 0, target)


def _read(path: Path) -> sitk.Image:
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise PGLError(f"{path} cannot be read, it is damaged or incomplete: download it again") from error
    if image.GetDimension() != 3:
        raise PGLError(f"{path} has {image.GetDimension()} dimensions: a single scan has 3")
    return image


def _require_same_grid(label: sitk.Image, case: Case, source: Path) -> None:
    """An image and its label, each turned by its header, fit afterwards only if they did before."""
    image = _read(case.image)
    same = image.GetSize() == label.GetSize() and np.allclose(image.GetDirection(), label.GetDirection(), atol=1e-3)
    if not same or not np.allclose(image.GetSpacing(), label.GetSpacing(), rtol=1e-3):
        raise PGLError(
            f"{case.name}: {source.name} and {case.image.name} differ in size, spacing or direction: "
            "download both again"
        )
