"""Files are there whole or not at all: on a full disk, after an interrupt, and with libraries that hide errors."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from matplotlib.figure import Figure

from nnunetv2_pgl.checkpoint import atomic_save
from nnunetv2_pgl.files import replacing, walk, write_bytes, write_nifti, write_text
from pretraining.training.progress import RunLog
from tests.full_disk import room_for

NOISE = sitk.GetImageFromArray(np.random.default_rng(0).integers(-1024, 325, (20, 30, 40)).astype(np.int16))


def draw(path: Path) -> None:
    with replacing(path) as temporary:
        Figure().savefig(temporary, format="png")


WRITERS: dict[str, Callable[[Path], None]] = {
    "text.json": lambda path: write_text(path, "x" * 100_000),
    "bytes.b2nd": lambda path: write_bytes(path, bytes(100_000), shared=True),
    "weights.pth": lambda path: atomic_save({"x": torch.randn(100_000)}, path),
    "scan.nii.gz": lambda path: write_nifti(NOISE, path),
    "picture.png": draw,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("room", [0, 1, 700])
def test_a_full_disk_keeps_the_former_file(tmp_path: Path, name: str, room: int) -> None:
    path = tmp_path / name
    path.write_bytes(b"former")
    with (
        room_for(room),
        pytest.raises(OSError, match=rf"could not write {path} \(the former one is intact\): ") as full,
    ):
        WRITERS[name](path)
    assert "\n" not in str(full.value)
    assert "enforce" not in str(full.value)
    assert path.read_bytes() == b"former"
    assert os.listdir(tmp_path) == [name]
    WRITERS[name](path)
    assert path.stat().st_size > 700
    assert os.listdir(tmp_path) == [name]


def test_what_a_nifti_file_lacks_is_seen_wherever_it_ends(tmp_path: Path) -> None:
    """SimpleITK alone raises nothing and leaves part of the file."""
    whole, half = tmp_path / "whole.nii.gz", tmp_path / "half.nii.gz"
    write_nifti(NOISE, whole)
    size = whole.stat().st_size
    with room_for(size // 2):
        sitk.WriteImage(NOISE, str(half), useCompression=True)
    assert half.stat().st_size == size // 2
    half.unlink()
    for room in (*range(0, size, size // 20), size - 9, size - 1):
        with room_for(room), pytest.raises(OSError, match=r"half\.nii\.gz: "):
            write_nifti(NOISE, half)
    with room_for(size):
        write_nifti(NOISE, half)
    assert half.read_bytes() == whole.read_bytes()


def interrupted(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "file")
    assert os.listdir(tmp_path) == []


def test_another_file_that_is_at_fault_is_named(tmp_path: Path) -> None:
    lost = tmp_path / "lost"
    with (
        pytest.raises(OSError, match=rf"could not write {tmp_path}/copy: No such file or directory: {lost}$"),
        replacing(tmp_path / "copy") as temporary,
    ):
        shutil.copyfile(lost, temporary)


def test_mistakes_of_ours_pass(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"^a mistake$"), replacing(tmp_path / "file"):
        raise RuntimeError("a mistake")


def test_a_log_that_cannot_grow_is_named(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log("first")
    message = r"could not write .*training_log_.*\.txt: File too large"
    with redirect_stdout(StringIO()), room_for(40), pytest.raises(OSError, match=message):
        log("second")


def test_a_walk_follows_links_and_visits_each_folder_once(tmp_path: Path) -> None:
    for name in ("b/c/file", "a/file", ".hidden/file", "z"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "c" / "round").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "b")
    found = [(str(folder.relative_to(tmp_path)), names) for folder, names in walk(tmp_path)]
    assert found == [(".", [".hidden", "z"]), ("a", ["file"]), ("again", []), ("again/c", ["file"])]
