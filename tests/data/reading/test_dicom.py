"""DICOM as hospitals write it: a series is read with the values and the geometry that its files state, or refused."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    RLELossless,
)

from pretraining.data import BadScan, DataError, find_scans, preprocess, read_geometry, read_scan
from tests.data.reading.dicom_files import dataset, enhanced, save, write_slices
from tests.hostile import harmed

Write = Callable[..., Path]
N = 12
VALUES = np.random.default_rng(0).integers(-1000, 1000, (N, 10, 14)).astype(np.int16)
SIDE, TURNED = (0, 1, 0, 0, 0, -1), (0, 1, 0, -1, 0, 0)
AT = [(0, 0, 2 * k) for k in range(N)]


def read(folder: Path, modality: str | None = None) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Voxels of the scans, and the reasons of what is left out; headers and voxels must agree."""
    scans, skipped = find_scans([str(folder)], modality)
    arrays = {}
    for scan in scans:
        array, spacing, _ = read_scan(scan)
        assert read_geometry(scan).spacing == spacing
        assert read_geometry(scan).shape == array.shape[1:]
        arrays[scan.name] = array[0]
    return arrays, {item.name: item.reason for item in skipped}


def with_good(folder: Path) -> Path:
    """A series of another UID beside the one to be tried: there is always a scan."""
    return write_slices(folder / "good", VALUES, SeriesInstanceUID="1.2.4").parent


