"""Landmarks of labels, and distances between where they are and where features lead."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from benchmarks.landmarks import Patient, cropped, distances, draw, read_patient, table
from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.features import DenseFeatures, PreprocessedImage, Preprocessing

SHAPE = (16, 24, 20)


def dataset(folder: Path) -> Path:
    """A case with a round organ, a paired one along y, and a speck that is none."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[4:8, 10:14, 6:10] = 1
    labels[10:13, 2:6, 8:12] = labels[10:13, 18:22, 8:12] = 2
    labels[15, 23, 19] = 2
    for name, values in (("imagesTr/a_0000", labels * 100.0), ("labelsTr/a", labels)):
        (folder / name).parent.mkdir(exist_ok=True)
        image = sitk.GetImageFromArray(values)
        image.SetSpacing((1.0, 2.0, 3.0))
        sitk.WriteImage(image, str(folder / f"{name}.nii.gz"))
    described = {"labels": {"background": 0, "organ": 1, "glands": 2}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


def test_landmarks_are_the_centres_of_organs_and_of_both_of_a_pair(tmp_path: Path) -> None:
    folder = dataset(tmp_path)
    described = json.loads((folder / "dataset.json").read_text())
    patient = read_patient(folder, "a", described)
    assert {name: point.tolist() for name, point in patient.landmarks.items()} == {
        "organ": [6.0, 12.0, 8.0],
        "glands, lower y": [11.5, 4.0, 10.0],
        "glands, higher y": [11.5, 20.0, 10.0],
    }
    assert patient.spacing.tolist() == [3.0, 2.0, 1.0]
    with pytest.raises(PGLError, match=r"b_0000\.nii\.gz does not exist"):
        read_patient(folder, "b", described)


@pytest.mark.parametrize(("share", "shape"), [(0.5, (9, 18, 10)), (1.0, SHAPE)])
def test_a_crop_shows_the_same_tissue_at_its_landmarks(share: float, shape: tuple[int, int, int]) -> None:
    """Landmarks that are further apart than the box would be are kept."""
    voxels = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    landmarks = {"a": np.array([3.5, 2.5, 8.5]), "b": np.array([11.5, 19.5, 4.5])}
    starts = set()
    for seed in range(20):
        whole = Patient("a", sitk.GetImageFromArray(voxels), landmarks)
        part = cropped(whole, share, np.random.default_rng(seed))
        values = sitk.GetArrayFromImage(part.scan)
        assert values.shape == shape
        starts.add(float(values[0, 0, 0]))
        for name, point in landmarks.items():
            assert values[tuple(part.landmarks[name].astype(int))] == voxels[tuple(point.astype(int))]
    assert len(starts) > 3 if share < 1 else starts == {0.0}


def test_distances_are_in_mm_between_what_is_found_and_the_landmark(tmp_path: Path) -> None:
    """The second patient is the first, shifted by (2, 4, 0) voxels; its features lie two voxels further in y."""
    scan = sitk.GetImageFromArray(np.zeros(SHAPE, np.float32))
    scan.SetSpacing((1.0, 2.0, 3.0))
    point = np.array([6.5, 8.5, 10.5])
    patients = [
        Patient("a", scan, {"organ": point}),
        Patient("b", scan, {"organ": point + np.array((2, 4, 0))}),
    ]
    torch.manual_seed(0)
    values = torch.randn(32, *SHAPE)
    how = Preprocessing(1, None, None, (False,), None, (8, 8, 8))
    image = PreprocessedImage(values[None], (3, 2, 1), (0, 1, 2), (0, 0, 0), (1.0, 1.0, 1.0), how)
    of_both = [DenseFeatures(v, (1, 1, 1), image) for v in (values, values.roll((2, 6, 0), (1, 2, 3)))]
    found = distances(patients, {"pre-trained": of_both, "random weights": [of_both[0]] * 2})
    assert found["organ"]["pre-trained"] == pytest.approx([4.0, 4.0])  # two voxels of 2 mm
    expected = float(np.linalg.norm(np.array([2, 4, 0]) * (3, 2, 1)))
    assert found["organ"]["random weights"] == pytest.approx([expected] * 2)
    assert found["organ"]["relative place"] == pytest.approx([expected] * 2)
    assert "| organ | 4 (4 to 4) | 10 (10 to 10) | 10 (10 to 10) |" in table(found)
    draw(patients, of_both, "organ", True, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5000
