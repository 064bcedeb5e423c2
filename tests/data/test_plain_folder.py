"""Whatever a folder holds: each file is used, skipped with its reason, or counted."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pretraining.data import Scan, find_scans, preprocess
from tests.data.reading.dicom_files import write_slices

VALUES = np.random.default_rng(0).integers(-1000, 300, (6, 8, 10)).astype(np.int16)
Log = pytest.LogCaptureFixture


def nifti(path: Path, values: np.ndarray = VALUES) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(values), str(path))


def used(scans: list[Scan], tmp_path: Path) -> tuple[set[str], dict[str, str]]:
    volumes, skipped = preprocess(
        scans, tmp_path / "out", spacing="native", crop_size=(8, 8, 8), processes=1, progress=False
    )
    return {volume.name for volume in volumes}, {item.name: item.reason for item in skipped}


def counted(caplog: Log) -> int:
    """Files in the lines that count some."""
    lines = [record.getMessage() for record in caplog.records if ": ignored " in record.getMessage()]
    numbers = [re.findall(r"\b(\d+) (?:\.|without|other|hidden|file)", line) for line in lines]
    return sum(int(number) for line in numbers for number in line)


@pytest.mark.parametrize(
    "name",
    [
        *("labelsTr/a.nii.gz", "labelsVa/a.nii.gz", "labels/a.nii.gz", "p1/segmentations/liver.nii.gz"),
        *("p1/a_seg.nii.gz", "a-Seg.nii", "seg_a.mha", "a.segmentation.nrrd", "a_label.nii.gz", "label0001.nii.gz"),
        *(
            "a_mask.nii.gz",
            "Masks/b.nii.gz",
            "masks_train/b.nii",
            "a_gt.nii.gz",
            "GroundTruth/a.nii.gz",
            "volume-label.nii",
            "seg.nii.gz",
        ),
        "mask2.nii.gz",
    ],
)
def test_masks_are_recognised_by_name(tmp_path: Path, name: str, caplog: Log) -> None:
    nifti(tmp_path / "in" / "ct.nii.gz")
    nifti(tmp_path / "in" / name)
    with caplog.at_level(logging.WARNING):
        scans, skipped = find_scans([str(tmp_path / "in")])
    assert [scan.name for scan in scans] == ["ct"]
    assert skipped == []
    line = f"in: ignored as segmentations by their names: 1 file, such as {name} (--use_masks takes them)"
    assert line in caplog.messages
    assert len(find_scans([str(tmp_path / "in")], use_masks=True)[0]) == 2


@pytest.mark.parametrize(
    "name",
    [
        "unmasked.nii.gz",
        "Labelle.nii.gz",
        "segovia_1.nii",
        "imagesVa/a_ct.nii.gz",
        "gtv_plan.nii",
        "p_segment.nii",
        "seg_study/a.nii",
    ],
)
def test_other_names_are_scans(tmp_path: Path, name: str) -> None:
    nifti(tmp_path / "in" / name)
    assert len(find_scans([str(tmp_path / "in")])[0]) == 1


def test_masks_are_recognised_by_their_values(tmp_path: Path) -> None:
    folder, rng = tmp_path / "in", np.random.default_rng(1)
    nifti(folder / "ct.nii.gz")
    nifti(folder / "liver.nii.gz", (VALUES > 0).astype(np.uint8))
    nifti(folder / "liver_as_float.nii.gz", (VALUES > 0).astype(np.float32))
    nifti(folder / "bright.nii.gz", 255 * (VALUES > 0).astype(np.uint8))
    nifti(folder / "organs.nii.gz", rng.integers(0, 16, VALUES.shape).astype(np.int16))
    nifti(folder / "some.nii.gz", rng.choice([0, 1, 5], VALUES.shape).astype(np.int16))
    nifti(folder / "grey_levels.nii.gz", rng.choice([0, 10, 11, 13], VALUES.shape).astype(np.int16))
    nifti(folder / "ignored.nii.gz", rng.integers(-1, 3, VALUES.shape).astype(np.int16))
    nifti(folder / "phantom.nii.gz", rng.choice([-1000, 0, 40], VALUES.shape).astype(np.int16))
    nifti(folder / "grey.nii.gz", rng.integers(0, 256, VALUES.shape).astype(np.uint8))
    nifti(folder / "halves.nii.gz", rng.integers(0, 9, VALUES.shape).astype(np.float32) / 2)
    names, reasons = used(find_scans([str(folder)], "mr")[0], tmp_path)
    assert names == {"ct", "grey", "halves", "phantom", "grey_levels"}
    assert reasons.keys() == {"liver", "liver_as_float", "bright", "organs", "some", "ignored"}
    assert reasons["liver"] == ("holds only the values 0, 1: a segmentation, not a scan (--use_masks accepts it)")
    assert "0, 255:" in reasons["bright"]
    assert "0, 1, ..., 15:" in reasons["organs"]
    names, reasons = used(find_scans([str(folder)], "mr", use_masks=True)[0], tmp_path)
    assert (len(names), reasons) == (11, {})


def test_files_that_are_no_scans_are_counted_by_ending(tmp_path: Path, caplog: Log) -> None:
    folder = tmp_path / "in"
    nifti(folder / "ct.nii.gz")
    image = sitk.GetImageFromArray(VALUES)
    sitk.WriteImage(image, str(folder / "detached.mhd"))
    sitk.WriteImage(image, str(folder / "detached2.nhdr"))
    nibabel.save(nibabel.Nifti1Pair(VALUES.T, np.eye(4)), folder / "pair.img")
    for name in ("a.txt", "b.TXT", "x/c.csv", "README", "x/d.mgz", "lonely.raw", ".hidden", "x/.DS_Store"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("\x08\0")
    (folder / ".cache").mkdir()
    with caplog.at_level(logging.WARNING):
        scans, skipped = find_scans([str(folder)])
    assert [scan.name for scan in scans] == ["ct", "detached", "detached2"]
    assert skipped == []
    assert caplog.messages == [
        "in: ignored files that are not scans: 3 hidden, 2 .txt, 1 without ending, 1 .raw, 1 .hdr, 1 .img, "
        "1 .csv, 1 .mgz"
    ]
    names, reasons = used(scans, tmp_path)
    assert (names, reasons) == ({"ct", "detached", "detached2"}, {})


def test_what_would_end_or_stop_the_process_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that are no text, and pipes, which nobody writes to."""
    folder = tmp_path / "Dataset001_X" / "imagesTr"
    nifti(folder / "ct_0000.nii.gz")
    latin = os.fsencode(folder) + b"/M\xfcller_0000.nii.gz"
    try:
        Path(os.fsdecode(latin)).write_bytes((folder / "ct_0000.nii.gz").read_bytes())
    except OSError:
        pytest.skip("the file system takes no such name")
    (folder.parent / "dataset.json").write_text('{"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}')
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    for source, pipes in (("1", 0), (str(folder), 2)):
        for name in ("pipe", "pipe.nii.gz")[:pipes]:
            os.mkfifo(folder / name)
        scans, skipped = find_scans([source])
        assert len(scans) == 1
        names = [item.name for item in skipped]
        assert names == ["M\\udcfcller_0000.nii.gz", "pipe", "pipe.nii.gz"][: 1 + pipes]
        assert "not UTF-8 text" in skipped[0].reason
        "\n".join(map(str, skipped)).encode()


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nifti(tmp_path / "in" / "ct.nii.gz")
    (tmp_path / "in" / "locked").mkdir()
    scandir = os.scandir

    def refusing(path: str) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refusing)
    (skipped,) = find_scans([str(tmp_path / "in")])[1]
    assert (skipped.name, skipped.reason) == ("locked", "the folder cannot be listed (Permission denied)")


