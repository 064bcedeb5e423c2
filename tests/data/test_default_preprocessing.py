"""The voxels that preprocessing without a plan stores, against nnU-Net's own functions."""

import os
import pickle
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_spacing

from pretraining.data import Volume, find_scans, preprocess
from pretraining.data.default_preprocessing import preprocess_without_plan
from pretraining.data.scan import BadScan
from tests.data.preprocessed import run, stored

Write = Callable[..., Path]


def test_ct_within_range_comes_back_unchanged(tmp_path: Path, write_scan: Write, ct_values: np.ndarray) -> None:
    ct_values[0, 0, 0], ct_values[0, 0, 1] = -3000, 3000
    write_scan(tmp_path / "in" / "a.nii.gz", ct_values)
    (volume,), skipped = run(tmp_path / "in")
    assert skipped == {}
    assert stored(volume).dtype == np.int16
    np.testing.assert_array_equal(stored(volume), np.clip(ct_values, -1024, 325))
    assert (volume.spacing, volume.is_ct, volume.name, volume.source) == ((3.0, 1.0, 1.0), (True,), "a", "in")
    assert volume.path.parent.name == "PGL_spacing_native"
    zscored = (stored(volume).astype(np.float64) - volume.mean[0]) / volume.std[0]
    assert (zscored.mean(), zscored.std()) == pytest.approx((0, 1), abs=1e-9)
    assert Volume.load(volume.path) == Volume.load(volume.path.with_suffix(".json")) == volume
    assert pickle.loads(pickle.dumps(volume)) == volume


def test_other_modalities_are_zscored(tmp_path: Path, write_scan: Write) -> None:
    values = np.random.default_rng(1).gamma(2.0, 4000.0, (10, 20, 20))
    write_scan(tmp_path / "in" / "a.nii.gz", values.astype(np.float32))
    (volume,), _ = run(tmp_path / "in", "mr")
    assert volume.dtype == "float16"
    expected = (values - values.mean()) / values.std()
    np.testing.assert_allclose(stored(volume), expected, rtol=1e-3, atol=1e-3)
    zscored = (stored(volume).astype(np.float64) - volume.mean[0]) / volume.std[0]
    assert (zscored.mean(), zscored.std()) == pytest.approx((0, 1), abs=1e-9)


def test_mixed_channels_keep_hounsfield_units_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "raw" / "Dataset007_PETCT"
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "dataset.json").write_text('{"channel_names": {"0": "CT", "1": "PET"}, "file_ending": ".nrrd"}')
    rng = np.random.default_rng(0)
    ct, pet = rng.integers(-1024, 326, (9, 10, 11)).astype(np.int16), rng.exponential(3, (9, 10, 11))
    for index, values in enumerate((ct, pet)):
        sitk.WriteImage(sitk.GetImageFromArray(values), str(folder / "imagesTr" / f"a_000{index}.nrrd"))
    monkeypatch.setenv("nnUNet_raw", str(folder.parent))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    scans, _ = find_scans(["7"])
    (volume,), _ = preprocess(scans, spacing="native", crop_size=(4, 4, 4), processes=1, progress=False)
    assert volume.path == tmp_path / "preprocessed" / "Dataset007_PETCT" / "PGL_spacing_native" / "a.b2nd"
    np.testing.assert_array_equal(stored(volume, 0), ct)
    np.testing.assert_allclose(stored(volume, 1), (pet - pet.mean()) / pet.std(), rtol=1e-3, atol=1e-3)


def test_crop_is_nnunets(tmp_path: Path, write_scan: Write, ct_values: np.ndarray) -> None:
    values = np.zeros((16, 30, 30), np.int16)
    values[2:14, 5:25, 4:28] = ct_values + 1024
    values[6:10, 10:12, 10:12] = 0
    write_scan(tmp_path / "in" / "a.nii.gz", values)
    (volume,), _ = run(tmp_path / "in", "mr")
    cropped, _, _ = crop_to_nonzero(values[None])
    assert volume.shape == cropped.shape


@pytest.mark.parametrize(("old", "new"), [(1.0, 2.0), (2.0, 1.0), (1.0, 1.5)])
def test_a_ramp_stays_in_place_when_resampled(tmp_path: Path, write_scan: Write, old: float, new: float) -> None:
    """Centre i lies at (i + 0.5) * spacing, before and after."""
    size = 24
    position = (np.arange(size) + 0.5) * old
    ramp = np.broadcast_to(-900 + 10 * position, (size, size, size)).astype(np.float32)
    for axis in range(3):
        write_scan(tmp_path / "in" / f"{axis}.nii.gz", np.moveaxis(ramp, 2, axis), (old, old, old))
    volumes, _ = run(tmp_path / "in", spacing=(new, new, new))
    for axis, volume in enumerate(volumes):
        profile = np.moveaxis(stored(volume), axis, 2)[5, 5]
        expected = -900 + 10 * (np.arange(len(profile)) + 0.5) * new
        np.testing.assert_allclose(profile[4:-4], expected[4:-4], atol=0.51)  # rounded to whole HU


