"""Lengths that DICOM files claim, in files put together byte by byte as PS3.5 says, and in those of SimpleITK."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from pretraining.data import BadScan, DataError, find_scans, read_scan
from pretraining.data.dicom_lengths import damaged_element
from tests.hostile import harmed

IMPLICIT, EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
UNDEFINED = 0xFFFFFFFF


def explicit(tag: int, kind: str, value: bytes, length: int | None = None, order: str = "<") -> bytes:
    length = len(value) if length is None else length
    form = "2xI" if kind in ("OB", "OW", "SQ", "UN", "UT") else "H"
    return struct.pack(f"{order}HH2s{form}", tag >> 16, tag & 0xFFFF, kind.encode(), length) + value


def implicit(tag: int, value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(value) if length is None else length) + value


def dicom(path: Path, syntax: str, *elements: bytes) -> Path:
    meta = explicit(0x00020010, "UI", syntax.encode() + b"\0" * (len(syntax) % 2))
    path.write_bytes(bytes(128) + b"DICM" + explicit(0x00020000, "UL", struct.pack("<I", len(meta))) + meta)
    with path.open("ab") as file:
        file.write(b"".join(elements))
    return path


INNER = explicit(0x00081150, "UI", b"1.2\0")
CLOSED = implicit(0xFFFEE000, INNER)
OPEN = implicit(0xFFFEE000, INNER + implicit(0xFFFEE00D, b""), UNDEFINED)
ROWS, PIXELS = explicit(0x00280010, "US", b"\x04\0"), explicit(0x7FE00010, "OW", bytes(64))
SOUND = {
    "explicit": (EXPLICIT, ROWS, PIXELS),
    "implicit": (IMPLICIT, implicit(0x00280010, b"\x04\0"), implicit(0x7FE00010, bytes(64))),
    "big endian": (BIG_ENDIAN, explicit(0x00280010, "US", b"\0\x04", None, ">")),
    "sequence of known length": (EXPLICIT, explicit(0x00081140, "SQ", CLOSED + CLOSED), ROWS, PIXELS),
    "sequence without length": (
        *(EXPLICIT, explicit(0x00081140, "SQ", OPEN + CLOSED + implicit(0xFFFEE0DD, b""), UNDEFINED), ROWS, PIXELS),
    ),
    "implicit sequence": (
        *(IMPLICIT, implicit(0x00081140, implicit(0xFFFEE000, b""), UNDEFINED), implicit(0xFFFEE0DD, b"")),
    ),
    "fragments": (EXPLICIT, explicit(0x7FE00010, "OB", implicit(0xFFFEE000, b"\xff" * 99), UNDEFINED)),
    "private without type": (EXPLICIT, struct.pack("<HH2sH", 0x0029, 0x1010, b"\0\0", 4) + bytes(4), ROWS, PIXELS),
    "explicit in name only": (EXPLICIT, implicit(0x00280010, b"\x04\0"), implicit(0x7FE00010, bytes(64))),
    "zeros at the end": (EXPLICIT, ROWS, PIXELS, bytes(50)),
    "nothing": (EXPLICIT,),
    "a long header": (EXPLICIT, explicit(0x00081030, "UT", bytes(40_000)), ROWS, PIXELS),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_files_are_let_through(tmp_path: Path, name: str) -> None:
    assert damaged_element(dicom(tmp_path / "a.dcm", *SOUND[name])) is None


@pytest.mark.parametrize(
    ("elements", "named"),
    [
        ((EXPLICIT, ROWS, PIXELS[:-1]), "(7fe0,0010)"),
        ((EXPLICIT, explicit(0x00081030, "LO", b"", 60000), ROWS, PIXELS), "(0008,1030)"),
        ((EXPLICIT, explicit(0x00081030, "UT", bytes(40_000)), ROWS, PIXELS[:-1]), "(7fe0,0010)"),
        ((IMPLICIT, implicit(0x00280010, b"\x04\0", 3_000_000_000)), "(0028,0010)"),
        ((BIG_ENDIAN, explicit(0x00280010, "UN", bytes(9), 10**9, ">")), "(0028,0010)"),
        ((EXPLICIT, explicit(0x00081140, "SQ", implicit(0xFFFEE000, INNER, 10**9)), ROWS), "(fffe,e000)"),
        ((EXPLICIT, explicit(0x00081140, "SQ", implicit(0xFFFEE000, ROWS + ROWS, 10**9), UNDEFINED)), "(fffe,e000)"),
        ((EXPLICIT, struct.pack("<HH2sH", 0x0028, 0x0010, b"u:", 77) + ROWS), "(0028,0010)"),
    ],
)
def test_the_damaged_element_is_named(tmp_path: Path, elements: Any, named: str) -> None:
    assert damaged_element(dicom(tmp_path / "a.dcm", *elements)) == named


def test_a_file_begins_with_what_tells_its_encoding(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a.dcm", EXPLICIT, ROWS)
    path.write_bytes(path.read_bytes().replace(b"DICM\x02", b"DICM\x5a"))
    assert damaged_element(path) == "(005a,0000)"


@pytest.mark.parametrize("compressor", [None, "JPEG", "JPEG2000", "JPEGLS", "RLE"])
def test_files_of_simpleitk_are_let_through(tmp_path: Path, compressor: str | None) -> None:
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 900, (60, 70)).astype(np.uint16))
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(tmp_path / "a.dcm"))
    if compressor:
        writer.SetUseCompression(True)
        writer.SetCompressor(compressor)
    writer.Execute(image)
    assert damaged_element(tmp_path / "a.dcm") is None


def test_a_damaged_slice_costs_its_own_series_only(tmp_path: Path, write_dicom: Callable[..., Path]) -> None:
    folder, values = tmp_path / "in", np.random.default_rng(0).integers(-1024, 325, (6, 10, 12)).astype(np.int16)
    write_dicom(folder, values, uid="1.2.826.0.1.3")
    write_dicom(folder, values, uid="1.2.826.0.1.4")
    slices = sorted(folder.glob("1.2.826.0.1.3-*"))
    slices[2].write_bytes(slices[2].read_bytes()[:-50])
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + slices[1].read_bytes()[132:300])
    scans, skipped = find_scans([str(folder)])
    assert [item.reason for item in skipped] == [
        f"{slices[2].name} is truncated or damaged at its element (7fe0,0010): passed over"
    ]
    cut, whole = sorted(scans, key=lambda scan: len(scan.files))
    assert (len(cut.files), len(whole.files)) == (5, 6)
    array, _, _ = read_scan(whole)
    assert np.array_equal(array[0], values)
    with pytest.raises(BadScan, match="DICOM slices are missing"):
        read_scan(cut)


def test_any_slice_is_read_or_refused(tmp_path: Path, write_dicom: Callable[..., Path]) -> None:
    """1,000 harmed slices in the middle of a series of three; without the check, GDCM takes gigabytes for some."""
    resource = pytest.importorskip("resource")
    values = np.random.default_rng(0).integers(-1024, 325, (3, 10, 12)).astype(np.int16)
    write_dicom(tmp_path / "in", values)
    _, middle, _ = sorted((tmp_path / "in").iterdir())
    good, rng = middle.read_bytes(), random.Random(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for _ in range(1000):
        middle.write_bytes(harmed(good, rng, start=132))
        with suppress(BadScan, DataError):  # anything else is a fault of ours
            scans, skipped = find_scans([str(tmp_path / "in")])
            refused += bool(skipped)
            for scan in scans:
                read_scan(scan)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB; of GDCM's gigabytes
    assert refused
