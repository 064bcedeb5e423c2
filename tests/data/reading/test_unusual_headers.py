"""Headers that few writers write: read as the data set's own reader does, or refused with a reason that is true."""

from __future__ import annotations

import bz2
import gzip
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from pretraining.data import BadScan, Scan, read_geometry, read_scan
from pretraining.data.reading.orientation import read_orientation
from tests.data.reading.dicom_files import write_slices

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


def scan_of(path: Path, reader: str = "SimpleITKIO") -> Scan:
    return Scan("s", "s", "src", "src", (str(path),), ("CT",), (True,), reader)


def values_of(path: Path, reader: str = "SimpleITKIO") -> np.ndarray:
    return read_scan(scan_of(path, reader))[0][0]


def reason(path: Path, reader: str = "SimpleITKIO") -> str:
    with pytest.raises(BadScan) as error:
        read_scan(scan_of(path, reader))
    assert "\n" not in str(error.value)
    return str(error.value)


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
    assert read_geometry(scan_of(path, reader)).spacing == pytest.approx((2, 0.7, 0.8))


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
        read_scan(scan_of(metaimage(tmp_path / "a.mha", **fields), reader))


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
    turning = scan_of(path, "SimpleITKIOWithReorient")  # reads the voxels for its geometry, too
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


NRRD = {
    **{"type": "short", "dimension": "3", "space": "left-posterior-superior", "sizes": "6 5 4"},
    **{"space directions": "(0.8,0,0) (0,0.7,0) (0,0,2)", "kinds": "domain domain domain"},
    **{"endian": "little", "encoding": "raw", "space origin": "(0,0,0)"},
}
NO_SPACE = {"space": None, "space directions": None, "space origin": None}
FOUR = {"dimension": "4", "sizes": "1 6 5 4", "kinds": "list domain domain domain"}


def nrrd(path: Path, body: bytes = LITTLE, fields: Mapping[str, str | None] | None = None) -> Path:
    lines = [f"{key}: {value}" for key, value in (NRRD | dict(fields or {})).items() if value is not None]
    path.write_bytes("\n".join(["NRRD0004", *lines, "", ""]).encode() + body)
    return path


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        ({}, LITTLE),
        ({"endian": "big"}, BIG),
        ({"encoding": "gzip"}, GZIP),
        ({"encoding": "ascii"}, ASCII),
        ({"encoding": "hex"}, LITTLE.hex().encode()),
        ({"byte skip": "-1"}, b"behind this" + LITTLE),
        ({"data file": "a.raw"}, b""),
        (NO_SPACE | {"spacings": "0.8 0.7 2"}, LITTLE),
        (NO_SPACE | {"Spacings": "0.8 0.7 2"}, LITTLE),
        ({"space directions": "(0.8, 0, 0) (0, 0.7, 0) (0, 0, 2)"}, LITTLE),
        (FOUR | {"space directions": "none (0.8,0,0) (0,0.7,0) (0,0,2)"}, LITTLE),
        (NO_SPACE | FOUR | {"spacings": "nan 0.8 0.7 2"}, LITTLE),
    ],
)
def test_nrrd_that_states_its_spacing(tmp_path: Path, fields: Mapping[str, str | None], body: bytes) -> None:
    (tmp_path / "a.raw").write_bytes(LITTLE)
    path = nrrd(tmp_path / "a.nrrd", body, fields)
    np.testing.assert_array_equal(values_of(path), VALUES)
    assert read_geometry(scan_of(path)).spacing == pytest.approx((2, 0.7, 0.8))


@pytest.mark.parametrize(
    "fields",
    [
        NO_SPACE,
        NO_SPACE | {"spacings": "nan nan nan"},
        NO_SPACE | {"spacings": "0.8 NaN 2"},
        NO_SPACE | {"axis mins": "0 0 0", "axis maxs": "6 5 4"},
        {"space directions": None},
        {"space directions": "none (0,0.7,0) (0,0,2)"},
        {"space directions": "(nan,nan,nan) (0,0.7,0) (0,0,2)"},
        NO_SPACE | FOUR | {"spacings": "1 0.8 nan 2"},
    ],
)
@pytest.mark.parametrize("reader", ["SimpleITKIO", "SimpleITKIOWithReorient"])
def test_nrrd_without_spacing_is_not_taken_for_one_of_a_millimetre(
    tmp_path: Path, fields: Mapping[str, str | None], reader: str
) -> None:
    path = nrrd(tmp_path / "a.nrrd", LITTLE, fields)
    assert "a.nrrd does not state its spacing" in reason(path, reader)
    with pytest.raises(BadScan, match="does not state its spacing"):
        read_geometry(scan_of(path, reader))


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        ({"encoding": "gzip"}, GZIP[:-60]),
        ({"encoding": "gzip"}, GZIP[:-8] + b"crc?" + GZIP[-4:]),
        ({}, LITTLE[:-1]),
        ({"encoding": "ascii"}, ASCII[:-40]),
        ({"encoding": "bzip2"}, bz2.compress(LITTLE)),
        ({"data file": "gone.raw"}, b""),
    ],
)
def test_nrrd_that_itk_refuses(tmp_path: Path, fields: Mapping[str, str | None], body: bytes) -> None:
    assert "cannot be read" in reason(nrrd(tmp_path / "a.nrrd", body, fields))


