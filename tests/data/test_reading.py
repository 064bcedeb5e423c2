import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from pretraining.data import BadScan, Scan, find_scans, read_geometry, read_scan

Write = Callable[..., Path]


def scan_of(*files: Path) -> Scan:
    channels = tuple(f"channel{index}" for index in range(len(files)))
    return Scan("s", "s", "src", "src", tuple(map(str, files)), channels, (True,) * len(files))


def reason(*files: Path) -> str:
    with pytest.raises(BadScan) as error:
        read_scan(scan_of(*files))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".mhd"])
@pytest.mark.parametrize("compress", [True, False])
def test_every_format_gives_values_and_spacing(
    tmp_path: Path, write_scan: Write, ct_values: np.ndarray, ending: str, compress: bool
) -> None:
    scan = scan_of(write_scan(tmp_path / f"a{ending}", ct_values, (3.0, 0.75, 0.5), compress=compress))
    array, spacing, properties = read_scan(scan)
    np.testing.assert_array_equal(array, ct_values[None])
    assert array.dtype == np.float32
    assert spacing == pytest.approx((3.0, 0.75, 0.5))
    assert tuple(properties["spacing"]) == pytest.approx(spacing)
    geometry = read_geometry(scan)
    assert geometry.shape == ct_values.shape
    assert geometry.spacing == pytest.approx(spacing)


def test_channels_are_stacked_and_must_agree(tmp_path: Path, write_scan: Write, ct_values: np.ndarray) -> None:
    first = write_scan(tmp_path / "a_0000.nii.gz", ct_values)
    second = write_scan(tmp_path / "a_0001.nii.gz", ct_values + 1)
    array, _, _ = read_scan(scan_of(first, second))
    np.testing.assert_array_equal(array[1] - array[0], 1)
    shorter = write_scan(tmp_path / "b_0001.nii.gz", ct_values[1:])
    assert "b_0001.nii.gz differs" in reason(first, shorter)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".mhd"])
@pytest.mark.parametrize("compress", [True, False])
def test_truncated_files_are_refused(
    tmp_path: Path, write_scan: Write, ct_values: np.ndarray, ending: str, compress: bool
) -> None:
    file = write_scan(tmp_path / f"a{ending}", ct_values, compress=compress)
    data = next(tmp_path.glob("a.*raw"), file)
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) * 6 // 10])
    assert "a." in reason(file)
    data.write_bytes(b"")
    assert "a." in reason(file)


def test_sitk_alone_would_accept_a_truncated_nifti(tmp_path: Path, write_scan: Write, ct_values: np.ndarray) -> None:
    """If this fails, SimpleITK has learned to complain and our check can go."""
    file = write_scan(tmp_path / "a.nii.gz", ct_values)
    file.write_bytes(file.read_bytes()[:-2000])
    assert np.mean(sitk.GetArrayFromImage(sitk.ReadImage(str(file)))[-1] == 0) > 0.9


def test_gzip_damage_that_leaves_all_voxels_is_seen(tmp_path: Path, write_scan: Write, ct_values: np.ndarray) -> None:
    file = write_scan(tmp_path / "a.nii.gz", ct_values)
    whole = file.read_bytes()
    file.write_bytes(whole[:-4])
    assert "truncated or damaged" in reason(file)
    file.write_bytes(whole[:-8] + b"0000" + whole[-4:])  # checksum
    assert "truncated or damaged" in reason(file)
    inside = gzip.decompress(whole)
    file.write_bytes(gzip.compress(inside[:-10]))  # a whole stream of too few voxels
    assert "bytes of voxels" in reason(file)


def test_damaged_compressed_metaimage_is_refused(tmp_path: Path, write_scan: Write, ct_values: np.ndarray) -> None:
    file = write_scan(tmp_path / "a.mha", ct_values, compress=True)
    content = bytearray(file.read_bytes())
    content[-len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    assert "truncated or damaged" in reason(file)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_and_infinity_are_refused(
    tmp_path: Path, write_scan: Write, ct_values: np.ndarray, ending: str, value: float, dtype: type
) -> None:
    values = ct_values.astype(dtype)
    values[3, 4, 5] = value
    assert "NaN or infinite" in reason(write_scan(tmp_path / f"a{ending}", values))


def test_what_is_no_3d_scan_is_refused(tmp_path: Path, write_scan: Write, ct_values: np.ndarray) -> None:
    assert "2D" in reason(write_scan(tmp_path / "a.nii.gz", ct_values[0]))
    assert "2D" in reason(write_scan(tmp_path / "b.nii.gz", ct_values[:1]))
    series = sitk.JoinSeries([sitk.GetImageFromArray(ct_values)] * 3)
    sitk.WriteImage(series, str(tmp_path / "c.nii.gz"))
    assert "4D" in reason(tmp_path / "c.nii.gz")
    colour = np.zeros((4, 5, 6, 3), np.uint8)
    for ending in (".nii.gz", ".mha"):
        assert "3 values per voxel" in reason(write_scan(tmp_path / f"d{ending}", colour, colour=True))
    assert "constant" in reason(write_scan(tmp_path / "e.nii.gz", np.full((4, 5, 6), 7, np.int16)))
    (tmp_path / "f.nii.gz").write_bytes(gzip.compress(b"this is no image"))
    assert "f.nii.gz" in reason(tmp_path / "f.nii.gz")
    assert "does not exist" in reason(tmp_path / "gone.nii.gz")


def test_directions_that_itk_refuses_are_read_with_nibabel(tmp_path: Path, ct_values: np.ndarray) -> None:
    affine = np.diag([0.75, 0.75, 3.0, 1.0])
    affine[0, 1] = 0.1
    nibabel.save(nibabel.Nifti1Image(ct_values.T, affine), tmp_path / "sheared.nii.gz")
    scan = scan_of(tmp_path / "sheared.nii.gz")
    array, spacing, _ = read_scan(scan)
    np.testing.assert_array_equal(array[0], ct_values)
    assert spacing == pytest.approx(read_geometry(scan).spacing)
    assert spacing[0] == pytest.approx(3.0)


def test_dicom_series_is_read_and_gaps_are_seen(tmp_path: Path, write_dicom: Write, ct_values: np.ndarray) -> None:
    write_dicom(tmp_path / "whole", ct_values)
    (scan,), _ = find_scans([str(tmp_path / "whole")])
    array, spacing, _ = read_scan(scan)
    np.testing.assert_array_equal(array[0], ct_values)
    assert spacing == pytest.approx((3.0, 0.75, 0.75))
    assert read_geometry(scan).spacing == pytest.approx(spacing)
    assert read_geometry(scan).shape == ct_values.shape

    write_dicom(tmp_path / "gap", ct_values, left_out=[5])
    (scan,), _ = find_scans([str(tmp_path / "gap")])
    with pytest.raises(BadScan, match=r"missing or unevenly spaced: 6\.00 mm"):
        read_scan(scan)


def test_single_dicom_slice_is_2d(tmp_path: Path, write_dicom: Write, ct_values: np.ndarray) -> None:
    write_dicom(tmp_path / "one", ct_values[:1])
    (scan,), _ = find_scans([str(tmp_path / "one")])
    with pytest.raises(BadScan, match="2D"):
        read_scan(scan)
