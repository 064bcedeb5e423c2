"""What is found in each download, what is missing, and which part each scan goes to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_pgl.dataset_conversion.datasets import BCV_LABELS, read_bcv, read_kits19, read_ribfrac
from nnunetv2_pgl.dataset_conversion.downloaded import Case, DownloadedDataset, image_files
from nnunetv2_pgl.dataset_conversion.msd import TASKS, read_msd
from nnunetv2_pgl.dataset_conversion.writing import write_dataset
from nnunetv2_pgl.errors import PGLError

Make = Callable[..., Path]


def names(cases: tuple[Case, ...]) -> list[str]:
    return [case.name for case in cases]


def assert_split(dataset: DownloadedDataset, training: int, test: int) -> None:
    assert len(dataset.training) == training
    assert len(dataset.test) == test
    assert not set(names(dataset.training)) & set(names(dataset.test))
    for fold in dataset.folds:
        assert sorted(fold["train"] + fold["val"]) == sorted(names(dataset.training))


def test_ribfrac_for_pretraining_has_660_images_and_no_labels(ribfrac: Make) -> None:
    dataset = read_ribfrac(ribfrac(range(1, 661)))
    assert names(dataset.training) == [f"RibFrac{n}" for n in range(1, 661)]
    assert dataset.expected == 660
    assert dataset.labels is None
    assert not dataset.missing + dataset.test + dataset.notes


def test_ribfrac_is_found_under_other_names_and_unpacked(tmp_path: Path, ribfrac: Make) -> None:
    folder = ribfrac([1, 301, 421, 501])
    shutil.move(folder / "ribfrac-test-images", folder / "test")
    shutil.move(folder / "ribfrac-train-images-2" / "Part2", folder / "training images 2")
    inner = folder / "ribfrac-val-images" / "RibFrac421-image.nii"
    inner.mkdir()
    (folder / "ribfrac-val-images" / "RibFrac421-image.nii.gz").unlink()
    (inner / "RibFrac421-image.nii").touch()
    dataset = read_ribfrac(folder)
    assert names(dataset.training) == ["RibFrac1", "RibFrac301", "RibFrac421", "RibFrac501"]
    assert dataset.missing[0] == "RibFrac2: image missing"
    assert len(dataset.missing) == 656


def test_ribfrac_parts_with_labels(ribfrac: Make) -> None:
    mask = np.zeros((4, 4, 3), np.int16)
    dataset = read_ribfrac(ribfrac([1, 2, 421, 501, 700], {1: mask, 421: mask}), with_labels=True)
    assert names(dataset.training) == ["RibFrac1", "RibFrac421"]
    assert names(dataset.test) == ["RibFrac501"]
    assert dataset.folds == ({"train": ["RibFrac1"], "val": ["RibFrac421"]},)
    assert "RibFrac2: label missing" in dataset.missing
    assert "RibFrac502: image missing" in dataset.missing
    assert "RibFrac3: image and label missing" in dataset.missing
    assert len(dataset.training) + len(dataset.test) + len(dataset.missing) == 660
    assert "RibFrac700" in dataset.notes[0]


def test_ribfrac_counts_a_fracture_of_unknown_type_as_a_fracture(raw: Path, ribfrac: Make) -> None:
    mask = np.zeros((4, 4, 3), np.int16)
    mask[0, 0, 0], mask[1, 1, 1], mask[2, 2, 2] = -1, 1, 17
    folder = write_dataset(read_ribfrac(ribfrac([1, 421], {1: mask, 421: 0 * mask}), with_labels=True), 15)
    written = sitk.ReadImage(str(folder / "labelsTr" / "RibFrac1.nii.gz"))
    expected = (mask.transpose() != 0).astype(np.uint8)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), expected)
    original = sitk.ReadImage(str(next(folder.parent.parent.rglob("RibFrac1-label.nii.gz"))))
    assert written.GetSpacing() == original.GetSpacing()
    assert written.GetDirection() == original.GetDirection()


def test_hidden_files_and_folders_are_passed_over(ribfrac: Make) -> None:
    folder = ribfrac([1])
    scan = next(folder.rglob("RibFrac1-image.nii.gz"))
    for copy in (scan.with_name(f"._{scan.name}"), folder / ".Trash" / scan.name, folder / "__MACOSX" / scan.name):
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(scan, copy)
    assert list(image_files(folder)) == [scan]
    assert names(read_ribfrac(folder).training) == ["RibFrac1"]


def test_a_scan_that_is_there_twice_is_refused(ribfrac: Make) -> None:
    folder = ribfrac([1])
    shutil.copytree(folder / "ribfrac-train-images-1", folder / "copy")
    with pytest.raises(PGLError, match=r"RibFrac1 is there twice, as .*copy.* and .*ribfrac-train-images-1"):
        read_ribfrac(folder)


def test_decathlon_for_pretraining_takes_its_test_scans_too(decathlon: Make) -> None:
    assert sum(task.labelled + task.unlabelled for task in TASKS.values() if not task.num_test) == 1148
    dataset = read_msd(decathlon("Task06_Lung", 63, 32))
    assert_split(dataset, 63, 32)
    assert dataset.expected == 95
    assert dataset.labels is None
    assert not dataset.missing
    assert not any(case.name.startswith(".") for case in dataset.training)
    assert not any(case.label for case in dataset.training)


@pytest.mark.parametrize(
    ("task", "counts", "split"), [("Task03_Liver", (131, 70), (66, 65)), ("Task09_Spleen", (41, 20), (20, 21))]
)
def test_decathlon_for_finetuning_has_the_papers_split(
    decathlon: Make, task: str, counts: tuple[int, int], split: tuple[int, int]
) -> None:
    dataset = read_msd(decathlon(task, *counts))
    assert_split(dataset, *split)
    stem = task.split("_")[1].lower()
    assert dataset.labels == {"background": 0, stem: 1, "cancer": 2}
    assert all(case.label for case in dataset.training + dataset.test)


def test_decathlon_names_what_is_missing(decathlon: Make) -> None:
    folder = decathlon("Task09_Spleen", 41, 20)
    full = read_msd(folder)
    (folder / "imagesTr" / "spleen_3.nii.gz").unlink()
    (folder / "labelsTr" / "spleen_5.nii.gz").unlink()
    rest = read_msd(folder)
    assert rest.missing == ("spleen_3: image missing", "spleen_5: label missing")
    assert set(names(rest.training)) == set(names(full.training)) - {"spleen_3", "spleen_5"}
    assert set(names(rest.test)) == set(names(full.test)) - {"spleen_3", "spleen_5"}


def test_decathlon_with_a_shortened_list_says_so_and_holds_out_the_same_share(decathlon: Make) -> None:
    dataset = read_msd(decathlon("Task03_Liver", 12, 0))
    assert_split(dataset, 6, 6)
    assert "lists 12 training" in dataset.notes[0]


def test_kits19_has_the_papers_split(kits19: Make) -> None:
    dataset = read_kits19(kits19(range(210)))
    assert_split(dataset, 105, 105)
    assert dataset.expected == 210
    assert not dataset.missing
    other = read_kits19(dataset.source / "data", seed=1)
    assert set(names(other.test)) != set(names(dataset.test))


def test_kits19_without_some_images(kits19: Make) -> None:
    folder = kits19([*range(12), 210])
    for case in ("case_00000", "case_00007"):
        (folder / "data" / case / "imaging.nii.gz").unlink()
    (folder / "data" / "case_00210" / "segmentation.nii.gz").unlink()
    dataset = read_kits19(folder)
    assert dataset.missing[:2] == ("case_00000: image missing", "case_00007: image missing")
    assert dataset.missing[2] == "case_00012: image and label missing"
    assert len(dataset.training) + len(dataset.test) == 10
    assert dataset.notes == ("1 scans without labels are not used",)


def test_kits19_as_cloned_says_how_to_get_the_images(kits19: Make) -> None:
    folder = kits19(range(3))
    for image in folder.rglob("imaging.nii.gz"):
        image.unlink()
    with pytest.raises(PGLError, match=r"python3 -m starter_code\.get_imaging"):
        read_kits19(folder)


def test_a_later_kits_is_refused(kits19: Make) -> None:
    with pytest.raises(PGLError, match=r"case_00299.*later KiTS"):
        read_kits19(kits19([0, 299]))


def test_bcv_splits_and_organs(bcv: Path) -> None:
    assert_split(read_bcv(bcv), 15, 15)
    published = read_bcv(bcv, "published")
    assert_split(published, 21, 9)
    assert names(published.test) == [f"img{n:04d}" for n in range(32, 41)]
    assert names(published.training)[9:11] == ["img0010", "img0021"]
    assert published.training[0].label == bcv / "Training" / "label" / "label0001.nii.gz"
    assert published.notes == ("1 scans without labels are not used",)
    assert list(BCV_LABELS.values()) == list(range(14))
    assert (BCV_LABELS["spleen"], BCV_LABELS["liver"], BCV_LABELS["pancreas"], BCV_LABELS["left adrenal gland"]) == (
        1,
        6,
        11,
        13,
    )


def test_bcv_without_a_label(bcv: Path) -> None:
    (bcv / "Training" / "label" / "label0007.nii.gz").unlink()
    dataset = read_bcv(bcv)
    assert dataset.missing == ("img0007: label missing",)
    assert len(dataset.training) + len(dataset.test) == 29


@pytest.mark.parametrize("read", [read_ribfrac, read_kits19, read_bcv])
def test_nothing_to_convert_is_one_line(tmp_path: Path, read: Callable[..., DownloadedDataset]) -> None:
    (tmp_path / "empty").mkdir()
    for folder, message in ((tmp_path / "empty", "looked for"), (tmp_path / "no such", "is not a folder")):
        with pytest.raises(PGLError, match=message) as error:
            read(folder)
        assert "\n" not in str(error.value)


def test_averaged_images_are_no_bcv(tmp_path: Path, write_nifti: Make) -> None:
    write_nifti(tmp_path / "averaged-training-images" / "DET0000101_avg.nii.gz")
    with pytest.raises(PGLError, match=r"not the abdominal scans.*RawData\.zip"):
        read_bcv(tmp_path)


def test_what_is_no_task_of_the_decathlon(tmp_path: Path, decathlon: Make) -> None:
    with pytest.raises(PGLError, match="named as a task"):
        read_msd(tmp_path)
    with pytest.raises(PGLError, match="nnUNetv2_convert_MSD_dataset"):
        read_msd(decathlon("Task05_Prostate", 2, 2))
    folder = decathlon("Task10_Colon", 2, 2)
    (folder / "dataset.json").write_text(json.dumps({"training": []}))
    with pytest.raises(PGLError, match="lists no training and test scans"):
        read_msd(folder)
    (folder / "dataset.json").write_text(json.dumps({"training": [{"label": "x"}], "test": [], "labels": {}}))
    with pytest.raises(PGLError, match=r"damaged.*KeyError\('image'\)"):
        read_msd(folder)
    (folder / "dataset.json").write_text("{")
    with pytest.raises(PGLError, match=r"dataset\.json is damaged.*JSONDecodeError"):
        read_msd(folder)
    (folder / "dataset.json").unlink()
    with pytest.raises(PGLError, match=r"dataset\.json is missing"):
        read_msd(folder)
