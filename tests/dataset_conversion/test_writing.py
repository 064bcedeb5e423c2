"""A dataset is there completely or not at all, none is overwritten, and nnU-Net and pgl_pretrain take it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

from nnunetv2_pgl.dataset_conversion import writing
from nnunetv2_pgl.dataset_conversion.datasets import read_bcv, read_kits19, read_ribfrac
from nnunetv2_pgl.dataset_conversion.msd import read_msd
from nnunetv2_pgl.dataset_conversion.writing import write_dataset
from nnunetv2_pgl.errors import PGLError
from pretraining.data import find_scans

Make = Callable[..., Path]


def content(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def test_nnunet_accepts_a_labelled_dataset(raw: Path, kits19: Make) -> None:
    dataset = read_kits19(kits19(range(12)))
    folder = write_dataset(dataset, 64, processes=2)
    verify_dataset_integrity(str(folder), num_processes=1)
    labels = {part: {path.name for path in (folder / f"labels{part}").iterdir()} for part in ("Tr", "Ts")}
    assert labels["Tr"] == {f"{case.name}.nii.gz" for case in dataset.training}
    assert labels["Ts"] == {f"{case.name}.nii.gz" for case in dataset.test}


def test_nnunet_takes_the_folds_when_it_plans(raw: Path, bcv: Path) -> None:
    folder = write_dataset(read_bcv(bcv), 17)
    preprocessed = raw.parent / "nnUNet_preprocessed" / folder.name
    preprocessed.mkdir()
    (preprocessed / "dataset_fingerprint.json").write_text("{}")
    ExperimentPlanner(17)
    splits = json.loads((preprocessed / "splits_final.json").read_text())
    trained = {name for fold in splits for name in fold["train"] + fold["val"]}
    assert len(splits[0]["val"]) == 3
    assert trained == {path.name.removesuffix(".nii.gz") for path in (folder / "labelsTr").iterdir()}
    assert not trained & {path.name.removesuffix(".nii.gz") for path in (folder / "labelsTs").iterdir()}


def test_pretraining_finds_every_scan(raw: Path, ribfrac: Make, decathlon: Make) -> None:
    write_dataset(read_ribfrac(ribfrac([1, 301, 421, 501])), 15)
    write_dataset(read_msd(decathlon("Task06_Lung", 5, 3)), 6)
    scans, skipped = find_scans(["15", "6"])
    assert len(scans) == 12
    assert not skipped
    assert all(scan.is_ct == (True,) for scan in scans)


def test_the_record_lists_the_cases(raw: Path, bcv: Path) -> None:
    (bcv / "Training" / "img" / "img0003.nii.gz").unlink()
    folder = write_dataset(read_bcv(bcv, "published"), 17)
    record = json.loads((folder / "conversion.json").read_text())
    assert record["test"] == [f"img{n:04d}" for n in range(32, 41)]
    assert len(record["training"]) == json.loads((folder / "dataset.json").read_text())["numTraining"] == 20
    assert record["missing"] == ["img0003: image missing"]
    assert record["split"] == {"rule": "published", "seed": 12345}


def test_copies_links_and_uncompressed_files(raw: Path, bcv: Path) -> None:
    source = bcv / "Training" / "img" / "img0001.nii.gz"
    packed = bcv / "Training" / "img" / "img0002.nii.gz"
    values = gzip.decompress(packed.read_bytes())
    packed.with_suffix("").write_bytes(values)
    packed.unlink()
    folders = [write_dataset(read_bcv(bcv, "published"), number, link=number == 18) for number in (17, 18)]
    for folder, linked in zip(folders, (False, True), strict=True):
        copy = folder / "imagesTr" / "img0001_0000.nii.gz"
        assert copy.read_bytes() == source.read_bytes()
        assert copy.is_symlink() == linked
        compressed = folder / "imagesTr" / "img0002_0000.nii.gz"
        assert gzip.decompress(compressed.read_bytes()) == values
        assert not compressed.is_symlink()


def test_an_existing_dataset_is_left_alone(raw: Path, bcv: Path) -> None:
    for place in (raw, raw.parent / "nnUNet_preprocessed"):
        taken = place / "Dataset017_Other"
        taken.mkdir()
        (taken / "mine").touch()
        with pytest.raises(PGLError, match=r"17 is taken by Dataset017_Other.*-id"):
            write_dataset(read_bcv(bcv), 17)
        assert content(taken) == ["mine"]
        (taken / "mine").unlink()
        taken.rmdir()
    assert not list(raw.iterdir())


def test_unset_raw_folder_is_named(monkeypatch: pytest.MonkeyPatch, bcv: Path) -> None:
    monkeypatch.delenv("nnUNet_raw", raising=False)
    with pytest.raises(PGLError, match="export nnUNet_raw="):
        write_dataset(read_bcv(bcv), 17)


def test_an_interrupted_conversion_shows_no_dataset_and_goes_on(
    raw: Path, bcv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = read_bcv(bcv)
    copied: list[Path] = []
    room = [9]

    def copy(source: Path, target: Path) -> None:
        """Stops in the middle of a file when there is no room left."""
        full = len(copied) >= room[0]
        target.write_bytes(source.read_bytes()[: 20 if full else None])
        if full:
            raise OSError("no space left on device")
        copied.append(source)

    monkeypatch.setattr(writing.shutil, "copyfile", copy)
    with pytest.raises(OSError, match="no space"):
        write_dataset(dataset, 17)
    assert not (raw / "Dataset017_BCV").exists()
    assert len(copied) == 9
    room[0] = 100
    folder = write_dataset(dataset, 17)
    assert len(copied) == len(set(copied)) == 60  # nothing twice
    assert [path.name for path in raw.iterdir()] == ["Dataset017_BCV"]
    monkeypatch.undo()
    monkeypatch.setenv("nnUNet_raw", str(raw))
    other = write_dataset(replace(dataset, name="Whole"), 18)
    for name in content(other):
        if name != "conversion.json" and name != "dataset.json":
            assert (folder / name).read_bytes() == (other / name).read_bytes()
    assert content(folder) == content(other)


def test_another_split_does_not_go_on_with_the_files_of_the_first(
    raw: Path, bcv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("nnunetv2_pgl.dataset_conversion.writing.os.replace", _fail)
        with pytest.raises(OSError, match="stopped"):
            write_dataset(read_bcv(bcv), 17)
    folder = write_dataset(read_bcv(bcv, "published"), 17)
    assert len(list((folder / "imagesTr").iterdir())) == 21
    assert len(list((folder / "imagesTs").iterdir())) == 9


def _fail(*_: object) -> None:
    raise OSError("stopped")


def test_a_damaged_file_is_named(raw: Path, kits19: Make) -> None:
    folder = kits19(range(3))
    damaged = folder / "data" / "case_00001" / "segmentation.nii.gz"
    damaged.write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(PGLError, match=r"case_00001.segmentation\.nii\.gz cannot be read") as error:
        write_dataset(read_kits19(folder), 64)
    assert "\n" not in str(error.value)
    assert not (raw / "Dataset064_KiTS19").exists()
