"""Which DICOM frames form one volume: a series is read with the geometry that its files state, or refused."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretraining.data import BadScan, find_scans, read_geometry, read_scan
from tests.data.reading.dicom_files import VALUES, N, read, with_good, write_slices

SIDE, TURNED = (0, 1, 0, 0, 0, -1), (0, 1, 0, -1, 0, 0)


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


def test_files_that_change_after_they_were_found_are_told(tmp_path: Path) -> None:
    (scan,), _ = find_scans([str(write_slices(tmp_path / "in", VALUES))])
    write_slices(tmp_path / "in", VALUES, (0, 0, 3))  # of another distance
    with pytest.raises(BadScan, match="not as they were when the series was found: start again"):
        read_scan(scan)
    write_slices(tmp_path / "in", VALUES[:, :-1])
    with pytest.raises(BadScan, match="IM0000 is not as it was when the series was found"):
        read_scan(scan)