def nifti(path: Path, body: bytes | None = None, second: bool = False, order: str = "<", **fields: Any) -> Path:
    header = (nibabel.Nifti2Header if second else nibabel.Nifti1Header)(endianness=order)
    header.set_data_dtype(fields.pop("dtype", np.int16))
    header.set_data_shape((6, 5, 4))
    header.set_sform(np.diag([0.8, 0.7, 2, 1]), 1)
    header.set_qform(np.diag([0.8, 0.7, 2, 1]), 1)
    header["vox_offset"] = header.sizeof_hdr + 4 + len(fields.get("extension", b""))
    extension = fields.pop("extension", b"")
    if not second:
        header["magic"] = b"n+1"
    for key, value in fields.items():
        header[key] = value
    content = VALUES.astype(header.get_data_dtype()).tobytes() if body is None else body
    content = header.binaryblock + bytes([bool(extension), 0, 0, 0]) + extension + content
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


ODD_NIFTI: dict[str, dict[str, Any]] = {
    "second": {"second": True},
    "second_big": {"second": True, "order": ">"},
    "big": {"order": ">"},
    "extension": {"extension": struct.pack("<ii", 32, 6) + bytes(24)},
    "slope_0": {"scl_slope": 0, "scl_inter": 5},
    "slope_nan": {"scl_slope": np.nan, "scl_inter": 5},
    "slope_tiny": {"scl_slope": 1e-30, "scl_inter": 0},
    "slope_2": {"scl_slope": 2, "scl_inter": -7},
    "micron": {"xyzt_units": 3},
    "metre": {"xyzt_units": 1},
    "no_form": {"sform_code": 0, "qform_code": 0},
    "impossible_quaternion": {"quatern_b": 2, "quatern_c": 2},
}


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO])
@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
@pytest.mark.parametrize("name", ODD_NIFTI)
def test_nifti_is_what_the_data_sets_reader_reads(
    tmp_path: Path, name: str, ending: str, reader: Callable[[], Any]
) -> None:
    path = nifti(tmp_path / f"a.{ending}", **ODD_NIFTI[name])
    scan = scan_of(path, reader.__name__)  # type: ignore[attr-defined]
    try:
        expected, properties = reader().read_images((str(path),))
    except (RuntimeError, ValueError, nibabel.filebasedimages.ImageFileError):
        with pytest.raises(BadScan, match=r"cannot be read|no readable NIfTI"):
            read_scan(scan)
        assert (name, reader) in {
            *(("second", SimpleITKIO), ("second_big", SimpleITKIO)),
            ("impossible_quaternion", NibabelIO),
        }
        return
    if expected.min() == expected.max():  # by a tiny slope
        with pytest.raises(BadScan, match="constant"):
            read_scan(scan)
        return
    array, spacing, _ = read_scan(scan)
    np.testing.assert_array_equal(array, expected)
    assert spacing == pytest.approx(tuple(properties["spacing"]), rel=1e-6)
    assert read_geometry(scan).spacing == spacing


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO"])
def test_unusual_nifti_is_looked_through_for_damage(tmp_path: Path, reader: str) -> None:
    path = nifti(tmp_path / "a.nii", LITTLE[:-20], scl_slope=0, scl_inter=5)
    assert "220 of 240 bytes" in reason(path, reader)
    assert "within its header" in reason(nifti(tmp_path / "b.nii", vox_offset=0), reader)
    colour = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert "values per voxel" in reason(nifti(tmp_path / "c.nii", bytes(360), dtype=colour), reader)
    assert "values per voxel" in reason(nifti(tmp_path / "d.nii", dtype=np.complex64), reader)


def test_another_format_under_the_name_of_nrrd_is_no_nrrd(tmp_path: Path) -> None:
    """SimpleITK reads DICOM whatever its name."""
    plane = write_slices(tmp_path / "series", VALUES).joinpath("IM0000").rename(tmp_path / "a.nrrd")
    assert reason(plane) == "a.nrrd is not an NRRD file: give it the ending of its format"


def test_orientation_of_unusual_metaimages(tmp_path: Path) -> None:
    """From the same lines, whatever they look like."""
    path = metaimage(tmp_path / "a.mha", TransformMatrix="1 0 0 0 1 0 0 0 1")
    assert read_orientation(scan_of(path)) == ("S", "P", "L")
    path.write_bytes(path.read_bytes().replace(b"TransformMatrix = ", b" TransformMatrix: "))
    assert read_orientation(scan_of(path)) == ("S", "P", "L")
    path.write_text("no header at all")
    assert read_orientation(scan_of(path)) is None
