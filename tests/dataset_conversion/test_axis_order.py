"""KiTS19: slices come first in the array that nnU-Net sees, and every voxel stays where it was in the world."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_pgl.dataset_conversion.datasets import read_kits19
from nnunetv2_pgl.dataset_conversion.downloaded import Case
from nnunetv2_pgl.dataset_conversion.writing import write_dataset, z_first
from nnunetv2_pgl.errors import PGLError

Make = Callable[..., Path]


def world_to_value(path: Path) -> dict[tuple[float, ...], float]:
    """World position of every voxel, by nibabel, and its value."""
    image = nibabel.load(path)
    indices = np.indices(image.shape).reshape(3, -1).T
    positions = nibabel.affines.apply_affine(image.affine, indices)
    values = np.asarray(image.dataobj).reshape(-1)
    return {tuple(np.round(p, 3)): float(v) for p, v in zip(positions, values, strict=True)}


def test_voxels_keep_their_place_and_slices_come_first(raw: Path, kits19: Make) -> None:
    dataset = read_kits19(kits19(range(6)))
    folder = write_dataset(dataset, 64)
    for part, cases in (("Tr", dataset.training), ("Ts", dataset.test)):
        assert cases
        for case in cases:
            image = folder / f"images{part}" / f"{case.name}_0000.nii.gz"
            label = folder / f"labels{part}" / f"{case.name}.nii.gz"
            assert case.label is not None
            assert world_to_value(image) == world_to_value(case.image)
            assert world_to_value(label) == world_to_value(case.label)
            seen, truth = sitk.ReadImage(str(image)), sitk.ReadImage(str(label))
            assert sitk.GetArrayFromImage(seen).shape == (5, 6, 7)
            assert seen.GetSpacing()[::-1] == pytest.approx((3, 0.9, 0.9))
            assert seen.GetDirection() == pytest.approx(np.eye(3).ravel())
            # The fixture labels the odd values: image and label match voxel by voxel.
            np.testing.assert_array_equal(sitk.GetArrayFromImage(seen) % 2, sitk.GetArrayFromImage(truth))


def test_a_copy_with_the_usual_axes_is_turned_no_further(tmp_path: Path, write_nifti: Make) -> None:
    values = np.arange(7 * 6 * 5, dtype=np.int16).reshape(7, 6, 5)
    source = write_nifti(tmp_path / "imaging.nii.gz", values, np.diag([-0.9, -0.9, 3, 1]))
    z_first(Case("case", source), source, tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "out.nii.gz").dataobj), values)


def test_headers_of_the_first_release_are_refused(raw: Path, kits19: Make) -> None:
    dataset = read_kits19(kits19(range(4), affine=np.diag([3, 0.9, 0.9, 1])))
    with pytest.raises(PGLError, match=r"pixels are 3 x 0\.9 mm"):
        write_dataset(dataset, 64)


def test_a_label_with_another_header_is_refused(tmp_path: Path, write_nifti: Make) -> None:
    image = write_nifti(tmp_path / "imaging.nii.gz")
    label = write_nifti(tmp_path / "segmentation.nii.gz", affine=np.diag([-0.9, 0.9, 3, 1]))
    with pytest.raises(PGLError, match="differ in size, spacing or direction"):
        z_first(Case("case_00000", image, label), label, tmp_path / "out.nii.gz")
    assert not (tmp_path / "out.nii.gz").exists()