def test_thick_slices_are_repeated_not_smoothed(tmp_path: Path, write_scan: Write) -> None:
    """Separate z with order 0, as in nnU-Net's plans."""
    values = np.random.default_rng(0).integers(-500, 300, (6, 1, 1)) * np.ones((1, 20, 20))
    write_scan(tmp_path / "in" / "a.nii.gz", values.astype(np.int16), (6, 1, 1))
    (volume,), _ = run(tmp_path / "in", spacing=(3, 1, 1))
    np.testing.assert_array_equal(stored(volume)[:, 3, 3], np.repeat(values[:, 0, 0], 2))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((5.0, 1.0, 1.0), (3.0, 0.8, 0.8)),
        ((1.0, 5.0, 1.0), (1.5, 2.5, 1.5)),
        ((1.0, 1.0, 1.0), (2.0, 1.0, 4.0)),
        ((2.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
    ],
)
def test_resampling_is_nnunets(
    tmp_path: Path, write_scan: Write, ct_values: np.ndarray, old: tuple[float, ...], new: tuple[float, ...]
) -> None:
    write_scan(tmp_path / "in" / "a.nii.gz", ct_values, old)
    (volume,), _ = run(tmp_path / "in", spacing=new)
    clipped = np.clip(ct_values, -1024, 325).astype(np.float32)[None]
    reference = resample_data_or_seg_to_spacing(clipped, old, new, order=3, order_z=0, force_separate_z=None)
    np.testing.assert_array_equal(stored(volume), np.rint(np.clip(reference[0], -1024, 325)))


def test_resampling_cannot_leave_the_range(tmp_path: Path, write_scan: Write) -> None:
    values = np.where(np.indices((20, 20, 20)).sum(0) % 8 < 4, -1024, 325).astype(np.int16)
    write_scan(tmp_path / "in" / "a.nii.gz", values, (1, 1, 1))
    (volume,), _ = run(tmp_path / "in", spacing=(0.7, 0.7, 0.7))
    assert (stored(volume).min(), stored(volume).max()) == (-1024, 325)


@pytest.mark.parametrize(
    ("modality", "spacing"),
    [("ct", "native"), ("ct", (1.1, 1.1, 1.1)), ("ct", (4.0, 1.1, 1.1)), ("mr", "native"), ("mr", (1.0, 1.1, 1.1))],
)
def test_memory_is_three_scans_at_most(
    tmp_path: Path, write_scan: Write, modality: str, spacing: str | tuple[float, float, float]
) -> None:
    """Counted over all numpy arrays and bytes, from the file to the volume."""
    values = np.random.default_rng(0).integers(-1024, 325, (40, 60, 800)).astype(np.int16)
    write_scan(tmp_path / "in" / "a.nii.gz", values, (1, 1, 1))
    run(tmp_path / "in", modality, spacing=spacing)  # imports, and weights that are kept
    shutil.rmtree(tmp_path / "preprocessed")
    tracemalloc.start()
    try:
        run(tmp_path / "in", modality, spacing=spacing)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 1 < peak / (4 * values.size) < 3


def test_real_scans(tmp_path: Path) -> None:
    if "PGL_TEST_DATA" not in os.environ:
        pytest.skip("PGL_TEST_DATA is not set: it names the folder of real scans")
    data = Path(os.environ["PGL_TEST_DATA"])
    scans, _ = find_scans([str(data / "Task04_Hippocampus")], "mr")
    assert len(scans) == len(list((data / "Task04_Hippocampus" / "imagesTr").glob("h*.nii.gz")))
    torso = [scan for scan in find_scans([str(data / "ct")])[0] if scan.name == "torso_3mm_ct"]
    options: dict[str, Any] = {"crop_size": (25, 64, 64), "processes": 1, "progress": False}
    volumes, skipped = preprocess([*scans[:5], *torso], tmp_path, spacing="native", **options)
    assert skipped == []
    reference = sitk.GetArrayFromImage(sitk.ReadImage(torso[0].files[0]))
    assert volumes[-1].shape[1:] == reference.shape
    assert np.abs(stored(volumes[-1]) - np.clip(reference, -1024, 325)).max() <= 0.5
    assert all(volume.dtype == "float16" for volume in volumes[:5])


def test_a_spacing_that_no_memory_could_hold_is_named(tmp_path: Path, write_scan: Write, ct_values: np.ndarray) -> None:
    write_scan(tmp_path / "in" / "ct.nii.gz", ct_values, (2, 1, 1))
    write_scan(tmp_path / "in" / "odd.nii.gz", ct_values, (2000, 1000, 1000))
    volumes, skipped = run(tmp_path / "in", spacing=(2.0, 1.0, 1.0))
    assert [volume.name for volume in volumes] == ["ct"]
    assert skipped["odd"].startswith("has a spacing of 2000 x 1000 x 1000 mm, and would be of 12000 x 20000 x 24000")


def test_a_channel_without_a_z_score_is_named() -> None:
    array = np.random.default_rng(0).normal(size=(2, 6, 6, 6)).astype(np.float32)
    array[1] = 3
    with pytest.raises(BadScan, match="channel 1 is constant once resampled"):
        preprocess_without_plan(array, (1, 1, 1), (False, False), None)
