import gzip
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from pretraining.data import BadScan, DataError, find_scans, read_geometry, read_scan
from pretraining.data.reading import voxels
from tests.data.reading.scans import reason, scan_of

Write = Callable[..., Path]


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


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_nifti_values_are_those_of_nnunets_readers(tmp_path: Path, ending: str, dtype: str) -> None:
    """Whatever the byte order, the scaling and the orientation."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 120, (7, 6, 5)) if dtype[0] in "iu" else rng.normal(0, 300, (7, 6, 5))
    turned = np.array([[0, -0.8, 0, 5], [0.7, 0, 0, 3], [0, 0, 3, 1], [0, 0, 0, 1.0]])
    for number, (order, slope, affine) in enumerate(
        [("<", (1, 0), np.diag([0.7, 0.8, 3, 1])), (">", (0.5, -1024), turned), ("<", (0, 0), turned)]
    ):
        header = nibabel.Nifti1Header(endianness=order)
        header.set_data_dtype(np.dtype(order + dtype))
        header.set_data_shape(values.shape)
        header.set_sform(affine, 1)
        header.set_qform(affine, 1)
        header["scl_slope"], header["scl_inter"] = slope
        header["vox_offset"], header["magic"] = 352, b"n+1"
        content = header.binaryblock + bytes(4) + values.astype(order + dtype).tobytes(order="F")
        file = tmp_path / f"{number}{ending}"
        file.write_bytes(gzip.compress(content) if ending == ".nii.gz" else content)
        array, spacing, _ = read_scan(scan_of(file))
        for reader in (SimpleITKIO, NibabelIO):
            reference, properties = reader().read_images((str(file),))
            np.testing.assert_array_equal(array, reference)
            assert spacing == pytest.approx(tuple(properties["spacing"]))


@pytest.mark.parametrize("ending", [".mha", ".mhd", ".nrrd"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_other_values_are_those_of_nnunets_reader(
    tmp_path: Path, write_scan: Write, ct_values: np.ndarray, ending: str, dtype: str
) -> None:
    file = write_scan(tmp_path / f"a{ending}", ct_values.astype(dtype), (3.0, 0.75, 0.5), compress=True)
    reference, properties = SimpleITKIO().read_images((str(file),))
    array, spacing, _ = read_scan(scan_of(file))
    np.testing.assert_array_equal(array, reference)
    assert spacing == pytest.approx(tuple(properties["spacing"]))


def test_big_endian_metaimage(tmp_path: Path, write_scan: Write, ct_values: np.ndarray) -> None:
    file = write_scan(tmp_path / "a.mhd", ct_values.astype(">i2").view("<i2"), compress=True)
    file.write_text(file.read_text().replace("MSB = False", "MSB = True"))
    array, _, _ = read_scan(scan_of(file))
    np.testing.assert_array_equal(array[0], ct_values)
    np.testing.assert_array_equal(SimpleITKIO().read_images((str(file),))[0], array)


@pytest.mark.parametrize("chunk", [1 << 16, 1000, 3])
def test_gzip_in_several_parts(
    tmp_path: Path, write_scan: Write, ct_values: np.ndarray, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """As bgzip writes it, and with zeros behind, as tapes leave them; wherever the parts end in a chunk."""
    monkeypatch.setattr("pretraining.data.reading.voxels._COMPRESSED_CHUNK_BYTES", chunk)
    content = gzip.decompress(write_scan(tmp_path / "a.nii.gz", ct_values).read_bytes())
    file = tmp_path / "b.nii.gz"
    parts = [gzip.compress(content[start : start + 1001]) for start in range(0, len(content), 1001)]
    file.write_bytes(b"".join(parts) + bytes(700))
    np.testing.assert_array_equal(read_scan(scan_of(file))[0][0], ct_values)
    file.write_bytes(b"".join(parts[:-1]))
    assert "bytes of voxels" in reason(file)
    file.write_bytes(b"".join(parts)[:-20])
    assert "truncated or damaged" in reason(file)


def test_neighbour_of_the_same_name_is_not_taken_for_the_scan(
    tmp_path: Path, write_scan: Write, ct_values: np.ndarray
) -> None:
    """ITK reads the voxels of a.nii where it is asked for a.nii.gz."""
    write_scan(tmp_path / "a.nii", ct_values[::-1])
    file = write_scan(tmp_path / "a.nii.gz", ct_values)
    np.testing.assert_array_equal(read_scan(scan_of(file))[0][0], ct_values)


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="needs Linux, which counts the bytes read")
@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd"])
def test_no_file_is_read_twice(tmp_path: Path, write_scan: Write, ending: str) -> None:
    values = np.random.default_rng(0).integers(-1024, 325, (80, 250, 250)).astype(np.int16)
    scan = scan_of(write_scan(tmp_path / f"a{ending}", values, compress=True))
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    read_geometry(scan)  # as for the median spacing, and so that all is imported
    before = _bytes_read()
    read_geometry(scan)
    read_scan(scan)
    assert 0.9 < (_bytes_read() - before) / size < 1.6  # headers take about a megabyte each


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


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


def nifti_bytes(shape: tuple[int, int, int], offset: int = 352) -> bytes:
    """Header of int16 voxels, filled up to the first of them."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(shape)
    header["vox_offset"], header["magic"] = offset, b"n+1"
    return header.binaryblock + b"\0" * 4


