"""The values of DICOM files in all encodings, and files that are damaged or larger than they seem."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from pretraining.data import BadScan, DataError, find_scans, read_scan
from tests.data.reading.dicom_files import VALUES, N, dataset, read, save, with_good, write_slices
from tests.hostile import harmed


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


def test_more_pixels_than_announced_are_said(tmp_path: Path) -> None:
    path = write_slices(tmp_path / "in", VALUES) / "IM0003"
    data = pydicom.dcmread(path)
    data.PixelData += data.PixelData
    data.save_as(path)
    with pytest.raises(BadScan, match="IM0003 holds more frames than it declares"):
        read_scan(find_scans([str(tmp_path)])[0][0])


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