def test_a_folder_of_scans_alone_says_nothing(tmp_path: Path, caplog: Log) -> None:
    nifti(tmp_path / "in" / "ct.nii.gz")
    write_slices(tmp_path / "in" / "series", VALUES)
    with caplog.at_level(logging.WARNING):
        assert len(find_scans([str(tmp_path / "in")])[0]) == 2
    assert caplog.messages == []


def _gap(folder: Path) -> None:
    write_slices(folder, VALUES)
    (folder / "IM0002").unlink()


def _cut_series(folder: Path) -> None:
    path = write_slices(folder, VALUES) / "IM0003"
    path.write_bytes(path.read_bytes()[:-99])


# What may lie in a folder, as the files it makes there; whether they are used, skipped under the folder's name (or
# their own), or counted, is found out.
KINDS: dict[str, Callable[[Path], object]] = {
    "nifti": lambda folder: nifti(folder / f"{folder.name}.nii.gz"),
    "nrrd": lambda folder: nifti(folder / f"{folder.name}.nrrd"),
    "mhd": lambda folder: nifti(folder / f"{folder.name}.mhd"),
    "series": lambda folder: write_slices(folder, VALUES, SeriesInstanceUID=f"1.{folder.name[1:]}"),
    "same uid": lambda folder: write_slices(folder, VALUES),
    "gap": _gap,
    "cut series": _cut_series,
    "named mask": lambda folder: nifti(folder / f"{folder.name}_seg.nii.gz", (VALUES > 0).astype(np.uint8)),
    "mask": lambda folder: nifti(folder / f"{folder.name}.nii.gz", (VALUES > 0).astype(np.uint8)),
    "text": lambda folder: (folder / "notes.txt").write_text("x"),
    "no ending": lambda folder: (folder / "LICENSE").write_text("x"),
    "hidden": lambda folder: (folder / ".x.nii.gz").write_text("x"),
    "false dicom": lambda folder: (folder / f"{folder.name}.dcm").write_text("x"),
    "false nifti": lambda folder: (folder / f"{folder.name}.nii").write_text("x"),
    "empty nifti": lambda folder: (folder / f"{folder.name}.nii.gz").touch(),
    "begins like dicom": lambda folder: (folder / "x.bin").write_bytes(b"\x08\0\5\0CS\4\0ISO "),
    "preamble alone": lambda folder: (folder / "x").write_bytes(bytes(128) + b"DICM"),
}


@given(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=5))
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_every_file_is_used_skipped_or_counted(
    tmp_path_factory: pytest.TempPathFactory, caplog: Log, kinds: list[str]
) -> None:
    tmp_path = tmp_path_factory.mktemp("any")
    nifti(tmp_path / "in" / "always.nii.gz")
    for number, kind in enumerate(kinds):
        folder = tmp_path / "in" / f"f{number}"
        folder.mkdir()
        KINDS[kind](folder)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        scans, left_out = find_scans([str(tmp_path / "in")])
        names, skipped = used(scans, tmp_path)
    files_of = {scan.name: set(scan.files) for scan in scans}
    taken = {file for name in names for file in files_of[name]} | {str(f) for f in (tmp_path / "in").rglob("*.raw")}
    told = {**{item.name: item.reason for item in left_out}, **skipped}
    unseen = 0
    for file in (path for path in (tmp_path / "in").rglob("*") if path.is_file()):
        reason = next(
            (told[n] for n in told if file.name in told[n] or file.parent.name in (n.split("/")[0], *told[n].split())),
            "",
        )
        skipped_scan = any(str(file) in files_of.get(name, ()) for name in skipped)
        unseen += not (str(file) in taken or reason or skipped_scan)
    assert unseen == counted(caplog)
