"""The reader is the one that nnU-Net would take, and what it gives is what is stored; one bad scan costs itself."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from nnunetv2.imageio.reader_writer_registry import (
    determine_reader_writer_from_dataset_json,
    recursive_find_reader_writer_by_name,
)
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from pretraining.data import BadScan, Scan, find_scans, preprocess, read_geometry, read_scan
from pretraining.data.reading.orientation import read_orientation
from pretraining.data.volume_tasks import Task

VALUES = np.random.default_rng(0).integers(-1000, 300, (10, 12, 14)).astype(np.int16)
SPACING = [2, 0.8, 0.5]

MakeDataset = Callable[..., Path]


@pytest.fixture
def make_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeDataset:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))

    def make(ending: str, reader: str | None = None) -> Path:
        images = tmp_path / "raw" / "Dataset009_X" / "imagesTr"
        images.mkdir(parents=True)
        content = {"channel_names": {"0": "CT"}, "file_ending": ending}
        content |= {} if reader is None else {"overwrite_image_reader_writer": reader}
        (images.parent / "dataset.json").write_text(json.dumps(content))
        return images

    return make


def tiff(path: Path, values: np.ndarray = VALUES, spacing: Any = SPACING) -> Path:
    tifffile.imwrite(path, values)
    if spacing is not None:
        path.with_name(path.name.replace("_0000.tif", ".json")).write_text(json.dumps({"spacing": spacing}))
    return path


def nifti(path: Path, affine: np.ndarray | None = None, second: bool = False, **header: Any) -> Path:
    kind = nibabel.Nifti2Image if second else nibabel.Nifti1Image
    image = kind(VALUES.T, np.diag([0.5, 0.8, 2, 1]) if affine is None else affine)
    for key, value in header.items():
        image.header[key] = value
    nibabel.save(image, path)
    return path


def readers_in(folder: Path) -> set[str]:
    return {scan.reader for scan in find_scans([str(folder.parent)])[0]}


def test_3d_tiff_is_read_with_nnunets_reader_for_it(
    make_dataset: MakeDataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images = make_dataset(".tif")
    files = [tiff(images / f"cell{number}_0000.tif", VALUES + number) for number in range(3)]
    chosen = determine_reader_writer_from_dataset_json({"file_ending": ".tif"}, str(files[0]), verbose=False)
    capfd.readouterr()
    assert readers_in(images) == {chosen.__name__} == {"Tiff3DIO"}
    scans, _ = find_scans([str(images.parent)])
    volumes, skipped = preprocess(
        scans, tmp_path / "out", spacing="median", crop_size=(8, 8, 8), processes=1, progress=False
    )
    assert skipped == []
    assert capfd.readouterr() == ("", ""), "nnU-Net prints the errors of the readers that it tries in vain"
    for number, volume in enumerate(volumes):
        np.testing.assert_array_equal(volume.read(0, (0, 0, 0), volume.shape[1:]), VALUES + number)
        assert volume.spacing == pytest.approx(tuple(SPACING))


def test_a_bad_example_does_not_decide(make_dataset: MakeDataset) -> None:
    images = make_dataset(".tif")
    tifffile.imwrite(images / "a_0000.tif", VALUES[0])  # 2D, for which nnU-Net has another reader
    for name in "bcd":
        tiff(images / f"{name}_0000.tif")
    assert readers_in(images) == {"Tiff3DIO"}
    (images / "a_0000.tif").write_bytes(b"no image")
    assert readers_in(images) == {"Tiff3DIO"}


@pytest.mark.parametrize(
    ("ending", "write", "reader"),
    [
        (".nii.gz", nifti, "SimpleITKIO"),
        (".nii.gz", lambda path: nifti(path, second=True), "NibabelIO"),
        (".nii", lambda path: nifti(path), "NibabelIO"),  # the first of nnU-Net's for this ending
        (".tif", lambda path: tifffile.imwrite(path, VALUES[0]), "NaturalImage2DIO"),
        (".tif", lambda path: path.write_bytes(b"no image"), "NaturalImage2DIO"),
        (".mha", lambda path: path.write_bytes(b"never opened: there is one reader"), "SimpleITKIO"),
    ],
)
def test_reader_is_nnunets(make_dataset: MakeDataset, ending: str, write: Callable[..., Any], reader: str) -> None:
    images = make_dataset(ending)
    for name in "ab":
        write(images / f"{name}_0000{ending}")
    assert readers_in(images) == {reader}


def test_the_reader_that_a_data_set_names_is_taken(make_dataset: MakeDataset) -> None:
    images = make_dataset(".nii.gz", "NibabelIOWithReorient")
    nifti(images / "a_0000.nii.gz")
    assert readers_in(images) == {"NibabelIOWithReorient"}


def sheared() -> np.ndarray:
    return np.array([[0.5, 0.1, 0, 3], [0, 0.8, 0, 1], [0, 0, 2, 0], [0, 0, 0, 1]])


def turned() -> np.ndarray:
    return np.array([[0, 0, -2, 3], [0.5, 0, 0, 1], [0, 0.8, 0, 0], [0, 0, 0, 1]], float)


def write_itk(path: Path) -> None:
    image = sitk.GetImageFromArray(VALUES)
    image.SetSpacing((0.5, 0.8, 2))
    image.SetDirection((0, 0, 1, 1, 0, 0, 0, 1, 0))
    sitk.WriteImage(image, str(path))


ODD: dict[str, Callable[[Path], Any]] = {
    "plain.nii.gz": nifti,
    "micron.nii.gz": lambda path: nifti(path, xyzt_units=3),
    "metre.nii": lambda path: nifti(path, xyzt_units=1),
    "second.nii.gz": lambda path: nifti(path, second=True),
    "turned.nii.gz": lambda path: nifti(path, turned()),
    "sheared.nii.gz": lambda path: nifti(path, sheared()),
    "turned.nrrd": write_itk,
    "turned.mha": write_itk,
    "spaced_0000.tif": tiff,
    "unspaced_0000.tif": lambda path: tiff(path, spacing=None),
    "flat_0000.tif": lambda path: tiff(path, VALUES[0]),
}
# Read with nibabel where nnU-Net's reader refuses them.
READ_NEVERTHELESS = {("sheared.nii.gz", "SimpleITKIO")}


PAIRS = [
    *((name, "NaturalImage2DIO") for name in ODD if name.endswith(".tif")),
    *(
        (name, reader)
        for name in ODD
        for reader in ("SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient", "Tiff3DIO")
    ),
]


@pytest.mark.parametrize(("name", "reader"), PAIRS)
def test_spacing_and_values_are_those_of_the_reader(tmp_path: Path, name: str, reader: str) -> None:
    path = tmp_path / name
    ODD[name](path)
    scan = Scan("s", "s", "src", "src", (str(path),), ("CT",), (True,), reader)
    read_orientation(scan)
    try:
        expected, properties = recursive_find_reader_writer_by_name(reader)().read_images((str(path),))
    except Exception:  # of any kind: of tifffile, of nibabel, KeyError
        if (name, reader) not in READ_NEVERTHELESS:
            for read in (read_geometry, read_scan):
                with pytest.raises(BadScan, match=path.name) as error:
                    read(scan)
                assert "\n" not in str(error.value)
        return
    if expected.shape[1] == 1:
        with pytest.raises(BadScan, match="2D"):
            read_scan(scan)
        return
    array, spacing, _ = read_scan(scan)
    np.testing.assert_array_equal(array, expected)
    assert spacing == pytest.approx(tuple(properties["spacing"]))
    assert read_geometry(scan).spacing == pytest.approx(spacing)


BAD_SPACING = """{"Spacing": [2, 1, 1]}
{"spacing": [2, 1]}
{"spacing": [2, 0, 1]}
{"spacing": [2, -1, 1]}
{"spacing": [2, NaN, 1]}
{"spacing": "2 1 1"}
{"spacing": [2, "1", 1]}
{"spacing": 2}
[]
no JSON"""


@pytest.mark.parametrize("content", [*BAD_SPACING.splitlines(), "[" * 100_000])
def test_one_bad_spacing_file_costs_one_scan(make_dataset: MakeDataset, tmp_path: Path, content: str) -> None:
    images = make_dataset(".tif", "Tiff3DIO")
    for name in "abc":
        tiff(images / f"{name}_0000.tif")
    (images / "a.json").write_text(content)
    scans, _ = find_scans([str(images.parent)])
    for spacing in ("median", "native"):
        volumes, (skipped,) = preprocess(
            scans, tmp_path / spacing, spacing=spacing, crop_size=(8, 8, 8), processes=1, progress=False
        )
        assert [volume.name for volume in volumes] == ["b", "c"]
        assert skipped.name == "a"
        assert skipped.reason.startswith('a.json beside a_0000.tif has no "spacing" of three positive numbers')


def test_what_nnunet_prints_is_told_and_not_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = [str(tiff(tmp_path / f"a_000{channel}.tif", VALUES[channel:], None)) for channel in range(2)]
    with pytest.raises(BadScan, match="RuntimeError: ERROR! Not all input images have the same shape!"):
        read_scan(Scan("s", "s", "src", "src", tuple(files), ("A", "B"), (False, False), "Tiff3DIO"))
    assert capfd.readouterr() == ("", "")


def test_a_header_is_enough_to_find_simpleitk(make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scans take seconds to read, at every start."""
    images = make_dataset(".nii.gz")
    nifti(images / "a_0000.nii.gz")
    read = []
    monkeypatch.setattr(SimpleITKIO, "read_images", lambda self, files: read.append(files))
    assert readers_in(images) == {"SimpleITKIO"}
    assert read == []


