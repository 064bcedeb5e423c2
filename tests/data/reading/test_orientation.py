"""Orientation from headers, against ITK's and nibabel's own letters, and against where the voxels lie in the body."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from pretraining.data import (
    DataError,
    PlannedPreprocessing,
    Volume,
    find_scans,
    preprocess,
    read_scan,
    volume_tasks,
)
from pretraining.data.reading.orientation import orientation_of_direction, read_orientation
from tests.data.reading.dicom_files import enhanced, save
from tests.data.reading.scans import scan_of
from tests.data.test_planned_preprocessing import plans

Write = Callable[..., Path]

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
OPTIONS: dict[str, Any] = {"crop_size": (8, 8, 8), "processes": 1, "progress": False}


def all_axes_and_ways() -> list[np.ndarray]:
    """The 48 directions along the axes of the body."""
    return [
        np.eye(3)[:, list(order)] * ways
        for order in itertools.permutations(range(3))
        for ways in itertools.product((1.0, -1.0), repeat=3)
    ]


def rotation(rng: np.random.Generator, degrees: float) -> np.ndarray:
    """About a random axis."""
    axis = rng.normal(size=3)
    turn = sitk.VersorTransform((axis / np.linalg.norm(axis)).tolist(), np.deg2rad(degrees))
    return np.array(turn.GetMatrix()).reshape(3, 3)


def image_of_the_left(direction: np.ndarray, shape: tuple[int, int, int] = (9, 11, 13)) -> sitk.Image:
    """Each voxel has 10 times its place in mm along the axis that runs to the left of the body, as ITK places it."""
    image = sitk.Image(list(reversed(shape)), sitk.sitkFloat32)
    image.SetSpacing((1.0, 1.5, 2.0))
    image.SetDirection(direction.ravel().tolist())
    origin = image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])
    image.SetOrigin([-value for value in origin])
    values = np.empty(shape, np.float32)
    for z, y, x in np.ndindex(*shape):
        values[z, y, x] = 10 * image.TransformIndexToPhysicalPoint((x, y, z))[0]
    filled = sitk.GetImageFromArray(values)
    filled.CopyInformation(image)
    return filled


def growth(volume: Volume) -> list[float]:
    """Per axis (z, y, x), how fast the stored values grow, per mm."""
    values = volume.read(0, (0, 0, 0), volume.shape[1:]).astype(np.float64)
    return [float(np.diff(values, axis=axis).mean()) / volume.spacing[axis] for axis in range(3)]


def assert_lateral_is_where_the_left_is(volume: Volume) -> None:
    assert volume.orientation is not None
    slopes = growth(volume)
    steepest = int(np.argmax(np.abs(slopes)))
    assert volume.lateral_axis == steepest
    assert volume.orientation[steepest] == ("L" if slopes[steepest] > 0 else "R")


@pytest.mark.parametrize("ending", ENDINGS)
def test_letters_are_those_of_itk_and_nibabel(tmp_path: Path, ending: str) -> None:
    rng = np.random.default_rng(0)
    for number, axes in enumerate(all_axes_and_ways()):
        direction = rotation(rng, 25) @ axes if number % 2 else axes
        image = sitk.Image([4, 5, 6], sitk.sitkInt16)
        image.SetDirection(direction.ravel().tolist())
        file = tmp_path / f"a{ending}"
        sitk.WriteImage(image, str(file))
        letters = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())
        assert read_orientation(scan_of(file)) == tuple(reversed(letters))
        if "nii" in ending:
            affine = nibabel.load(file).affine
            assert read_orientation(scan_of(file)) == tuple(reversed(nibabel.aff2axcodes(affine)))


def test_the_lateral_axis_has_the_largest_component_however_oblique_a_scan_is() -> None:
    rng = np.random.default_rng(1)
    for _ in range(500):
        matrix = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        orientation = orientation_of_direction((matrix * (1, 2, 3)).ravel().tolist())  # of any length
        assert orientation is not None
        lateral = next(axis for axis, letter in enumerate(orientation) if letter in "LR")
        assert lateral == 2 - int(np.abs(matrix[0]).argmax())
        assert {"LR", "AP", "IS"} == {next(way for way in ("LR", "AP", "IS") if c in way) for c in orientation}


@pytest.mark.parametrize(
    "direction",
    [[0.0] * 9, [float("nan")] * 9, [1, 1, 0, 0, 0, 0, 0, 0, 1], [1, 0, 0, 0, 0, 0, 0, 0, 1]],
    ids=["zeros", "nan", "two the same", "one without length"],
)
def test_a_direction_that_spans_no_space_is_none(direction: list[float]) -> None:
    assert orientation_of_direction(direction) is None


def test_what_a_header_does_not_tell_is_unknown(tmp_path: Path) -> None:
    """ITK reads the identity from all of these."""
    values = np.zeros((4, 5, 6), "<i2")
    nifti = nibabel.Nifti1Image(values.T, None)
    nibabel.save(nifti, tmp_path / "no_form.nii.gz")
    nibabel.save(nibabel.Nifti1Image(values.T, np.eye(4)), tmp_path / "form.nii.gz")
    nrrd = "NRRD0004\ntype: short\ndimension: 3\n{}sizes: 6 5 4\nendian: little\nencoding: raw\n\n"
    vectors = "space directions: (1,0,0) (0,1,0) (0,0,1)\n"
    for name, space in {
        "no_space.nrrd": "",
        "scanner.nrrd": f"space: scanner-xyz\n{vectors}",
        "ras.nrrd": f"space: right-anterior-superior\n{vectors}",
    }.items():
        (tmp_path / name).write_bytes(nrrd.format(space).encode() + values.tobytes())
    mha = "ObjectType = Image\nNDims = 3\nBinaryData = True\n{}DimSize = 6 5 4\nElementType = MET_SHORT\n"
    mha += "ElementDataFile = LOCAL\n"
    for name, matrix in {
        "no_matrix.mha": "",
        "letters.mha": "AnatomicalOrientation = RAI\n",  # which ITK does not heed
        "matrix.mha": "TransformMatrix = 1 0 0 0 1 0 0 0 1\n",
    }.items():
        (tmp_path / name).write_bytes(mha.format(matrix).encode() + values.tobytes() + b"\nTransformMatrix = 1")
    sitk.WriteImage(sitk.GetImageFromArray(values), str(tmp_path / "format.gipl"))
    told = {file.name: read_orientation(scan_of(file)) for file in tmp_path.iterdir()}
    assert told.pop("form.nii.gz") == told.pop("ras.nrrd") == ("S", "A", "R")
    assert told.pop("matrix.mha") == ("S", "P", "L")
    assert set(told.values()) == {None}
    assert len(told) == 6
    assert read_orientation(scan_of(tmp_path / "form.nii.gz", reader="Tiff3DIO")) is None
    assert read_orientation(scan_of(tmp_path / "gone.nii.gz")) is None


def test_channels_that_lie_differently_are_unknown(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.nrrd" for number in range(3)]
    for file, axes in zip(files, (np.eye(3), np.eye(3), -np.eye(3)), strict=True):
        sitk.WriteImage(image_of_the_left(axes), str(file))
    assert read_orientation(scan_of(*files[:2])) == ("S", "P", "L")
    assert read_orientation(scan_of(*files)) is None


@pytest.mark.parametrize(
    ("reader", "ending"),
    [
        *((reader, ".nii.gz") for reader in ("SimpleITKIO", "NibabelIO")),
        *((f"{reader}WithReorient", ".nii.gz") for reader in ("SimpleITKIO", "NibabelIO")),
        *((reader, ".mha") for reader in ("SimpleITKIO", "SimpleITKIOWithReorient")),
    ],
)
def test_the_left_of_the_body_is_where_a_record_says(tmp_path: Path, reader: str, ending: str) -> None:
    """By the voxels as stored, whatever read them; a plan's transposition moves both."""
    rng = np.random.default_rng(3)
    scans = []
    for number, axes in enumerate(all_axes_and_ways()[::5]):
        file = tmp_path / f"{number}{ending}"
        sitk.WriteImage(image_of_the_left(rotation(rng, 20) @ axes), str(file))
        name = str(number)
        scans.append(replace(scan_of(file, reader=reader), name=name, identifier=name))
    planned = PlannedPreprocessing.from_plans(plans("NoNormalization", transpose=(2, 0, 1)), "3d_fullres")
    found = set()
    for plan in (None, planned):
        volumes, skipped = preprocess(scans, tmp_path / "out", spacing="native", planned=plan, **OPTIONS)
        assert skipped == []
        for volume in volumes:
            assert_lateral_is_where_the_left_is(volume)
            assert Volume.load(volume.path).orientation == volume.orientation
            found.add(volume.lateral_axis)
    assert found == ({0, 2} if "Reorient" in reader else {0, 1, 2})  # turned to x, which the plan makes the first


