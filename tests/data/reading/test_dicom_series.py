"""DICOM series as they lie in folders: phases, localizers, copies, other objects among them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import (
    MediaStorageDirectoryStorage,
)

from pretraining.data import BadScan, DataError, find_scans, preprocess, read_scan
from tests.data.reading.dicom_files import VALUES, N, dataset, read, save, write_slices

Write = Callable[..., Path]


@pytest.mark.parametrize("keyword", ["Modality", "PatientID"])
def test_one_uid_for_two_kinds_of_slices_makes_no_volume_of_both(tmp_path: Path, keyword: str) -> None:
    for number, value in enumerate(("CT", "PT")):
        told = [{"ImagePositionPatient": [0, 0, 2 * k + number]} for k in range(N)]
        write_slices(tmp_path / "both", VALUES + number, per_slice=told, first=100 * number, **{keyword: value})
    arrays, skipped = read(tmp_path)
    assert skipped == {}
    for number, array in enumerate(arrays.values()):
        np.testing.assert_array_equal(array, VALUES + number)


def test_pictures_in_a_series_are_set_aside(tmp_path: Path) -> None:
    write_slices(tmp_path / "ct", VALUES)
    for name, told in {"fused": {"PhotometricInterpretation": "RGB"}, "report": {"ImagePositionPatient": None}}.items():
        save(
            dataset(VALUES[0], **{"ImageOrientationPatient": None, "PixelSpacing": None, **told}),
            tmp_path / "ct" / name,
        )
        arrays, skipped = read(tmp_path)
        assert skipped == {f"ct/{name}": "a picture, not a slice: set aside"}
        np.testing.assert_array_equal(arrays["ct"], VALUES)
        (tmp_path / "ct" / name).unlink()


def test_files_of_several_kinds_have_a_reason_each(tmp_path: Path) -> None:
    write_slices(tmp_path / "ct", VALUES)
    for name, modality in {"a": "SR", "b": "SR", "c": "SEG"}.items():
        save(dataset(VALUES[0], Modality=modality), tmp_path / "ct" / name)
    _, skipped = read(tmp_path)
    assert skipped == {
        "ct/a": "a holds no image but SR; the same for 1 more file there",
        "ct/c": "c holds no image but SEG",
    }


def test_a_scout_is_set_aside(tmp_path: Path) -> None:
    scout = {"ImagePositionPatient": [0, 0, 100], "ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}
    labelled = {"ImageType": ["DERIVED", "SECONDARY", "LOCALIZER"]}
    for name, more in {"told": labelled, "seen": {}, "small": {**labelled, "ImageOrientationPatient": None}}.items():
        write_slices(tmp_path / name, VALUES, SeriesInstanceUID=f"1.{len(name)}.{ord(name[0])}")
        pixels = VALUES[0, :5] if name == "small" else VALUES[0]
        uid = f"1.{len(name)}.{ord(name[0])}"
        save(dataset(pixels, SeriesInstanceUID=uid, **{**scout, **more}), tmp_path / name / "A_scout")
    arrays, skipped = read(tmp_path)
    assert sorted(arrays) == ["seen", "small", "told"]
    assert skipped == {f"{name}/A_scout": "a localizer: set aside" for name in arrays}
    for array in arrays.values():
        np.testing.assert_array_equal(array, VALUES)


@pytest.mark.parametrize(
    ("keyword", "values"),
    [
        ("AcquisitionNumber", (1, 2)),
        ("TemporalPositionIdentifier", (1, 2)),
        ("EchoNumbers", (1, 2)),
        ("EchoTime", (4.6, 9.2)),
        ("ConvolutionKernel", ("B30f", "B70f")),
        ("KVP", (80, 140)),
        ("DiffusionBValue", (0, 800)),
        ("ImageType", (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"])),
    ],
)
@pytest.mark.parametrize("offset", [0, 1])
def test_phases_are_told_apart(tmp_path: Path, keyword: str, values: tuple[Any, Any], offset: int) -> None:
    """Slices at the same positions, or half a step apart, which look like one series of half the distance."""
    for number, value in enumerate(values):
        told = [{"ImagePositionPatient": [0, 0, 2 * k + offset * number], keyword: value} for k in range(N)]
        write_slices(tmp_path / "both", VALUES + 50 * number, per_slice=told, first=100 * number)
    arrays, skipped = read(tmp_path)
    assert skipped == {}
    assert len(arrays) == 2
    for array, number in zip(arrays.values(), (0, 1), strict=True):
        np.testing.assert_array_equal(array, VALUES + 50 * number)
    lost = min((tmp_path / "both").iterdir())
    lost.unlink()
    next((tmp_path / "both").glob("IM0005")).unlink()  # now one of them has a gap
    reason = "same position, as IM0001 and IM0101" if offset == 0 else "lie between each other|unevenly spaced"
    with pytest.raises(DataError, match=reason):
        find_scans([str(tmp_path)])


def test_a_series_over_folders_is_one(tmp_path: Path) -> None:
    for k in range(N):
        write_slices(tmp_path / "split" / f"d{k:03d}", VALUES[k : k + 1], first=k, SeriesInstanceUID="1.5")
    write_slices(tmp_path / "disc" / "DIR1", VALUES[:7], SeriesInstanceUID="1.6")
    write_slices(tmp_path / "disc" / "DIR2", VALUES[7:], first=7, SeriesInstanceUID="1.6")
    for copy in ("one", "two"):
        write_slices(tmp_path / "patients" / copy, VALUES, SeriesInstanceUID="1.7")  # anonymised to the same UID
    write_slices(tmp_path / "empty" / "one", VALUES, SeriesInstanceUID="", StudyInstanceUID="")
    write_slices(tmp_path / "empty" / "two", VALUES[:5], SeriesInstanceUID="", StudyInstanceUID="")
    arrays, skipped = read(tmp_path)
    assert skipped == {}
    whole = {"split", "disc", "patients_one", "patients_two", "empty_one"}
    assert arrays.keys() == whole | {"empty_two"}
    for name in whole:
        np.testing.assert_array_equal(arrays[name], VALUES)
    (tmp_path / "split" / "d003" / "IM0003").unlink()
    _, skipped = read(tmp_path)
    assert skipped == {
        "split": "DICOM slices are missing or unevenly spaced: 4.00 mm after IM0002, 2.00 mm elsewhere"
        "; its slices lie in 11 folders: d000 d001 d002 ..."
    }


def test_a_scout_is_told_where_folders_are_scans_of_their_own(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write_slices(tmp_path / folder, VALUES)
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "ImagePositionPatient": [0, 0, 0]}
    save(dataset(VALUES[0], **scout), tmp_path / "two" / "scout")
    arrays, skipped = read(tmp_path)
    assert (sorted(arrays), skipped) == (["one", "two"], {"two/scout": "a localizer: set aside"})


def test_headers_decide_what_is_ct_and_the_option_overrules_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, write_scan: Write
) -> None:
    write_slices(tmp_path / "ct", VALUES, SeriesInstanceUID="1.5")
    write_slices(tmp_path / "mr", VALUES, SeriesInstanceUID="1.6", Modality="MR")
    write_slices(tmp_path / "untold", VALUES, SeriesInstanceUID="1.7", Modality=None)
    write_scan(tmp_path / "nifti.nii.gz", VALUES)

    def found(modality: str | None) -> dict[str, tuple[tuple[str, ...], tuple[bool, ...]]]:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            return {scan.name: (scan.channels, scan.is_ct) for scan in find_scans([str(tmp_path)], modality)[0]}

    ct, mr = (("CT",), (True,)), (("MR",), (False,))
    assert found(None) == {"nifti": ct, "ct": ct, "mr": mr, "untold": ct}
    assert "DICOM series that are not CT are treated as non-CT: 1 MR" in caplog.text
    assert found("ct") == dict.fromkeys(("nifti", "ct", "mr", "untold"), ct)
    assert "-modality ct overrides what DICOM files say: 1 MR" in caplog.text
    assert found("mr") == dict.fromkeys(("nifti", "ct", "mr", "untold"), mr)
    assert "-modality mr overrides what DICOM files say: 1 CT" in caplog.text
    scans, _ = find_scans([str(tmp_path)])
    volumes, _ = preprocess(scans, tmp_path / "out", spacing="native", crop_size=(8, 8, 8), processes=1, progress=False)
    assert {volume.name: int(volume.read(0, (0, 0, 0), volume.shape[1:]).max()) for volume in volumes}["ct"] == 325


def test_a_series_that_lies_there_twice_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_slices(tmp_path / "one", VALUES)
    write_slices(tmp_path / "other", VALUES, SeriesInstanceUID="1.5")
    (tmp_path / "copy").mkdir()
    for number, path in enumerate(sorted((tmp_path / "one").iterdir())):
        (tmp_path / "copy" / f"renamed{number}").write_bytes(path.read_bytes())
    with caplog.at_level(logging.WARNING):
        arrays, _ = read(tmp_path)
    assert sorted(arrays) == ["copy", "one", "other"]
    (line,) = caplog.messages
    assert line.endswith(
        ": the same DICOM series lies there 2 times, as copy and one, and is used as often: take the copies out"
    )


def test_damage_is_named_and_costs_its_own_series_only(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_slices(folder, VALUES, SeriesInstanceUID="1.5", SeriesNumber=5)
    write_slices(folder, VALUES, SeriesInstanceUID="1.6", SeriesNumber=6, first=100)
    cut, lost = folder / "IM0004", folder / "lost.dcm"
    cut.write_bytes(cut.read_bytes()[:-50])
    lost.write_bytes(cut.read_bytes()[:200])
    (folder / "empty.dcm").touch()
    save(dataset(VALUES[0], kind=MediaStorageDirectoryStorage, Rows=None, Columns=None), folder / "DICOMDIR")
    scans, skipped = find_scans([str(folder)])
    assert [(item.name, item.reason.partition(" (")[0]) for item in skipped] == [
        ("in/empty.dcm", "empty.dcm is not a DICOM file, or is damaged: fetch it again"),
        ("in/lost.dcm", "lost.dcm holds no image, or is truncated"),
    ]
    assert [scan.name for scan in scans] == ["in_5", "in_6"]
    with pytest.raises(BadScan, match=r"IM0004 is truncated or damaged .*: fetch it again"):
        read_scan(scans[0])
    np.testing.assert_array_equal(read_scan(scans[1])[0][0], VALUES)
