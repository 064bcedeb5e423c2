"""NRRD and NIfTI headers that few writers write: read as the dataset's reader does, or refused with a true reason."""

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
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from pretraining.data import BadScan, read_geometry, read_scan
from tests.data.reading.dicom_files import write_slices
from tests.data.reading.scans import reason, scan_of, values_of

VALUES = np.random.default_rng(0).integers(-1000, 1000, (4, 5, 6)).astype("<i2")
LITTLE, BIG = VALUES.tobytes(), VALUES.astype(">i2").tobytes()
ASCII = (" ".join(map(str, VALUES.ravel())) + "\n").encode()
ZLIB, GZIP = zlib.compress(LITTLE), gzip.compress(LITTLE)
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
    assert "a.nrrd does not state its spacing" in reason(path, reader=reader)
    with pytest.raises(BadScan, match="does not state its spacing"):
        read_geometry(scan_of(path, reader=reader))


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
    scan = scan_of(path, reader=reader.__name__)  # type: ignore[attr-defined]
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
    assert "220 of 240 bytes" in reason(path, reader=reader)
    assert "within its header" in reason(nifti(tmp_path / "b.nii", vox_offset=0), reader=reader)
    colour = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert "values per voxel" in reason(nifti(tmp_path / "c.nii", bytes(360), dtype=colour), reader=reader)
    assert "values per voxel" in reason(nifti(tmp_path / "d.nii", dtype=np.complex64), reader=reader)


def test_another_format_under_the_name_of_nrrd_is_no_nrrd(tmp_path: Path) -> None:
    """SimpleITK reads DICOM whatever its name."""
    plane = write_slices(tmp_path / "series", VALUES).joinpath("IM0000").rename(tmp_path / "a.nrrd")
    assert reason(plane) == "a.nrrd is not an NRRD file: give it the ending of its format"