def differing(count: int, **elements: Any) -> list[dict[str, Any]]:
    """These elements in the last ``count`` slices."""
    return [{}] * (N - count) + [elements] * count


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "half turned in plane": (
        {"per_slice": differing(6, ImageOrientationPatient=list(TURNED))},
        "differ in orientation",
    ),
    "half turned out of plane": ({"per_slice": differing(6, ImageOrientationPatient=list(SIDE))}, "differ in orient"),
    "slightly turned": (
        {"per_slice": differing(3, ImageOrientationPatient=[1, 0, 0, 0, 0.9998, 0.02])},
        r"differ in orientation \(1 x 0 x 0 x 0 x 1 x 0 in IM0000, 1 x 0 x 0 x 0 x 0.9998 x 0.02 in IM0009\)",
    ),
    "two pixel sizes": ({"per_slice": differing(6, PixelSpacing=[0.4, 0.4])}, r"pixel spacing \(0.8 x 0.8 in IM0000"),
    "one other pixel size": ({"per_slice": differing(1, PixelSpacing=[0.8, 0.4])}, "0.8 x 0.4 in IM0011"),
    "no pixel spacing": ({"PixelSpacing": None}, "IM0000 does not state its pixel spacing: export"),
    "zero pixel spacing": ({"PixelSpacing": [0, 0]}, "impossible image orientation or pixel spacing"),
    "one pixel spacing missing": ({"per_slice": differing(1, PixelSpacing=None)}, "IM0011 does not state its pixel sp"),
    "no position": ({"ImagePositionPatient": None}, "does not state its image position:"),
    "no orientation": ({"ImageOrientationPatient": None}, "does not state its image orientation"),
    "no geometry at all": (
        {"ImagePositionPatient": None, "ImageOrientationPatient": None, "PixelSpacing": None},
        "does not state its image position and image orientation and pixel spacing",
    ),
    "orientation of zeros": ({"ImageOrientationPatient": [0] * 6}, "impossible image orientation"),
    "orientation askew": ({"ImageOrientationPatient": [1, 0, 0, 0.5, 0.87, 0]}, "impossible image orientation"),
    "shifted in plane": (
        {"per_slice": [{"ImagePositionPatient": [0.0, 9.0 * (k == 5), 2.0 * k]} for k in range(N)]},
        "IM0005 lies 9.00 mm beside the line of the other slices",
    ),
    "table moved half way": (
        {"per_slice": [{"ImagePositionPatient": [5.0 * (k > 5), 0.0, 2.0 * k]} for k in range(N)]},
        "mm beside the line",
    ),
    "gap": (
        {"per_slice": [{"ImagePositionPatient": [0, 0, 2.0 * k + 2 * (k > 5)]} for k in range(N)]},
        r"4\.00 mm aft",
    ),
    "thicker at the end": (
        {"per_slice": [{"ImagePositionPatient": [0, 0, 2.0 * k + max(0, k - 8)]} for k in range(N)]},
        r"unevenly spaced: 3\.00 mm after IM0008, 2\.00 mm elsewhere",
    ),
    "beside each other": (
        {"ImageOrientationPatient": [1, 0, 0, 0, 0.5, 0.866025]},
        r"its slices lie beside each other, 19\.1 mm over 11\.0 mm along their normal",
    ),
    "twice at one position": (
        {"per_slice": [{"ImagePositionPatient": [0, 0, 2.0 * (k // 2)]} for k in range(N)]},
        "at the same position, as IM0000 and IM0001$",
    ),
    "two frames of reference": ({"per_slice": differing(4, FrameOfReferenceUID="1.2.8")}, "different frames of refer"),
    "slope of zero in one": ({"per_slice": differing(1, RescaleSlope=0)}, "IM0011 states a rescale slope of 0"),
    "slope missing in one": (
        {"per_slice": differing(1, RescaleSlope=None)},
        "IM0000 states a rescale slope and IM0011 does not",
    ),
    "intercept missing in one": (
        {"per_slice": differing(1, RescaleIntercept=None)},
        "IM0000 states a rescale intercept and IM0011 does not",
    ),
    "values in the upper bits": (
        {"BitsStored": 12},
        "IM0000 has its values in bits 4 to 15",
    ),
    "half in colour": ({"per_slice": differing(6, PhotometricInterpretation="RGB")}, "IM0006 is a colour image"),
    "half without a place": (
        {"per_slice": differing(6, ImagePositionPatient=None, ImageOrientationPatient=None)},
        "IM0006 does not state its image position and image orientation",
    ),
    "colour": ({"PhotometricInterpretation": "PALETTE COLOR"}, "IM0000 is a colour image"),
    "localizers alone": ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizers"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_series_that_is_not_one_volume_is_skipped_with_what_it_is(tmp_path: Path, what: str) -> None:
    how, reason = REFUSED[what]
    write_slices(with_good(tmp_path) / "tried", VALUES, **how)
    arrays, skipped = read(tmp_path)
    assert list(arrays) == ["good"]
    assert list(skipped) == ["tried"]
    assert re.search(reason, skipped["tried"]), skipped["tried"]


READ: dict[str, dict[str, Any]] = {
    "ordinary": {},
    "downwards": {"step": (0, 0, -2)},
    "rounded positions": {"step": (0, 0, 1.25), "round": 1},
    "written with seven digits": {"step": (0, 0, 3), "places": [-1085.334 + 3.000001 * k for k in range(N)]},
    "thin and rounded": {"step": (0, 0, 0.625), "round": 2},
    "thin and rounded to tenths": {"step": (0, 0, 0.625), "round": 1},
    "rounded to whole millimetres": {"step": (0, 0, 2.5), "round": 0},
    "noise in the last digits": {
        "per_slice": [
            {"ImageOrientationPatient": [1, 0, 1e-6 * k, 0, 1, 0], "PixelSpacing": [0.8, 0.8 + 1e-6 * k]}
            for k in range(N)
        ]
    },
    "oblique": {"ImageOrientationPatient": [0.8, 0.6, 0, -0.6, 0.8, 0]},
    "table steps": {"per_slice": [{"AcquisitionNumber": k // 4} for k in range(N)]},
    "an acquisition a slice": {"per_slice": [{"AcquisitionNumber": k} for k in range(N)]},
    "another kind of slice between": {
        "per_slice": [{"ImageType": ["DERIVED" if k in (3, 4) else "ORIGINAL", "PRIMARY"]} for k in range(N)]
    },
    "no frame of reference": {"FrameOfReferenceUID": None},
    "no series UID": {"SeriesInstanceUID": None, "StudyInstanceUID": None},
    "no rescaling": {"RescaleSlope": None, "RescaleIntercept": None},
    "untrue distance": {"SpacingBetweenSlices": 7},
}


@pytest.mark.parametrize("what", READ)
def test_what_is_one_volume_is_read(tmp_path: Path, what: str) -> None:
    how = dict(READ[what])
    step, digits = how.pop("step", (0, 0, 2)), how.pop("round", None)
    if places := how.pop("places", None):
        how["per_slice"] = [{"ImagePositionPatient": [0, 0, round(place, 3)]} for place in places]
    if digits is not None:
        how["per_slice"] = [{"ImagePositionPatient": [0, 0, round(step[2] * k, digits)]} for k in range(N)]
    write_slices(tmp_path / "tried", VALUES, step, **how)
    arrays, skipped = read(tmp_path)
    assert skipped == {}
    np.testing.assert_array_equal(arrays["tried"], VALUES[::-1] if step[2] < 0 else VALUES)
    (scan,), _ = find_scans([str(tmp_path)])
    exact = what in ("ordinary", "downwards", "written with seven digits")
    assert read_geometry(scan).spacing == pytest.approx((abs(step[2]), 0.8, 0.8), rel=0 if exact else 0.02)


@pytest.mark.parametrize("count", [1, 2])
def test_two_slices_are_no_volume(tmp_path: Path, count: int) -> None:
    write_slices(with_good(tmp_path) / "tried", VALUES[:count])
    slices = "1 DICOM slice" if count == 1 else "2 DICOM slices"
    assert read(tmp_path)[1] == {"tried": f"is 2D: {slices}, not a 3D scan"}


def test_each_slice_has_its_own_rescaling(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    uptake = rng.gamma(2.0, 0.6, VALUES.shape)
    uptake[0] = 0
    slopes = np.where(np.arange(N) == 0, 1, 0.0005 * (1 + np.arange(N)))
    stored = np.rint(uptake / slopes[:, None, None]).astype(np.uint16)
    told = [{"RescaleSlope": round(float(slope), 6), "RescaleIntercept": 0.25 * k} for k, slope in enumerate(slopes)]
    write_slices(tmp_path / "pet", stored, per_slice=told, Modality="PT")
    arrays, _ = read(tmp_path)
    meant = stored * slopes[:, None, None] + 0.25 * np.arange(N)[:, None, None]
    np.testing.assert_allclose(arrays["pet"], meant, rtol=1e-6)


def test_a_lookup_table_instead_of_rescaling(tmp_path: Path) -> None:
    table = pydicom.Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [256, 0, 16], "US"
    table.LUTData = (3 * np.arange(256)).astype(np.uint16).tobytes()
    table["LUTData"].VR = "OW"
    stored = (VALUES % 256).astype(np.uint16)
    rescale = {"RescaleSlope": None, "RescaleIntercept": None, "PixelRepresentation": 0}
    write_slices(tmp_path / "in", stored, ModalityLUTSequence=[table], **rescale)
    np.testing.assert_array_equal(read(tmp_path)[0]["in"], 3 * stored)


def test_frames_are_put_where_their_groups_say(tmp_path: Path) -> None:
    order = np.random.default_rng(2).permutation(N)
    told = [{"RescaleSlope": 1.0 + 0.5 * int(k), "RescaleIntercept": -100.0 * int(k)} for k in order]
    positions = [(0, 0, 2 * int(k)) for k in order]
    save(enhanced(VALUES[order], positions, told), tmp_path / "mixed" / "a.dcm")
    save(enhanced(VALUES, AT, SeriesInstanceUID="1.2.5"), tmp_path / "shared" / "b.dcm")
    arrays, skipped = read(tmp_path)
    assert skipped == {}
    numbers = np.arange(N)[:, None, None]
    np.testing.assert_allclose(arrays["mixed"], VALUES * (1 + 0.5 * numbers) - 100 * numbers, rtol=1e-6)
    np.testing.assert_array_equal(arrays["shared"], VALUES)


@pytest.mark.parametrize(
    ("positions", "reason"),
    [
        ([(0, 0, 2 * k + 40 * (k > 5)) for k in range(N)], r"unevenly spaced: 42\.00 mm"),
        (
            [(0, 0, 2 * (k % 6)) for k in range(N)],
            r"at the same position, as a\.dcm \(frame 1\) and a\.dcm \(frame 7\)",
        ),
        (AT[:-1], "declares 12 frames and describes 11"),
    ],
)
def test_frames_are_checked_as_slices_are(tmp_path: Path, positions: Any, reason: str) -> None:
    data = enhanced(VALUES[: len(positions)], positions)
    data.NumberOfFrames, data.PixelData = N, VALUES.tobytes()
    save(data, with_good(tmp_path) / "tried" / "a.dcm")
    arrays, skipped = read(tmp_path)
    assert list(arrays) == ["good"]
    assert re.search(reason, skipped["tried"])


def test_frames_without_places_are_a_film(tmp_path: Path) -> None:
    plain = {"ImagePositionPatient": [0, 0, 0], "SeriesInstanceUID": "1.2.7"}
    save(dataset(VALUES, Modality="XA", **plain), with_good(tmp_path) / "film" / "a.dcm")
    save(dataset(VALUES, SpacingBetweenSlices=3, **plain), tmp_path / "spect" / "a.dcm")  # it tells their distance
    arrays, skipped = read(tmp_path)
    assert "a.dcm has 12 frames without positions" in skipped["film"]
    np.testing.assert_array_equal(arrays["spect"], VALUES)


CINE = {"ImagePositionPatient": [0, 0, 0], "SpacingBetweenSlices": 3, "SeriesInstanceUID": "1.2.7"}


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"FrameTime": 40}, "a.dcm has 12 frames that differ in FrameTime: a film"),
        ({"FrameIncrementPointer": 0x00181063, "FrameTime": 40}, "FrameTime"),
        ({"FrameIncrementPointer": [0x00540070, 0x00540080], "TimeSlotVector": [1] * 6 + [2] * 6}, "TimeSlotVector"),
        ({"FrameIncrementPointer": 0x00540080, "SliceVector": [1, 2, 3, 4, 5, 6] * 2}, "SliceVector does not number"),
    ],
)
def test_frames_that_follow_each_other_in_time_are_no_volume(tmp_path: Path, told: Any, reason: str) -> None:
    save(dataset(VALUES, **CINE, **told), with_good(tmp_path) / "tried" / "a.dcm")
    arrays, skipped = read(tmp_path)
    assert list(arrays) == ["good"]
    assert re.search(reason, skipped["tried"]), skipped["tried"]


def test_frames_of_nuclear_medicine_lie_where_the_detector_says(tmp_path: Path) -> None:
    detector = pydicom.Dataset()
    detector.ImagePositionPatient, detector.ImageOrientationPatient = [0, 0, 100], list(SIDE)
    data = dataset(VALUES, **{**CINE, "ImagePositionPatient": None, "ImageOrientationPatient": None}, Modality="NM")
    data.DetectorInformationSequence = [detector]
    data.FrameIncrementPointer, data.DetectorVector = [0x00540020, 0x00540080], [1] * N
    order = np.random.default_rng(3).permutation(N)
    data.SliceVector = [int(k) + 1 for k in order]
    data.SpacingBetweenSlices = -3
    save(data, tmp_path / "spect" / "a.dcm")
    arrays, skipped = read(tmp_path)
    assert skipped == {}
    np.testing.assert_array_equal(arrays["spect"], VALUES[np.argsort(order)][::-1])
    assert read_geometry(find_scans([str(tmp_path)])[0][0]).direction == (0, 0, -1, 1, 0, 0, 0, -1, 0)


def groups_of(frames: int, sequence: str, **told: list[Any]) -> Callable[[pydicom.Dataset], None]:
    """Puts a sequence into the group of each frame: one value in the first half, another in the second."""

    def put(data: pydicom.Dataset) -> None:
        for number, group in enumerate(data.PerFrameFunctionalGroupsSequence):
            item = pydicom.Dataset()
            for keyword, values in told.items():
                setattr(item, keyword, values[number >= frames // 2])
            setattr(group, sequence, [item])

    return put


@pytest.mark.parametrize(
    ("sequence", "keyword", "values", "kind"),
    [
        ("FrameContentSequence", "TemporalPositionIndex", [1, 2], "TemporalPositionIdentifier"),
        ("FrameContentSequence", "FrameAcquisitionNumber", [1, 2], "AcquisitionNumber"),
        ("FrameContentSequence", "StackID", ["1", "2"], "StackID"),
        ("MREchoSequence", "EffectiveEchoTime", [10.0, 20.0], "EchoTime"),
        ("MRDiffusionSequence", "DiffusionBValue", [0.0, 1000.0], "DiffusionBValue"),
        ("MRImageFrameTypeSequence", "FrameType", [["ORIGINAL", "M"], ["ORIGINAL", "P"]], "ImageType"),
        ("CTReconstructionSequence", "ConvolutionKernel", ["B30", "B70"], "ConvolutionKernel"),
        ("CTXRayDetailsSequence", "KVP", [80, 140], "KVP"),
    ],
)
@pytest.mark.parametrize("offset", [0, 1])
def test_phases_of_frames_are_noticed(
    tmp_path: Path, sequence: str, keyword: str, values: list[Any], kind: str, offset: int
) -> None:
    """At the same positions, or half a step apart, which looks like one volume of half the distance."""
    data = enhanced(VALUES, [(0, 0, 2 * (k % 6) + offset * (k >= 6)) for k in range(N)])
    groups_of(N, sequence, **{keyword: values})(data)
    save(data, with_good(tmp_path) / "tried" / "a.dcm")
    arrays, skipped = read(tmp_path)
    assert list(arrays) == ["good"]
    reason = skipped["tried"]
    assert kind in reason
    assert "lie between each other" in reason if offset else "a.dcm (frame 1) and a.dcm (frame 7)" in reason


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


@pytest.mark.parametrize("degrees", [20, -12])
def test_a_tilted_gantry_is_straightened(tmp_path: Path, degrees: float, caplog: pytest.LogCaptureFixture) -> None:
    """Where the slices lie is told, so the values of a linear function of space are known in all places."""
    angle, rows, columns = np.deg2rad(degrees), 40, 30
    cosines = np.array([1, 0, 0, 0, np.cos(angle), np.sin(angle)])
    normal = np.cross(cosines[:3], cosines[3:])
    k, r, c = np.mgrid[:N, :rows, :columns]
    at = np.multiply.outer(k, (0, 0, 2.0)) + 0.8 * (
        np.multiply.outer(c, cosines[:3]) + np.multiply.outer(r, cosines[3:])
    )
    slope = np.array([1.0, 3.0, 2.0])
    told = [float(f"{value:.9g}") for value in cosines]
    write_slices(tmp_path / "tilt", np.rint(10 * (at @ slope)).astype(np.int16), ImageOrientationPatient=told)
    with caplog.at_level(logging.WARNING):
        arrays, _ = read(tmp_path)
    assert f"tilt has a gantry tilt of {abs(degrees):.1f} degrees: straightened" in caplog.text
    (scan,), _ = find_scans([str(tmp_path)])
    assert read_geometry(scan).spacing == pytest.approx((2 * np.cos(angle), 0.8, 0.8), abs=1e-4)
    # Straight: a step along the first axis is one along the normal. Far from the edge, where slices were moved away.
    inside = arrays["tilt"][:, 10:-10, 5:-5] / 10
    change = np.array([2 * np.cos(angle) * normal, 0.8 * cosines[3:], 0.8 * cosines[:3]]) @ slope
    for axis in range(3):
        steps = np.diff(inside, axis=axis)
        np.testing.assert_allclose(steps, change[axis], atol=0.21)  # of rounding
        assert steps.mean() == pytest.approx(change[axis], abs=0.02)


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


@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
def test_all_encodings_give_the_same_voxels(tmp_path: Path, dtype: type) -> None:
    stored = VALUES if dtype is np.int16 else (VALUES + 1000).astype(np.uint16)
    syntaxes = {
        **{"implicit": ImplicitVRLittleEndian, "deflated": DeflatedExplicitVRLittleEndian},
        **{"big": ExplicitVRBigEndian, "rle": RLELossless},
    }
    for number, (name, syntax) in enumerate(syntaxes.items()):
        write_slices(tmp_path / name, stored, SeriesInstanceUID=f"1.{number}", syntax=syntax)
    for number, name in enumerate(("JPEG", "JPEG2000")):
        for path in write_slices(tmp_path / name, stored, SeriesInstanceUID=f"2.{number}").iterdir():
            image = sitk.ReadImage(str(path))
            plane = image[:, :, 0]
            for key in image.GetMetaDataKeys():
                plane.SetMetaData(key, image.GetMetaData(key))
            writer = sitk.ImageFileWriter()
            writer.SetImageIO("GDCMImageIO")
            writer.KeepOriginalImageUIDOn()
            writer.SetUseCompression(True)
            writer.SetCompressor(name)
            writer.SetFileName(str(path))
            writer.Execute(plane)
            assert pydicom.dcmread(path).file_meta.TransferSyntaxUID.is_compressed
    arrays, skipped = read(tmp_path)
    assert skipped == {}
    assert sorted(arrays) == ["JPEG", "JPEG2000", "big", "deflated", "implicit", "rle"]
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, stored, err_msg=name)


@pytest.mark.parametrize("left", ["nothing", "meta", "nothing, big endian"])
def test_files_without_preamble_are_read(tmp_path: Path, left: str) -> None:
    syntax = ExplicitVRBigEndian if "big" in left else ExplicitVRLittleEndian
    for path in write_slices(tmp_path / "old", VALUES, syntax=syntax).iterdir():
        data = pydicom.dcmread(path)
        data.preamble = None
        if left != "meta":
            data.file_meta.clear()
        data.save_as(path, implicit_vr=False, little_endian=syntax.is_little_endian)
        assert path.read_bytes()[:2] == {"meta": b"\2\0", "nothing": b"\x08\0"}.get(left, b"\0\x08")
    arrays, skipped = read(tmp_path)
    assert skipped == {}
    np.testing.assert_array_equal(arrays["old"], VALUES)


def test_what_lies_beyond_the_field_of_view_is_not_bright(tmp_path: Path) -> None:
    """Stored as -2000 by signed scanners, it became 63536 somewhere."""
    stored = (VALUES + 1024).astype(np.uint16)
    stored[:, :2] = 63536
    padding = {"RescaleIntercept": -1024, "PixelPaddingValue": 63536}
    write_slices(tmp_path / "in", stored, **padding)
    array = read(tmp_path)[0]["in"]
    np.testing.assert_array_equal(array[:, 2:], VALUES[:, 2:])
    np.testing.assert_array_equal(array[0, :2], np.full((2, 14), VALUES[0, 2:].min()))


def test_bits_that_are_not_stored_are_no_part_of_a_value(tmp_path: Path) -> None:
    stored = VALUES + 1000
    with_overlay = (stored.astype(np.uint16) | np.uint16(0xA000)).astype(np.uint16)
    write_slices(tmp_path / "twelve", with_overlay, BitsStored=12, HighBit=11, RescaleIntercept=-1000)
    np.testing.assert_array_equal(read(tmp_path)[0]["twelve"], VALUES)


def test_files_that_change_after_they_were_found_are_told(tmp_path: Path) -> None:
    (scan,), _ = find_scans([str(write_slices(tmp_path / "in", VALUES))])
    write_slices(tmp_path / "in", VALUES, (0, 0, 3))  # of another distance
    with pytest.raises(BadScan, match="not as they were when the series was found: start again"):
        read_scan(scan)
    write_slices(tmp_path / "in", VALUES[:, :-1])
    with pytest.raises(BadScan, match="IM0000 is not as it was when the series was found"):
        read_scan(scan)


@pytest.mark.parametrize("syntax", ["51", "53", "100", "94"])
def test_what_cannot_be_decoded_is_not_called_damaged(tmp_path: Path, syntax: str) -> None:
    uid = pydicom.uid.UID(f"1.2.840.10008.1.2.4.{syntax}")
    for path in write_slices(with_good(tmp_path) / "tried", VALUES).iterdir():
        data = pydicom.dcmread(path)
        data.PixelData = pydicom.encaps.encapsulate([data.PixelData])
        data["PixelData"].VR, data.file_meta.TransferSyntaxUID = "OB", uid
        data.save_as(path)
    arrays, skipped = read(tmp_path)
    assert list(arrays) == ["good"]
    reason = f"IM0000 is stored as {uid.name}, which cannot be decoded here: export it uncompressed"
    assert skipped == {"tried": f"{reason}; the same for 11 more files there"}


def test_a_damaged_frame_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Decoders log their tracebacks."""
    for path in write_slices(tmp_path / "in", VALUES).iterdir():
        data = pydicom.dcmread(path)
        data.PixelData = pydicom.encaps.encapsulate([data.PixelData])
        data["PixelData"].VR, data.file_meta.TransferSyntaxUID = "OB", pydicom.uid.JPEG2000Lossless
        data.save_as(path)
    (scan,), _ = find_scans([str(tmp_path)])
    with pytest.raises(BadScan, match="IM0000 is truncated or damaged"):
        read_scan(scan)
    assert caplog.messages == []


@pytest.mark.parametrize("left", [(0, 2, 3), (0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11), (0, 2, 3, 4, 5)])
@pytest.mark.parametrize("step", [1.0, 2.0, 2.5, 5.0])
def test_rounded_positions_hide_no_gap(tmp_path: Path, step: float, left: tuple[int, ...]) -> None:
    told = [{"ImagePositionPatient": [0, 0, float(round(step * k))]} for k in left]
    write_slices(with_good(tmp_path) / "tried", VALUES[: len(left)], per_slice=told)
    arrays, skipped = read(tmp_path)
    assert list(arrays) == ["good"]
    assert "missing or unevenly spaced" in skipped["tried"]


def test_a_distance_that_changes_a_little_adds_up(tmp_path: Path) -> None:
    told = [{"ImagePositionPatient": [0, 0, 2.0 * k + 0.18 * max(0, k - 20)]} for k in range(4 * N)]
    write_slices(with_good(tmp_path) / "tried", np.concatenate([VALUES] * 4), per_slice=told)
    arrays, skipped = read(tmp_path)
    assert list(arrays) == ["good"]
    assert "unevenly spaced" in skipped["tried"]


def test_more_pixels_than_announced_are_said(tmp_path: Path) -> None:
    path = write_slices(tmp_path / "in", VALUES) / "IM0003"
    data = pydicom.dcmread(path)
    data.PixelData += data.PixelData
    data.save_as(path)
    with pytest.raises(BadScan, match="IM0003 holds more frames than it declares"):
        read_scan(find_scans([str(tmp_path)])[0][0])


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


def test_a_small_file_takes_no_memory_for_what_it_claims(tmp_path: Path) -> None:
    write_slices(tmp_path / "good", VALUES, SeriesInstanceUID="1.2.4")
    film = dataset(VALUES, NumberOfFrames=10**9, SpacingBetweenSlices=1, ImagePositionPatient=[0, 0, 0])
    save(film, tmp_path / "frames" / "a.dcm")
    large = np.zeros((3000, 3000), np.int16)
    deflated = {"syntax": DeflatedExplicitVRLittleEndian, "SeriesInstanceUID": "1.9"}
    save(dataset(large, ImagePositionPatient=[0, 0, 0], **deflated), tmp_path / "deflated" / "a.dcm")
    with (tmp_path / "deflated" / "a.dcm").open("ab") as file:
        file.truncate(9 * 1024**2)
    _, skipped = read(tmp_path)
    assert skipped == {
        "frames": "a.dcm declares 1000000000 frames: it is damaged, fetch it again",
        "deflated": "a.dcm is deflated: store it in another transfer syntax",
    }


def test_more_voxels_than_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (scan,), _ = find_scans([str(write_slices(tmp_path / "in", VALUES))])
    monkeypatch.setattr("pretraining.data.reading.reader.memory_of_machine", lambda: 4 * VALUES.size - 1)
    with pytest.raises(BadScan, match="IM0000 declares 12 x 10 x 14 voxels"):
        read_scan(scan)


@pytest.mark.parametrize("encoded", ["plain", "RLE"])
def test_any_slice_is_read_or_refused(tmp_path: Path, encoded: str) -> None:
    """500 harmed slices in the middle of three, as whatever they claim to hold, and in little memory."""
    resource = pytest.importorskip("resource")
    write_slices(tmp_path / "in", VALUES[:3])
    middle = tmp_path / "in" / "IM0001"
    if encoded == "RLE":
        data = pydicom.dcmread(middle)
        data.compress(RLELossless, generate_instance_uid=False)
        data.save_as(middle)
    good, rng = middle.read_bytes(), random.Random(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for _ in range(500):
        middle.write_bytes(harmed(good, rng, start=132))
        try:
            for scan in find_scans([str(tmp_path / "in")])[0]:
                read_scan(scan)
        except (BadScan, DataError):  # anything else is a fault of ours
            refused += 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB
    assert refused