def write_zeros(path: Path, start: bytes, zeros: int) -> Path:
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(start)
        for _ in range(zeros // 2**20):
            file.write(bytes(2**20))
    return path


def test_decompression_ends_soon_after_the_voxels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few kilobytes that would go on for as long as somebody reads them."""
    decompressed = 0
    chunks = voxels._decompressed

    def counted(*arguments: Any) -> Iterator[bytes]:
        nonlocal decompressed
        for chunk in chunks(*arguments):
            decompressed += len(chunk)
            yield chunk

    monkeypatch.setattr(voxels, "_decompressed", counted)
    assert "after its voxels" in reason(write_zeros(tmp_path / "a.nii.gz", nifti_bytes((6, 5, 4)), 300 * 2**20))
    assert decompressed < 200 * 2**20
    decompressed = 0
    assert "begin after" in reason(write_zeros(tmp_path / "b.nii.gz", nifti_bytes((6, 5, 4), 2**28), 2**20))
    assert decompressed == 0


def test_more_than_the_machine_could_hold_is_not_tried(tmp_path: Path) -> None:
    message = reason(write_zeros(tmp_path / "a.nii.gz", nifti_bytes((30000, 30000, 30000)), 2**20))
    assert "declares 30000 x 30000 x 30000 voxels, 100583 GiB" in message


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


@pytest.mark.parametrize("reader", ["NibabelIOWithReorient", "SimpleITKIOWithReorient"])
def test_readers_that_turn_axes_are_nnunets(
    tmp_path: Path, write_scan: Write, ct_values: np.ndarray, reader: str
) -> None:
    """They read by themselves, after a check."""
    file = write_scan(tmp_path / "a.nii.gz", ct_values)
    scan = replace(scan_of(file), reader=reader)
    reference, properties = recursive_find_reader_writer_by_name(reader)().read_images((str(file),))
    array, spacing, _ = read_scan(scan)
    np.testing.assert_array_equal(array, reference)
    assert spacing == pytest.approx(tuple(properties["spacing"])) == read_geometry(scan).spacing
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(BadScan, match="truncated or damaged"):
        read_scan(scan)
    write_scan(file, np.where(ct_values > 300, np.nan, ct_values))
    with pytest.raises(BadScan, match="NaN or infinite"):
        read_scan(scan)


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
    with pytest.raises(DataError, match=r"missing or unevenly spaced: 6\.00 mm"):
        find_scans([str(tmp_path / "gap")])
    files = sorted(map(str, (tmp_path / "gap").iterdir()))
    with pytest.raises(BadScan, match="missing or unevenly spaced"):  # as if slices were lost since they were found
        read_scan(replace(scan, files=tuple(files)))


def test_single_dicom_slice_is_2d(tmp_path: Path, write_dicom: Write, ct_values: np.ndarray) -> None:
    write_dicom(tmp_path / "one", ct_values[:1])
    with pytest.raises(DataError, match="2D"):
        find_scans([str(tmp_path / "one")])