def write_series(folder: Path, image: sitk.Image, tags: dict[str, str] | None = None) -> Path:
    """A DICOM series by ITK's writer, slice by slice."""
    folder.mkdir(parents=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    direction = image.GetDirection()
    cosines = [direction[i] for i in (0, 3, 6, 1, 4, 7)]
    for index in range(image.GetSize()[2]):
        plane = sitk.Cast(image[:, :, index], sitk.sitkInt16)
        position = image.TransformIndexToPhysicalPoint((0, 0, index))
        values = {
            **{"0008|0018": f"1.2.3.{index + 1}", "0008|0060": "CT", "0020|000d": "1.2.826", "0020|000e": "1.2.3"},
            **{"0020|0013": str(index + 1), "0020|0032": "\\".join(f"{value:.9g}" for value in position)},
            "0020|0037": "\\".join(f"{value:.9g}" for value in cosines),
            **(tags or {}),
        }
        for key, value in values.items():
            plane.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{index:03d}.dcm"))
        writer.Execute(plane)
    return folder


def test_dicom_series_of_all_directions(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    for number, axes in enumerate(all_axes_and_ways()[::3]):
        write_series(tmp_path / "in" / str(number), image_of_the_left(rotation(rng, 20) @ axes))
    scans, _ = find_scans([str(tmp_path / "in")])
    assert len(scans) == 16
    volumes, skipped = preprocess(scans, tmp_path / "out", spacing="native", **OPTIONS)
    assert skipped == []
    for scan, volume in zip(scans, volumes, strict=True):
        assert_lateral_is_where_the_left_is(volume)
        image = sitk.ReadImage(scan.files)
        letters = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())
        assert read_orientation(scan) == tuple(reversed(letters))
        unordered = replace(scan, files=scan.files[::-1], geometry=None)
        assert read_orientation(unordered) == tuple(reversed(letters))  # the order of files does not matter
    assert {volume.lateral_axis for volume in volumes} == {0, 1, 2}


@pytest.mark.parametrize("told", [True, False])
def test_dicom_of_many_frames_in_one_file(tmp_path: Path, told: bool) -> None:
    """ITK writes the orientation of CT, of ultrasound none, and reads the identity from that."""
    image = sitk.Cast(image_of_the_left(np.diag((1.0, -1.0, -1.0))), sitk.sitkInt16)
    image.SetMetaData("0008|0060", "CT" if told else "US")
    sitk.WriteImage(image, str(tmp_path / "a.dcm"))
    scan = scan_of(tmp_path / "a.dcm", reader="dicom")
    assert read_orientation(scan) == (("I", "A", "L") if told else None)


@pytest.mark.parametrize("step", [2, -2])
def test_sagittal_frames_of_an_enhanced_object(tmp_path: Path, step: int) -> None:
    """It tells its orientation within sequences. Rows run to the back, columns to the feet, the normal to the right."""
    stored = np.arange(120, dtype=np.uint16).reshape(4, 5, 6)
    turned = {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}
    frames = enhanced(stored, [(step * frame, 0, 0) for frame in range(4)], [turned] * 4)
    scan = scan_of(save(frames, tmp_path / "a.dcm"), reader="dicom")
    assert read_orientation(scan) == ("R", "I", "P")
    np.testing.assert_array_equal(read_scan(scan)[0][0], stored[::-1] if step > 0 else stored)


def stored_before(tmp_path: Path, transpose: tuple[int, int, int] | None = None) -> Callable[[], Volume]:
    """A volume without an orientation in its record; gives what a run makes of it."""
    sitk.WriteImage(image_of_the_left(np.eye(3)[:, [2, 0, 1]]), str(tmp_path / "a.nrrd"))
    scheme = plans("NoNormalization", transpose=transpose) if transpose else None
    planned = PlannedPreprocessing.from_plans(scheme, "3d_fullres") if scheme else None

    def run() -> Volume:
        scans = [scan_of(tmp_path / "a.nrrd")]
        (volume,), _ = preprocess(scans, tmp_path / "out", spacing="native", planned=planned, **OPTIONS)
        return volume

    file = run().path.with_suffix(".json")
    record = json.loads(file.read_text())
    del record["orientation"]
    file.write_text(json.dumps(record))
    return run


@pytest.mark.parametrize("transpose", [None, (1, 2, 0)])
def test_volumes_of_earlier_versions_are_told_without_preprocessing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transpose: tuple[int, int, int] | None
) -> None:
    run = stored_before(tmp_path, transpose)
    (file,) = (tmp_path / "out").rglob("*.b2nd")
    before = file.stat().st_mtime_ns
    assert Volume.load(file).orientation is None
    assert_lateral_is_where_the_left_is(run())
    assert file.stat().st_mtime_ns == before
    assert_lateral_is_where_the_left_is(Volume.load(file))
    monkeypatch.setattr(volume_tasks, "read_orientation", None)  # it is not looked up again
    assert_lateral_is_where_the_left_is(run())


def test_records_that_cannot_be_written_are_told_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = stored_before(tmp_path)

    def refuse(path: Path, record: dict[str, Any]) -> None:
        raise DataError(f"could not write {path}: read-only")

    monkeypatch.setattr(volume_tasks, "write_record", refuse)
    with caplog.at_level(logging.WARNING):
        assert_lateral_is_where_the_left_is(run())
    (message,) = [text for text in caplog.messages if "orientation" in text]
    assert message.startswith("1 record of an earlier version could not be completed")
    assert "read-only" in message
