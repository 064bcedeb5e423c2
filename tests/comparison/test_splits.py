"""Who is tested, trained and validated on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sklearn.model_selection import KFold

from nnunetv2_pgl.errors import PGLError
from pretraining.comparison.splits import Fold, LabelledDataset, Splits, make_splits

NAME = "Dataset007_Small"
MakeRaw = Callable[..., Path]


@pytest.fixture
def make_raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeRaw:
    """Writes a dataset of empty files: nothing here reads an image."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))

    def make(n: int = 20, n_test: int = 0, n_test_labels: int | None = None, **changes: Any) -> Path:
        folder = tmp_path / "nnUNet_raw" / NAME
        content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}
        for part, count in (("Tr", n), ("Ts", n_test)):
            for index in range(count):
                for kind, ending in (("images", "_0000"), ("labels", "")):
                    file = folder / f"{kind}{part}" / f"{part.lower()}_{index:02d}{ending}.nii.gz"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.touch()
        if n_test_labels is not None:
            for file in sorted((folder / "labelsTs").iterdir())[n_test_labels:]:
                file.unlink()
        (folder / "dataset.json").write_text(json.dumps({**content, **changes}))
        return folder

    return make


def splits_of(**options: Any) -> Splits:
    defaults = {"test_fraction": None, "test_cases": None, "max_validation": None}
    return make_splits(LabelledDataset.load(NAME), **{**defaults, **options})


def test_held_out_cases_are_in_no_fold_and_always_the_same(make_raw: MakeRaw) -> None:
    make_raw(20)
    splits = splits_of().with_seeds(3)
    assert len(splits.test) == 6  # 0.3 of 20
    assert splits.test == splits_of(max_validation=1).test
    assert splits.test != tuple(f"tr_{index:02d}" for index in range(6))
    everybody = {f"tr_{index:02d}" for index in range(20)}
    for fold in splits.folds:
        for order in fold.training_by_seed:
            assert {*order, *fold.validation} == everybody - set(splits.test)
            assert not set(order) & set(fold.validation)
    validated = [case for fold in splits.folds for case in fold.validation]
    assert sorted(validated) == sorted(everybody - set(splits.test))
    assert len(splits_of(test_fraction=0.5).test) == 10


def test_folds_are_nnunet_s_of_the_other_cases(make_raw: MakeRaw) -> None:
    make_raw(20)
    splits = splits_of()
    rest = sorted({f"tr_{index:02d}" for index in range(20)} - set(splits.test))
    for fold, (training, validation) in zip(
        splits.folds, KFold(5, shuffle=True, random_state=12345).split(rest), strict=True
    ):
        assert sorted(fold.training_by_seed[0]) == [rest[index] for index in training]
        assert list(fold.validation) == [rest[index] for index in validation]


def test_stored_folds_are_used_less_the_test_cases_and_left_as_they_are(make_raw: MakeRaw, tmp_path: Path) -> None:
    make_raw(10)
    cases = [f"tr_{index:02d}" for index in range(10)]
    file = tmp_path / "nnUNet_preprocessed" / NAME / "splits_final.json"
    file.parent.mkdir()
    file.write_text(json.dumps([{"train": cases[:6], "val": cases[6:]}, {"train": cases[4:], "val": cases[:4]}]))
    before = file.read_bytes()
    splits = splits_of(test_cases=("tr_01", "tr_07"))
    first, second = splits.folds
    assert (sorted(first.training_by_seed[0]), first.validation) == (
        ["tr_00", "tr_02", "tr_03", "tr_04", "tr_05"],
        ("tr_06", "tr_08", "tr_09"),
    )
    assert second.validation == ("tr_00", "tr_02", "tr_03")
    assert file.read_bytes() == before
    with pytest.raises(PGLError, match="no training or no validation case"):
        splits_of(test_cases=tuple(cases[6:]))
    file.write_text(json.dumps([{"train": ["stranger"], "val": cases}]))
    with pytest.raises(PGLError, match=r"splits_final\.json names stranger"):
        splits_of(test_cases=("tr_01",))


def test_stored_folds_count_before_nnunet_has_planned(make_raw: MakeRaw) -> None:
    """nnU-Net's planner copies the file from the raw folder, where `pgl_convert` writes it."""
    folder = make_raw(10, n_test=2)
    cases = [f"tr_{index:02d}" for index in range(10)]
    (folder / "splits_final.json").write_text(json.dumps([{"train": cases[:7], "val": cases[7:]}]))
    [fold] = splits_of().folds
    assert (sorted(fold.training_by_seed[0]), list(fold.validation)) == (cases[:7], cases[7:])


