import json
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from pretraining.demo.datasets import write_labelled_dataset, write_unlabelled_dataset
from pretraining.demo.phantoms import LABELS

GRID = {"shape": (10, 20, 24), "spacing": (28.0, 16.0, 16.0)}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labelled_dataset(tmp_path_factory.mktemp("raw"), 502, "Torso", 3, 2, seed=1, **GRID)


def test_labelled_dataset_passes_nnunets_own_check(labelled: Path) -> None:
    assert labelled.name == "Dataset502_Torso"
    verify_dataset_integrity(str(labelled), num_processes=1)


def test_labelled_dataset_has_a_test_set_with_truth(labelled: Path) -> None:
    for images, labels, n in (("imagesTr", "labelsTr", 3), ("imagesTs", "labelsTs", 2)):
        cases = {path.name.removesuffix("_0000.nii.gz") for path in (labelled / images).iterdir()}
        assert len(cases) == n
        assert cases == {path.name.removesuffix(".nii.gz") for path in (labelled / labels).iterdir()}
    assert json.loads((labelled / "dataset.json").read_text())["labels"] == {"background": 0, **LABELS}


def test_images_come_back_through_nnunets_reader(labelled: Path) -> None:
    spacings = set()
    for path in sorted((labelled / "imagesTr").iterdir()):
        case = path.name.removesuffix("_0000.nii.gz")
        image, properties = SimpleITKIO().read_images([str(path)])
        labels, _ = SimpleITKIO().read_seg(str(labelled / "labelsTr" / f"{case}.nii.gz"))
        extent = np.asarray(image.shape[1:]) * properties["spacing"]
        assert np.abs(extent - (280, 320, 384)).max() < 17  # the field of view stays, within a voxel
        assert image[0][labels[0] == LABELS["lungs"]].mean() < -500
        spacings.add(tuple(np.round(properties["spacing"], 2)))
    assert len(spacings) == 3


def test_unlabelled_dataset_has_no_labels(tmp_path: Path) -> None:
    folder = write_unlabelled_dataset(tmp_path, 501, "Plain", 2, seed=1, **GRID)
    assert sorted(path.name for path in folder.iterdir()) == ["dataset.json", "imagesTr"]
    assert sorted(path.name for path in (folder / "imagesTr").iterdir()) == [
        "Plain_000_0000.nii.gz",
        "Plain_001_0000.nii.gz",
    ]
    content = json.loads((folder / "dataset.json").read_text())
    assert content == {"channel_names": {"0": "CT"}, "numTraining": 2, "file_ending": ".nii.gz"}
    assert [path.name for path in tmp_path.iterdir()] == ["Dataset501_Plain"]  # nothing temporary is left


def test_seed_and_id_decide_and_more_scans_do_not_change_the_first(tmp_path: Path) -> None:
    def first_image(raw: str, dataset_id: int, n: int) -> np.ndarray:
        folder = write_unlabelled_dataset(tmp_path / raw, dataset_id, "Plain", n, seed=1, **GRID)
        return SimpleITKIO().read_images([str(folder / "imagesTr" / "Plain_000_0000.nii.gz")])[0]

    reference = first_image("a", 501, 1)
    assert np.array_equal(reference, first_image("b", 501, 2))
    other = first_image("c", 502, 1)
    assert reference.shape != other.shape or not np.array_equal(reference, other)


def test_an_existing_dataset_is_not_touched(labelled: Path) -> None:
    before = (labelled / "dataset.json").stat().st_mtime_ns
    with pytest.raises(FileExistsError, match="Dataset502_Torso exists already"):
        write_labelled_dataset(labelled.parent, 502, "Torso", 1, 1, seed=1, **GRID)
    assert (labelled / "dataset.json").stat().st_mtime_ns == before
