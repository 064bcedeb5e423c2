"""A folder of everything that goes wrong with scans: each is read right, or skipped with a reason that is true."""

from __future__ import annotations

import gzip
import os
import random
import re
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pretraining.data import BadScan, Scan, find_scans, preprocess, read_geometry, read_scan
from tests.hostile import harmed

Write = Callable[..., Path]
VALUES = np.random.default_rng(0).integers(-1024, 325, (8, 10, 12)).astype(np.int16)
SPACING = (3.0, 1.0, 1.0)


def nifti(path: Path, values: np.ndarray, affine: np.ndarray | None = None, **header: Any) -> None:
    """Values are (z, y, x, ...); written by nibabel, which lets headers say what ITK would not."""
    affine = np.diag([1.0, 1.0, 3.0, 1.0]) if affine is None else affine
    image = nibabel.Nifti1Image(values.T if values.ndim == 3 else values, affine)
    for key, value in header.items():
        image.header[key] = value
    image.to_filename(path)


def patched(path: Path, changes: dict[int, bytes]) -> None:
    """A good NIfTI file with some bytes of its header replaced."""
    nifti(path, VALUES)
    data = bytearray(path.read_bytes())
    for offset, content in changes.items():
        data[offset : offset + len(content)] = content
    path.write_bytes(data)


def with_value(value: float) -> np.ndarray:
    values = VALUES.astype(np.float32)
    values[4, 5, 6] = value
    return values


def turned(*angles: float) -> np.ndarray:
    rotation = sitk.Euler3DTransform((0, 0, 0), *angles).GetMatrix()
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(rotation, (3, 3)) @ np.diag([1.0, 1.0, 3.0])
    return affine


def sheared() -> np.ndarray:
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    affine[0, 1] = 0.2
    return affine


