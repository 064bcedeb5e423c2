"""Six tasks of the Medical Segmentation Decathlon (http://medicaldecathlon.com)."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from nnunetv2_pgl.dataset_conversion.downloaded import (
    DEFAULT_SEED,
    DownloadedDataset,
    Licence,
    complete_cases,
    divide,
    files_by_case,
    hold_out,
)
from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.files import load_json

MSD = Licence(
    "CC BY-SA 4.0",
    "http://medicaldecathlon.com",
    "name the source, and pass on what is derived from it under the same licence; commercial use is allowed",
)


class Task(NamedTuple):
    """A task of the decathlon.

    Attributes:
        name: Its name.
        labelled: Number of its training scans.
        unlabelled: Number of its test scans, whose labels are not public.
        num_test: How many of the labelled ones the paper tests on (section 4.2); 0 if it pre-trains on the task.
    """

    name: str
    labelled: int
    unlabelled: int
    num_test: int = 0


TASKS = {
    3: Task("Liver", 131, 70, num_test=65),
    6: Task("Lung", 63, 32),
    7: Task("Pancreas", 281, 139),
    8: Task("HepaticVessel", 303, 140),
    9: Task("Spleen", 41, 20, num_test=21),
    10: Task("Colon", 126, 64),
}


def read_msd(folder: Path, seed: int = DEFAULT_SEED) -> DownloadedDataset:
    """Finds the scans of a task.

    Lung, Pancreas, HepaticVessel and Colon are for pre-training: images alone, training and test scans. Liver and
    Spleen are for fine-tuning: the labelled scans, divided as in the paper.

    Args:
        folder: The unpacked task, such as Task09_Spleen.
        seed: Decides which scans are for testing and for validation.

    Raises:
        PGLError: If the task is another one, its dataset.json is missing or damaged, or there is no scan.
    """
    number, task = _task(folder)
    training, test, labels = _read_dataset_json(folder / "dataset.json")
    notes: tuple[str, ...] = ()
    if (len(training), len(test)) != (task.labelled, task.unlabelled):
        notes = (
            f"dataset.json lists {len(training)} training and {len(test)} test scans, the task was published with "
            f"{task.labelled} training and {task.unlabelled} test scans",
        )
    images = _files(folder / "imagesTr")
    if not task.num_test:
        cases, missing = complete_cases(training, images)
        test_cases, missing_test = complete_cases(test, _files(folder / "imagesTs"))
        if not cases:
            raise PGLError(f"{folder / 'imagesTr'} holds none of the scans that dataset.json lists: unpack it again")
        return DownloadedDataset(
            *(task.name, number, folder, MSD),
            training=tuple(cases.values()),
            test=tuple(test_cases.values()),
            expected=task.labelled + task.unlabelled,
            missing=missing + missing_test,
            notes=notes,
        )
    cases, missing = complete_cases(training, images, _files(folder / "labelsTr"))
    num_test = round(len(training) * task.num_test / task.labelled)  # of a shortened list, the same share
    divided = divide(cases, hold_out(training, num_test, seed), seed)
    if not divided["training"]:
        raise PGLError(f"{folder} holds no complete training scan of those that dataset.json lists")
    return DownloadedDataset(
        *(task.name, number, folder, MSD),
        expected=task.labelled,
        labels=labels,
        missing=missing,
        notes=(*notes, "the decathlon's own test scans have no labels and are not used"),
        **divided,
    )


def _task(folder: Path) -> tuple[int, Task]:
    folder = folder.absolute()
    match = re.fullmatch(r"Task(\d\d)_\w+", folder.name)
    if match is None:
        raise PGLError(f"{folder} is not named as a task of the decathlon: -i takes a folder like Task09_Spleen")
    number = int(match[1])
    if number not in TASKS:
        known = ", ".join(f"Task{n:02d}_{t.name}" for n, t in TASKS.items())
        raise PGLError(
            f"{folder.name} has no part in the paper's experiment ({known}): nnUNetv2_convert_MSD_dataset -i {folder} "
            "converts any task"
        )
    return number, TASKS[number]


def _read_dataset_json(path: Path) -> tuple[list[str], list[str], dict[str, int]]:
    """Names of the training and test cases, and the labels: names and values the other way round than in the file."""
    try:
        content = load_json(path)
        training, test = _case_names(content["training"]), _case_names(content["test"])
        labels = {str(name): int(value) for value, name in content["labels"].items()}
    except FileNotFoundError as error:
        raise PGLError(f"{path} is missing: -i takes the folder that holds it, imagesTr and imagesTs") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise PGLError(
            f"{path} is damaged, or lists no training and test scans and labels ({error!r}): unpack the download again"
        ) from error
    return training, test, dict(sorted(labels.items(), key=lambda label: label[1]))


def _case_names(entries: list[Any]) -> list[str]:
    """From "./imagesTs/x.nii.gz" or {"image": "./imagesTr/x.nii.gz", "label": ...}."""
    paths = [entry["image"] if isinstance(entry, dict) else entry for entry in entries]
    return sorted(PurePosixPath(path).name.removesuffix(".gz").removesuffix(".nii") for path in paths)


def _files(folder: Path) -> dict[str, Path]:
    return files_by_case(folder, rf"{folder.name}/(.+)") if folder.is_dir() else {}