def test_a_small_fraction_is_part_of_a_larger_one(make_raw: MakeRaw) -> None:
    make_raw(40)
    splits = splits_of().with_seeds(3)
    for fold in splits.folds:
        n = len(fold.training_by_seed[0])
        for seed in range(3):
            parts = [fold.training(fraction, seed) for fraction in (0.001, 0.05, 0.2, 0.5, 1.0)]
            assert [len(part) for part in parts] == [1, max(1, round(0.05 * n)), round(0.2 * n), round(0.5 * n), n]
            for small, large in pairwise(parts):
                assert set(small) <= set(large)
        assert len({frozenset(fold.training(0.5, seed)) for seed in range(3)}) == 3


def test_labelled_images_ts_are_the_test_set(make_raw: MakeRaw) -> None:
    make_raw(10, n_test=3)
    splits = splits_of()
    assert splits.test == ("ts_00", "ts_01", "ts_02")
    assert len(splits.folds[0].training_by_seed[0]) + len(splits.folds[0].validation) == 10
    assert len(splits_of(test_fraction=0.2).test) == 2  # asked for
    assert splits_of(test_cases=("ts_01", "tr_05")).test == ("tr_05", "ts_01")


def test_a_test_image_without_a_label_leaves_images_ts_out(make_raw: MakeRaw) -> None:
    make_raw(10, n_test=3, n_test_labels=2)
    splits = splits_of()
    assert len(splits.test) == 3
    assert all(case.startswith("tr_") for case in splits.test)


def test_named_cases_must_exist(make_raw: MakeRaw) -> None:
    make_raw(10)
    with pytest.raises(PGLError, match="--test_cases: tr_99"):
        splits_of(test_cases=("tr_01", "tr_99"))


def test_what_is_stored_counts(make_raw: MakeRaw, tmp_path: Path) -> None:
    """A stored order stays, whatever a later version would draw; new seeds are added."""
    make_raw(10)
    splits = splits_of()
    stored = replace(
        splits, folds=tuple(Fold(fold.validation, (tuple(sorted(fold.training_by_seed[0])),)) for fold in splits.folds)
    )
    file = tmp_path / "splits.json"
    file.write_text(json.dumps(asdict(stored)))
    loaded = Splits.load(file)
    assert loaded == stored
    assert loaded.with_seeds(2).folds[0].training_by_seed == (
        stored.folds[0].training_by_seed[0],
        splits.with_seeds(2).folds[0].training_by_seed[1],
    )
    file.write_text("{}")
    with pytest.raises(PGLError, match=r"splits\.json: not the splits"):
        Splits.load(file)


def test_few_validation_cases(make_raw: MakeRaw) -> None:
    make_raw(20)
    whole, few = splits_of(), splits_of(max_validation=1)
    assert [fold.validation for fold in few.folds] == [fold.validation[:1] for fold in whole.folds]
    assert [fold.training_by_seed for fold in few.folds] == [fold.training_by_seed for fold in whole.folds]


def test_labels_regions_and_the_ignore_label(make_raw: MakeRaw) -> None:
    make_raw(5, labels={"background": 0, "whole": [1, 2], "core": 2, "ignore": 3})
    dataset = LabelledDataset.load(NAME)
    assert dataset.classes == {"whole": (1, 2), "core": 2}
    assert dataset.ignore_label == 3


def test_files_listed_in_dataset_json(make_raw: MakeRaw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("t1.nii.gz", "t2.nii.gz", "truth.nii.gz"):
        (elsewhere / name).touch()
    monkeypatch.setenv("ELSEWHERE", str(elsewhere))
    images = ["$ELSEWHERE/t1.nii.gz", "../../elsewhere/t2.nii.gz"]
    make_raw(1, dataset={"patient": {"images": images, "label": "$ELSEWHERE/truth.nii.gz"}})
    case = LabelledDataset.load(NAME).training["patient"]
    assert case.images == (elsewhere / "t1.nii.gz", elsewhere / "t2.nii.gz")
    assert case.label == elsewhere / "truth.nii.gz"


def test_channels_stay_together(make_raw: MakeRaw) -> None:
    folder = make_raw(5)
    (folder / "imagesTr" / "tr_03_0001.nii.gz").touch()
    images = LabelledDataset.load(NAME).training["tr_03"].images
    assert [image.name for image in images] == ["tr_03_0000.nii.gz", "tr_03_0001.nii.gz"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "labelsTr" / "tr_03.nii.gz").unlink(), r"tr_03\.nii\.gz is missing"),
        (lambda folder: (folder / "dataset.json").write_text('{"file_ending": ".nii.gz"}'), "names no labels"),
        (lambda folder: (folder / "dataset.json").write_text("{"), r"dataset\.json: cannot be read"),
    ],
)
def test_a_dataset_that_cannot_be_compared_on(make_raw: MakeRaw, damage: Any, message: str) -> None:
    damage(make_raw(5))
    with pytest.raises(PGLError, match=message):
        LabelledDataset.load(NAME)


def test_too_few_cases(make_raw: MakeRaw) -> None:
    make_raw(6)
    with pytest.raises(PGLError, match="4 cases beside the test set"):
        splits_of()
