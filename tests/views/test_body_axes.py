"""What is said of pools whose scans lie differently in the body, and of those that do not tell how they lie."""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from pretraining import cli
from pretraining.data import DataError, Volume
from pretraining.data.reading.orientation import Orientation
from pretraining.views import ViewSettings
from pretraining.views.body_axes import axis_warnings, require_lateral

LATERAL = ViewSettings(no_flip="lateral")


def volume(name: str, letters: str) -> Volume:
    orientation: Orientation | None = (letters[0], letters[1], letters[2]) if letters else None
    return Volume(Path(name), name, "src", (1, 9, 9, 9), (1, 1, 1), (0,), (1,), (True,), "int16", orientation)


def pool(*letters: str) -> list[Volume]:
    return [volume(f"s{number}", each) for number, each in enumerate(letters)]


def test_which_way_an_axis_runs_does_not_matter() -> None:
    assert axis_warnings(pool("SPL", "IAR", "SAL", ""), ViewSettings()) == []


def test_scans_of_another_order_are_counted_and_the_first_is_named() -> None:
    (line,) = axis_warnings(pool("LSP", "SPL", "IPR", "RIA", "", "SAL"), ViewSettings())
    assert "\n" not in line
    assert "head-feet, front-back, left-right in most scans, but not in 2 of 5, the first s0 of src" in line
    assert "s0 of src: left-right, head-feet, front-back" in line


def test_scans_that_do_not_tell_matter_where_the_lateral_axis_is_left_out() -> None:
    volumes = pool("SPL", "", "")
    assert axis_warnings(volumes, ViewSettings()) == []
    (line,) = axis_warnings(volumes, LATERAL)
    assert "-no_flip lateral: 2 of 3 scans do not state" in line
    assert "the first s1 of src" in line
    require_lateral((volume.orientation for volume in volumes), LATERAL)
    require_lateral([None, None], ViewSettings())
    with pytest.raises(DataError, match=r"-no_flip lateral: no scan states .* -flip_probability 0\.5 0\.5 0"):
        require_lateral([None, None], LATERAL)


def preview(folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    arguments = ["-d", str(folder), "-spacing", "native", "-patch", "4", "8", "8", "-n", "1", "-np", "1"]
    monkeypatch.setattr(sys, "argv", ["pgl_preview", *arguments, "-o", str(folder.parent / "a.png"), *options])
    cli.preview_entry()


def test_the_commands_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    values = np.random.default_rng(0).normal(0, 100, (20, 18, 16)).astype(np.float32)
    (tmp_path / "in").mkdir()
    unknown = nibabel.Nifti1Image(values, None)
    nibabel.save(unknown, tmp_path / "in" / "a.nii.gz")
    with pytest.raises(SystemExit) as stop:
        preview(tmp_path / "in", monkeypatch, "-no_flip", "lateral")
    assert str(stop.value.code).startswith("pgl_preview: -no_flip lateral: no scan states")
    assert not (tmp_path / "nnUNet_preprocessed").exists()  # said before preprocessing
    preview(tmp_path / "in", monkeypatch)  # a recommended setting that nobody asked for
    assert "WARNING: -no_flip lateral_in_ct: 1 of 1 scans do not state" in capsys.readouterr().out
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "in" / "b.nii.gz")
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "in" / "c.nii.gz")
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)[[1, 2, 0, 3]]), tmp_path / "in" / "d.nii.gz")
    preview(tmp_path / "in", monkeypatch, "-no_flip", "lateral")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("WARNING")]
    assert len(lines) == 2
    assert "not in 1 of 3, the first d of in" in lines[0]
    assert "1 of 4 scans do not state in their headers how their axes lie in the body, the first a of in" in lines[1]