def test_spacing_that_nnunet_makes_up_is_said(make_dataset: MakeDataset, caplog: pytest.LogCaptureFixture) -> None:
    images = make_dataset(".tif", "Tiff3DIO")
    tiff(images / "a_0000.tif")
    tiff(images / "b_0000.tif", spacing=None)
    with caplog.at_level(logging.WARNING):
        find_scans([str(images.parent)])
    assert "1 of 2 scans have no file with their spacing, such as b.json" in caplog.text


@pytest.mark.parametrize(
    "error", [KeyError("spacing"), AttributeError("x"), MemoryError(), tifffile.TiffFileError("x")]
)
def test_whatever_a_reader_raises_costs_one_scan(
    make_dataset: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    images = make_dataset(".tif", "Tiff3DIO")
    for name in "ab":
        tiff(images / f"{name}_0000.tif")

    def imread(file: str) -> np.ndarray:
        if "a_0000" in file:
            raise error
        return tiff_values(file)

    tiff_values = tifffile.imread
    monkeypatch.setattr("nnunetv2.imageio.tif_reader_writer.tifffile.imread", imread)
    scans, _ = find_scans([str(images.parent)])
    volumes, (skipped,) = preprocess(
        scans, tmp_path / "out", spacing="median", crop_size=(8, 8, 8), processes=1, progress=False
    )
    assert [volume.name for volume in volumes] == ["b"]
    assert skipped.reason.startswith(f"a_0000.tif cannot be read by nnU-Net's Tiff3DIO ({type(error).__name__}")


def test_a_header_that_provokes_an_error_tells_no_direction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = Scan("s", "s", "src", "src", (str(nifti(tmp_path / "a.nii")),), ("CT",), (True,))
    assert read_orientation(scan) is not None
    monkeypatch.setattr("pretraining.data.reading.orientation.nibabel.load", lambda file: {}["spacing"])
    assert read_orientation(scan) is None
    assert Task(scan, tmp_path / "a.b2nd", None, (8, 8, 8), None).orientation() is None
