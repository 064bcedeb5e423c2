"""The cases of a labelled nnU-Net data set."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_raw

from pretraining.comparison.errors import ComparisonError
from pretraining.comparison.folder import read_json


@dataclass(frozen=True)
class Case:
    """A labelled case: one image per channel, and the segmentation."""

    images: tuple[Path, ...]
    label: Path


@dataclass(frozen=True)
class LabelledDataset:
    """An nnU-Net data set in its raw form.

    Attributes:
        name: DatasetXXX_Name.
        file_ending: Of images and segmentations.
        classes: Label of each foreground class, or the labels of each region.
        ignore_label: Label of voxels that count for nothing, if there is one.
        training: Cases of imagesTr by name.
        test: Those of imagesTs, if every one of them has a label; else none.
    """

    name: str
    file_ending: str
    classes: Mapping[str, int | tuple[int, ...]]
    ignore_label: int | None
    training: Mapping[str, Case]
    test: Mapping[str, Case]

    @classmethod
    def load(cls, name: str) -> LabelledDataset:
        """Lists the files; reads no image.

        Raises:
            ComparisonError: Images, labels or the list of labels are missing.
        """
        folder = Path(nnUNet_raw) / name
        content = read_json(folder / "dataset.json")
        if not content.get("labels") or "file_ending" not in content:
            raise ComparisonError(f"{folder / 'dataset.json'}: names no labels or no file_ending: no labelled data set")
        ending = str(content["file_ending"])
        training = _listed(folder, content) if "dataset" in content else _cases(folder, "Tr", ending)
        if not training:
            raise ComparisonError(f"{folder / 'imagesTr'} holds no image that ends with {ending}")
        unlabelled = [case for case, files in training.items() if not files.label.is_file()]
        if unlabelled:
            raise ComparisonError(f"{training[unlabelled[0]].label} is missing: every case of imagesTr needs its label")
        test = _cases(folder, "Ts", ending)
        if not all(case.label.is_file() for case in test.values()):
            test = {}
        twice = sorted(test.keys() & training.keys())
        if twice:
            raise ComparisonError(f"{folder}: {twice[0]} is in imagesTr and in imagesTs; rename one of them")
        ignore = content["labels"].get("ignore")
        ignore_label = None if ignore is None else int(ignore)
        return cls(name, ending, _classes(content["labels"]), ignore_label, training, test)

    def case(self, name: str) -> Case:
        """A case of either folder."""
        return self.training[name] if name in self.training else self.test[name]


def _cases(folder: Path, part: str, ending: str) -> dict[str, Case]:
    """Cases of imagesTr or imagesTs, with the channels in their order."""
    pattern = re.compile(rf"(.+)_\d{{4}}{re.escape(ending)}")
    images: dict[str, list[Path]] = {}
    source = folder / f"images{part}"
    for file in sorted(source.iterdir()) if source.is_dir() else []:
        match = pattern.fullmatch(file.name)
        if match:
            images.setdefault(match[1], []).append(file)
    return {name: Case(tuple(files), folder / f"labels{part}" / f"{name}{ending}") for name, files in images.items()}


def _listed(folder: Path, content: Mapping[str, Any]) -> dict[str, Case]:
    """Cases whose files dataset.json lists, as nnU-Net resolves them."""

    def resolve(path: str) -> Path:
        return Path(os.path.abspath(folder / os.path.expandvars(path)))

    listed = content["dataset"].items()
    return {str(k): Case(tuple(resolve(i) for i in files["images"]), resolve(files["label"])) for k, files in listed}


def _classes(labels: Mapping[str, Any]) -> dict[str, int | tuple[int, ...]]:
    return {
        name: tuple(map(int, label)) if isinstance(label, (list, tuple)) else int(label)
        for name, label in labels.items()
        if name not in ("background", "ignore")
    }