class Corpus:
    """Writes the scans, and remembers what is to become of each."""

    def __init__(self, folder: Path, write_scan: Write, write_dicom: Write):
        self.folder, self.write_scan, self.write_dicom = folder, write_scan, write_dicom
        self.good: dict[str, np.ndarray] = {}
        self.bad: dict[str, str] = {}

    def path(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def reads(self, name: str, identifier: str, values: np.ndarray = VALUES) -> Path:
        self.good[identifier] = values
        return self.path(name)

    def skips(self, name: str, identifier: str, reason: str) -> Path:
        self.bad[identifier] = reason
        return self.path(name)

    def write(self) -> None:
        for part in (self._files, self._values, self._headers, self._geometry, self._names, self._series):
            part()

    def _files(self) -> None:
        self.write_scan(self.reads("good.nii.gz", "good"), VALUES, SPACING)
        whole = self.path("good.nii.gz").read_bytes()
        self.skips("half.nii.gz", "half", "truncated").write_bytes(whole[: len(whole) // 2])
        self.skips("no_end.nii.gz", "no_end", "truncated").write_bytes(whole[:-6])
        self.skips("flipped_bit.nii.gz", "flipped_bit", "truncated or damaged|readable NIfTI").write_bytes(
            whole[:200] + bytes([whole[200] ^ 16]) + whole[201:]
        )
        self.skips("zero_bytes.nii.gz", "zero_bytes", "is empty").touch()
        self.skips("gzip_of_nothing.nii.gz", "gzip_of_nothing", "NIfTI|truncated").write_bytes(gzip.compress(b""))
        self.skips("text.nii.gz", "text", "NIfTI").write_text("this is no image")
        for ending, reason in {"nii": "NIfTI", "nrrd": "cannot be read", "mha": "cannot be read"}.items():
            noise = self.skips(f"noise_{ending}.{ending}", f"noise_{ending}", reason)
            noise.write_bytes(random.Random(0).randbytes(3000))
        plain = self.path("not_compressed.nii")
        self.write_scan(plain, VALUES, SPACING)
        shutil.move(plain, self.skips("not_compressed.nii.gz", "not_compressed", "NIfTI"))
        shutil.copy(self.path("good.nii.gz"), self.skips("compressed.nii", "compressed", "NIfTI|truncated"))
        self.write_scan(self.path("cut.mha"), VALUES, SPACING, compress=False)
        content = self.path("cut.mha").read_bytes()
        self.skips("cut.mha", "cut", "truncated").write_bytes(content[:-400])
        self.write_scan(self.path("lost.mhd"), VALUES, SPACING, compress=False)
        self.skips("lost.mhd", "lost", r"lost\.raw, which is not there")
        self.path("lost.raw").unlink()
        self.skips("broken_link.nii.gz", "broken_link", "does not exist|No such file").symlink_to("nowhere.nii.gz")
        if os.name != "nt" and os.geteuid() != 0:
            self.write_scan(self.skips("locked.nii.gz", "locked", "ermission"), VALUES, SPACING)
            self.path("locked.nii.gz").chmod(0)
        self.path("empty_folder/x").parent.mkdir(exist_ok=True)

    def _values(self) -> None:
        nifti(self.skips("nan.nii.gz", "nan", "NaN or infinite"), with_value(np.nan))
        nifti(self.skips("infinite.nii.gz", "infinite", "NaN or infinite"), with_value(-np.inf))
        nifti(self.skips("too_large.nii.gz", "too_large", "NaN or infinite"), with_value(1).astype(float) * 1e300)
        self.write_scan(self.skips("constant.nii.gz", "constant", "constant"), np.full_like(VALUES, 7))
        self.write_scan(self.skips("all_metal.nii.gz", "all_metal", "constant once clipped"), np.abs(VALUES) + 400)
        colour = np.zeros((8, 10, 12, 3), np.uint8)
        self.write_scan(self.skips("colour.nii.gz", "colour", "values per voxel"), colour, colour=True)
        self.write_scan(self.skips("colour.mha", "colour_2", "values per voxel"), colour, colour=True)
        nifti(self.skips("complex.nii.gz", "complex", "values per voxel"), VALUES.astype(np.complex64))
        unsigned = (VALUES + 1024).astype(np.uint16)
        nifti(self.reads("unsigned.nii.gz", "unsigned", np.minimum(unsigned, 325)), unsigned)
        nifti(self.reads("doubles.nii.gz", "doubles"), VALUES.astype(np.float64))

    def _headers(self) -> None:
        sizes = {
            "huge": ((30000, 30000, 30000), "declares 30000 x 30000 x 30000"),
            "little_data": ((12, 10, 800), "truncated"),
            "negative_size": ((12, -10, 8), "declares -960 values"),
        }
        for name, (size, reason) in sizes.items():
            patched(self.skips(f"{name}.nii", name, reason), {40: struct.pack("<8h", 3, *size, 1, 1, 1, 1)})
        fields = {
            "unknown_type": ({70: struct.pack("<h", 3333)}, "3333"),
            "no_magic": ({344: b"abcd"}, "NIfTI"),
            "endless_slope": ({112: struct.pack("<f", 3e38)}, "NaN or infinite"),
            "far_voxels": ({108: struct.pack("<f", 1e9)}, "begin after"),
        }
        for name, (changes, reason) in fields.items():
            patched(self.skips(f"{name}.nii", name, reason), changes)
        no_affine = {252: bytes(4)}
        for name, value in {"zero": 0.0, "not_a_number": np.nan, "infinite": np.inf, "negative": -2.0}.items():
            path = self.skips(f"spacing_{name}.nii", f"spacing_{name}", "spacing")
            patched(path, {88: struct.pack("<f", value), **no_affine})

    def _geometry(self) -> None:
        self.write_scan(self.skips("flat.nii.gz", "flat", "2D"), VALUES[0], (1.0, 1.0))
        self.write_scan(self.skips("one_slice.nii.gz", "one_slice", "2D"), VALUES[:1])
        nifti(self.skips("time_series.nii.gz", "time_series", "4D"), np.zeros((12, 10, 8, 5), np.int16) + 3)
        nifti(self.reads("upside_down.nii.gz", "upside_down"), VALUES, np.diag([1.0, 1.0, -3.0, 1.0]))
        nifti(self.reads("rotated.nii.gz", "rotated"), VALUES, turned(0.3, -0.2, 0.5))
        nifti(self.reads("mirrored.nii.gz", "mirrored"), VALUES, np.diag([-1.0, -1.0, 3.0, 1.0]))
        nifti(self.reads("sheared.nii.gz", "sheared"), VALUES, sheared())
        wide = np.tile(VALUES, (1, 20, 20))
        self.write_scan(self.reads("wide.nii.gz", "wide", wide), wide, SPACING)
        for axis, name in enumerate("zyx"):
            thin = np.take(VALUES, (0, 1), axis)
            self.write_scan(self.reads(f"thin_{name}.nii.gz", f"thin_{name}", thin), thin, SPACING)

    def _names(self) -> None:
        self.write_scan(self.reads("with spaces (1).nii.gz", "with_spaces_1"), VALUES, SPACING)
        self.write_scan(self.reads("Schädel_Ω_頭.nii.gz", "Schädel_Ω_頭"), VALUES, SPACING)
        self.write_scan(self.reads("first/same.nii.gz", "first_same"), VALUES, SPACING)
        self.write_scan(self.reads("second/same.nii.gz", "second_same"), VALUES, SPACING)
        shutil.copy(self.path("good.nii.gz"), self.reads("UPPER.NII.GZ", "UPPER"))
        self.path(".hidden.nii.gz").write_text("passed over")

    def _series(self) -> None:
        self.write_dicom(self.reads("dicom_good/1.dcm", "dicom_good").parent, VALUES, (3.0, 1.0, 1.0))
        self.write_dicom(self.skips("dicom_gap/1.dcm", "dicom_gap", "missing").parent, VALUES, left_out=(3, 4))
        twice = self.skips("dicom_twice/1.dcm", "dicom_twice", "same position").parent
        self.write_dicom(twice, VALUES)
        self.write_dicom(twice, VALUES, uid="1.2.826.0.1.4")
        for file in twice.glob("1.2.826.0.1.4-*"):  # another acquisition under the number of the first
            image = sitk.ReadImage(str(file))
            image.SetMetaData("0020|000e", "1.2.826.0.1.3")
            writer = sitk.ImageFileWriter()
            writer.KeepOriginalImageUIDOn()
            writer.SetFileName(str(file))
            writer.Execute(image)
        both = self.path("dicom_both/1.dcm").parent
        for number in ("5", "6"):
            self.reads("dicom_both/1.dcm", f"dicom_both_{number}")
            self.write_dicom(both, VALUES, (3.0, 1.0, 1.0), uid=f"1.2.826.0.1.{number}")
        self.write_dicom(
            self.skips("dicom_dose/1.dcm", "dicom_dose", "no image but RTDOSE").parent, VALUES[:2], modality="RTDOSE"
        )
        self.write_dicom(self.skips("dicom_text/1.dcm", "dicom_text", "no image but SR").parent, VALUES, modality="SR")
        self.write_dicom(self.skips("dicom_slice/1.dcm", "dicom_slice", "2D").parent, VALUES[:1])


def test_each_is_read_right_or_skipped_with_a_true_reason(
    tmp_path: Path, write_scan: Write, write_dicom: Write
) -> None:
    corpus = Corpus(tmp_path / "in", write_scan, write_dicom)
    corpus.write()
    assert len(corpus.good) + len(corpus.bad) >= 60
    scans, left_out = find_scans([str(tmp_path / "in")])
    volumes, skipped = preprocess(
        scans, tmp_path / "out", spacing="native", crop_size=(8, 8, 8), processes=1, progress=False
    )
    reasons = {item.name: item.reason for item in (*left_out, *skipped)}
    assert reasons.keys() == corpus.bad.keys()
    for name, reason in corpus.bad.items():
        assert re.search(reason, reasons[name]), f"{name}: {reasons[name]}"
        assert "\n" not in reasons[name]
        assert "Error: " not in reasons[name], f"{name}: nobody thought of it: {reasons[name]}"
    assert {volume.name for volume in volumes} == corpus.good.keys()
    for volume in volumes:
        stored = volume.read(0, (0, 0, 0), volume.shape[1:])
        np.testing.assert_array_equal(stored, corpus.good[volume.name], err_msg=volume.name)
        assert volume.spacing == pytest.approx((3.0, 1.0, 1.0), rel=0.03), volume.name


def test_a_file_that_changes_while_it_is_read_is_read_again_next_time(
    tmp_path: Path, write_scan: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_scan(tmp_path / "in" / "a.nii.gz", VALUES, SPACING)

    def changed_meanwhile(scan: Scan) -> Any:
        result = read_scan(scan)
        write_scan(path, np.maximum(VALUES, -500), SPACING)
        return result

    def stored() -> int:
        scans, _ = find_scans([str(tmp_path / "in")])
        (volume,), _ = preprocess(
            scans, tmp_path / "out", spacing="native", crop_size=(8, 8, 8), processes=1, progress=False
        )
        return int(volume.read(0, (0, 0, 0), volume.shape[1:]).min())

    with monkeypatch.context() as patch:
        patch.setattr("pretraining.data.volume_tasks.read_scan", changed_meanwhile)
        assert stored() < -500
    assert stored() == -500


@given(
    changes=st.lists(st.tuples(st.integers(0, 351), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4),
    length=st.integers(0, 3000),
)
@settings(
    max_examples=1000, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_header_is_read_or_refused(tmp_path: Path, changes: list[tuple[int, bytes]], length: int) -> None:
    """Whatever stands in the header of a NIfTI file, and wherever the file ends."""
    path = tmp_path / "a.nii"
    nifti(tmp_path / "whole.nii", VALUES)
    data = bytearray((tmp_path / "whole.nii").read_bytes())
    for offset, content in changes:
        data[offset : offset + len(content)] = content
    path.write_bytes(data[:length] if length < 2900 else data)
    scan = Scan("a", "a", "in", "in", (str(path),), ("CT",), (True,))
    for read in (read_geometry, read_scan):
        with suppress(BadScan):  # anything else is a fault of ours
            read(scan)


@pytest.mark.parametrize("ending", ["mha", "nrrd", "nii.gz"])
def test_any_bytes_are_read_or_refused(tmp_path: Path, write_scan: Write, ending: str) -> None:
    path, rng = tmp_path / f"a.{ending}", random.Random(0)
    good = write_scan(tmp_path / f"good.{ending}", VALUES, SPACING, compress=ending != "nrrd").read_bytes()
    scan = Scan("a", "a", "in", "in", (str(path),), ("CT",), (True,))
    refused = 0
    for _ in range(500):
        path.write_bytes(harmed(good, rng, stop=500))
        for read in (read_geometry, read_scan):
            try:
                read(scan)
            except BadScan:  # anything else is a fault of ours
                refused += 1
    assert refused
