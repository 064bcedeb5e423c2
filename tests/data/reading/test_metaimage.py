"""MetaImage headers that few writers write: read as SimpleITK reads them, or refused with a reason that is true."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from pretraining.data import BadScan, read_geometry, read_scan
from pretraining.data.reading.orientation import read_orientation
from tests.data.reading.scans import reason, scan_of, values_of

VALUES = np.random.default_rng(0).integers(-1000, 1000, (4, 5, 6)).astype("<i2")
LITTLE, BIG = VALUES.tobytes(), VALUES.astype(">i2").tobytes()
ASCII = (" ".join(map(str, VALUES.ravel())) + "\n").encode()
ZLIB, GZIP = zlib.compress(LITTLE), gzip.compress(LITTLE)
DAMAGED = ZLIB[:50] + bytes([ZLIB[50] ^ 255]) + ZLIB[51:]
IN_PARTS = gzip.compress(LITTLE[:100]) + gzip.compress(LITTLE[100:])
BASE = {
    **{"ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False"},
    **{"CompressedData": "False", "ElementSpacing": "0.8 0.7 2", "DimSize": "6 5 4", "ElementType": "MET_SHORT"},
}


def metaimage(path: Path, body: bytes = LITTLE, data_file: str = "LOCAL", **fields: str | None) -> Path:
    """A MetaImage file; a field that is None is left out."""
    lines = [f"{key} = {value}" for key, value in {**BASE, **fields}.items() if value is not None]
    path.write_bytes("\n".join([*lines, f"ElementDataFile = {data_file}\n"]).encode() + body)
    return path


def compressed(content: bytes, **fields: str | None) -> dict[str, Any]:
    return {"body": content, "CompressedData": "True", "CompressedDataSize": str(len(content)), **fields}


READ: dict[str, dict[str, Any]] = {
    "as_written": {},
    "big": {"body": BIG, "BinaryDataByteOrderMSB": "True"},
    "big_1": {"body": BIG, "BinaryDataByteOrderMSB": "1"},
    "big_t": {"body": BIG, "BinaryDataByteOrderMSB": "T"},
    "big_by_another_key": {"body": BIG, "BinaryDataByteOrderMSB": None, "ElementByteOrderMSB": "True"},
    "first_key_counts": {"body": BIG, "BinaryDataByteOrderMSB": "True", "ElementByteOrderMSB": "False"},
    "local": {"data_file": "Local"},
    "ascii": {"body": ASCII, "BinaryData": "False"},
    "binary_is_understood": {"BinaryData": None},
    "compressed_t": compressed(ZLIB, CompressedData="T"),
    "compressed_by_gzip": compressed(GZIP),
    "compressed_with_more_behind": compressed(ZLIB) | {"body": ZLIB + b"behind"},
    "header_within": {"body": b"13 bytes here" + LITTLE, "HeaderSize": "-1"},
    "header_within_in_other_words": {"body": b"13 bytes here" + LITTLE, "Comment": "x\nHeaderSize: -1"},
    "one_channel": {"ElementNumberOfChannels": "1"},
    "slope": {"ElementToIntensityFunctionSlope": "2", "ElementToIntensityFunctionOffset": "-10"},  # not ITK's affair
    "tabs": {"DimSize": "6\t5\t4"},
    "more_sizes": {"DimSize": "6 5 4 3"},
    "comment": {"Comment": "ElementType = MET_UCHAR"},
    "other_case": {"dimsize": "1 1 1"},
    "element_size": {"ElementSpacing": None, "ElementSize": "0.8 0.7 2"},
    "both_sizes": {"ElementSize": "9 9 9"},
}


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("reader", ["SimpleITKIO", "SimpleITKIOWithReorient"])
def test_metaimage_that_itk_reads_right(tmp_path: Path, name: str, reader: str) -> None:
    path = metaimage(tmp_path / "a.mha", **READ[name])
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), VALUES)
    turned = VALUES[:, ::-1, ::-1] if reader == "SimpleITKIOWithReorient" else VALUES  # to RAS from LPS
    np.testing.assert_array_equal(values_of(path, reader), turned)
    assert read_geometry(scan_of(path, reader=reader)).spacing == pytest.approx((2, 0.7, 0.8))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "compressed_damaged": (compressed(DAMAGED, CompressedData="T"), "truncated or damaged"),
    "compressed_cut": (compressed(ZLIB[:-60]) | {"CompressedDataSize": str(len(ZLIB))}, "truncated or damaged"),
    "compressed_less": (compressed(zlib.compress(LITTLE[:100]), BinaryData="T"), "100 of 240 bytes"),
    "compressed_in_parts": (compressed(IN_PARTS), "of 240 bytes"),
    "compressed_size_less": (compressed(ZLIB) | {"CompressedDataSize": "60"}, "truncated or damaged"),
    "compressed_no_size": (compressed(ZLIB, CompressedDataSize=None), "CompressedDataSize"),
    "compressed_in_header": (compressed(ZLIB, HeaderSize="400"), "HeaderSize"),
    "ascii_less": ({"body": ASCII[:-40], "BinaryData": "False"}, "too few voxels"),
    "ascii_words": ({"body": b"1 2 three " + ASCII, "BinaryData": "False"}, "too few voxels"),
    "cut": ({"body": LITTLE[:-7]}, "233 of 240|232 of 240"),
    "cut_msb_1": ({"body": LITTLE[:-7], "BinaryDataByteOrderMSB": "1"}, "too few voxels"),
    "sizes_with_commas": ({"DimSize": "6,5,4"}, "header incomplete"),
    "two_sizes": ({"DimSize": "6 20"}, "header incomplete"),
    "negative_size": ({"DimSize": "6 5 -4"}, "header is damaged|voxels"),
    "2d": ({"NDims": "2", "DimSize": "6 20", "ElementSpacing": "1 1"}, "2D"),
    "4d": ({"NDims": "4", "DimSize": "6 5 2 2", "ElementSpacing": "1 1 1 1"}, "4D"),
    "two_channels": ({"body": LITTLE * 2, "ElementNumberOfChannels": "2"}, "2 values per voxel"),
    "unknown_type": ({"ElementType": "MET_FOO"}, "unknown"),
    "line_without_key": ({"Comment": "one\ntwo"}, "without '=': 'two'"),
    "no_spacing": ({"ElementSpacing": None}, "does not state its spacing: its header lacks ElementSpacing"),
    "spacing_in_other_case": ({"ElementSpacing": None, "elementspacing": "1 1 1"}, "does not state its spacing"),
    "spacing_0": ({"ElementSpacing": "0.8 0 2"}, "impossible spacing"),
    "spacing_nan": ({"ElementSpacing": "0.8 nan 2"}, "impossible spacing"),
    "spacing_text": ({"ElementSpacing": "0,8 0,7 2"}, "impossible spacing"),
    "gone": ({"data_file": "a.raw", "body": b""}, r"a\.raw, which is not there"),
    "nowhere": ({"data_file": "", "body": b""}, "which is not there"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("reader", ["SimpleITKIO", "SimpleITKIOWithReorient"])
def test_metaimage_that_is_refused(tmp_path: Path, name: str, reader: str) -> None:
    fields, expected = REFUSED[name]
    with pytest.raises(BadScan, match=expected):
        read_scan(scan_of(metaimage(tmp_path / "a.mha", **fields), reader=reader))


def test_a_metaimage_without_its_last_line(tmp_path: Path) -> None:
    (tmp_path / "a.mha").write_text("\n".join(f"{key} = {value}" for key, value in BASE.items()))
    assert "no line ElementDataFile" in reason(tmp_path / "a.mha")


SLICES = {f"s{number + 1:02d}.raw": values.tobytes() for number, values in enumerate(VALUES)}
LIST = "LIST\n" + "\n".join(SLICES)


@pytest.mark.parametrize("data_file", ["s%02d.raw", "s%02d.raw 1 4 1", LIST, "all of it.raw", "{tmp_path}/all.raw"])
def test_voxels_in_other_files(tmp_path: Path, data_file: str) -> None:
    for name, content in (SLICES | {"all of it.raw": LITTLE, "all.raw": LITTLE}).items():
        (tmp_path / name).write_bytes(content)
    path = metaimage(tmp_path / "a.mhd", b"", data_file.format(tmp_path=tmp_path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), VALUES)
    np.testing.assert_array_equal(values_of(path), VALUES)


def test_a_compressed_file_that_metaio_finds(tmp_path: Path) -> None:
    (tmp_path / "a.raw.gz").write_bytes(GZIP)
    path = metaimage(tmp_path / "a.mhd", b"", "a.raw")
    np.testing.assert_array_equal(values_of(path), VALUES)
    (tmp_path / "a.raw.gz").write_bytes(GZIP[:-50])
    assert "truncated or damaged" in reason(path)


@pytest.mark.parametrize(
    ("data_file", "expected"),
    [
        ("s%02d.raw 1 4", "pattern"),  # this one would end the process
        ("s%02d.raw 1 4 0", "pattern"),  # and this
        ("s%02s.raw", "pattern"),  # and this
        ("BestDiast 77 %.raw", "pattern"),
        ("LISTING.raw", "pattern"),
        ("t%02d.raw", "too few voxels"),
        ("\n".join(LIST.splitlines()[:-1]), "lists 3 files for 4 slices"),
        (LIST.replace("s03", "t03"), "too few voxels"),
    ],
)
def test_files_of_voxels_that_itk_would_not_miss(tmp_path: Path, data_file: str, expected: str) -> None:
    for name in (*SLICES, "BestDiast 77 %.raw", "LISTING.raw"):
        (tmp_path / name).write_bytes(SLICES.get(name, LITTLE))
    path = metaimage(tmp_path / "a.mhd", b"", data_file)
    assert expected in reason(path)
    turning = scan_of(path, reader="SimpleITKIOWithReorient")  # reads the voxels for its geometry, too
    for read in (read_geometry, read_scan):
        with pytest.raises(BadScan, match=expected if expected == "pattern" else "a.mhd"):
            read(turning)


def test_compressed_voxels_in_several_files(tmp_path: Path) -> None:
    path = metaimage(tmp_path / "a.mhd", b"", "s%02d.raw", CompressedData="True")
    assert "compressed voxels in several files" in reason(path)


TRUTHS = ["True", "False", "true", "false", "T", "F", "1", "0", "Yes", "no", "TRUE"]
LINES = st.fixed_dictionaries(
    {
        "NDims": st.just("3"),
        "DimSize": st.sampled_from(
            ["6 5 4"] * 4 + ["6\t5 4", "6.0 5 4", " 6 5 4 ", "6 5 4 7", "6 5", "5 6 4", "6 5 5"]
        ),
        "ElementType": st.sampled_from(["MET_SHORT"] * 4 + ["MET_USHORT", "MET_UCHAR", "MET_SHORT ", "met_short"]),
    },
    optional={
        "BinaryData": st.sampled_from(TRUTHS),
        "BinaryDataByteOrderMSB": st.sampled_from(TRUTHS),
        "ElementByteOrderMSB": st.sampled_from(TRUTHS),
        "CompressedData": st.sampled_from(TRUTHS),
        "CompressedDataSize": st.sampled_from(["{size}"] * 4 + ["0", "60", "9999", "x", "{size} "]),
        "HeaderSize": st.sampled_from(["0", "-1", "7"]),
        "ElementNumberOfChannels": st.sampled_from(["1", "2"]),
        "Comment": st.sampled_from(["a = b", "CompressedData = True", "# no", ""]),
        "compresseddata": st.just("True"),
    },
)
BODIES = [
    LITTLE,
    BIG,
    ASCII,
    ZLIB,
    GZIP,
    DAMAGED,
    IN_PARTS,
    ZLIB[:-9],
    LITTLE[:-1],
    LITTLE + b"behind",
    b"1234567" + LITTLE,
]


@given(
    lines=LINES,
    order=st.randoms(use_true_random=False),
    separator=st.sampled_from([" = "] * 6 + ["=", " : ", "  =  ", "\t= "]),
    newline=st.sampled_from(["\n"] * 5 + ["\r\n"]),
    twice=st.sampled_from(
        [""] * 6 + ["CompressedData = True\n", "BinaryDataByteOrderMSB = True\n", "BinaryData = F\n"]
    ),
    where=st.sampled_from(["LOCAL"] * 3 + ["Local", "local", "LoCaL", "a.raw", "a.raw ", "b.raw"]),
    body=st.sampled_from(BODIES),
)
@settings(
    max_examples=600, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_metaimage_is_read_as_itk_reads_it_or_refused(
    tmp_path: Path,
    lines: Mapping[str, str],
    order: Any,
    separator: str,
    newline: str,
    twice: str,
    where: str,
    body: bytes,
) -> None:
    """What is read is what SimpleITK reads, and there is something to read: memory left as it is differs each time."""
    middle = list(lines)[1:]
    order.shuffle(middle)
    text = newline.join(f"{key}{separator}{lines[key].format(size=len(body))}" for key in ("NDims", *middle))
    text += f"{newline}ElementSpacing{separator}0.8 0.7 2{newline}{twice}ElementDataFile{separator}{where}{newline}"
    path, data = tmp_path / "a.mha", tmp_path / "a.raw"
    data.write_bytes(body)
    path.write_bytes(text.encode() + body)
    try:
        ours = values_of(path)
    except BadScan:
        event("refused")
        return
    event("read")
    sitk.GetImageFromArray(np.full((4, 5, 6), 7777, np.int16))  # in the memory that is used next
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), ours)


def test_orientation_of_unusual_metaimages(tmp_path: Path) -> None:
    """From the same lines, whatever they look like."""
    path = metaimage(tmp_path / "a.mha", TransformMatrix="1 0 0 0 1 0 0 0 1")
    assert read_orientation(scan_of(path)) == ("S", "P", "L")
    path.write_bytes(path.read_bytes().replace(b"TransformMatrix = ", b" TransformMatrix: "))
    assert read_orientation(scan_of(path)) == ("S", "P", "L")
    path.write_text("no header at all")
    assert read_orientation(scan_of(path)) is None
