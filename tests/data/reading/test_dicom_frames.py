"""DICOM objects of several frames: each lies where the object says, or the object is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from pretraining.data import find_scans, read_geometry
from tests.data.reading.dicom_files import VALUES, N, dataset, enhanced, read, save, with_good

SIDE = (0, 1, 0, 0, 0, -1)
AT = [(0, 0, 2 * k) for k in range(N)]


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
