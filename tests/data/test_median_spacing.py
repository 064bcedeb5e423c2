"""The median spacing of a pool, and pools in which scans turn out to be unusable."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretraining.data import Scan, find_scans, preprocess
from pretraining.data.reading import read_geometry, read_scan
from tests.data.preprocessed import run, stored

Write = Callable[..., Path]


def test_median_spacing_is_per_axis_and_needs_no_pixels(
    tmp_path: Path, write_scan: Write, ct_values: np.ndarray
) -> None:
    for name, spacing in {"a": (2, 0.5, 1.0), "b": (3, 0.8, 0.9), "c": (9, 0.9, 0.8)}.items():
        write_scan(tmp_path / "in" / f"{name}.nii.gz", ct_values, spacing)
    broken = write_scan(tmp_path / "in" / "broken.nii.gz", ct_values, (3, 0.8, 0.9))
    broken.write_bytes(broken.read_bytes()[:5000])
    volumes, skipped = run(tmp_path / "in", spacing="median")
    assert volumes[0].path.parent.name == "PGL_spacing_3.00x0.80x0.90"
    assert volumes[0].shape == (1, 8, 12, 27)
    assert volumes[0].spacing == pytest.approx((12 * 2 / 8, 20 * 0.5 / 12, 24 * 1.0 / 27))
    np.testing.assert_array_equal(stored(volumes[1]), np.clip(ct_values, -1024, 325))
    assert "truncated" in skipped["broken"]


def with_bad_scans(folder: Path, write_scan: Write, values: np.ndarray, bad: tuple[float, ...]) -> None:
    """Two good scans, and three that cannot be used, which only their voxels tell."""
    for name in "ab":
        write_scan(folder / f"{name}.nii.gz", values, (3, 0.8, 0.8))
    for name in ("flat", "holes"):
        write_scan(folder / f"{name}.nii.gz", np.full_like(values, 7), bad)
    damaged = write_scan(folder / "damaged.nii.gz", values, bad)
    damaged.write_bytes(damaged.read_bytes()[:-2000])


@pytest.mark.parametrize("processes", [1, 2])
def test_scans_that_cannot_be_used_do_not_decide_the_median_spacing(
    tmp_path: Path,
    write_scan: Write,
    ct_values: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    processes: int,
) -> None:
    with_bad_scans(tmp_path / "in", write_scan, ct_values, (1, 0.5, 0.5))
    headers = []

    def counted(scan: Scan) -> Any:
        headers.append(scan.name)
        return read_geometry(scan)

    monkeypatch.setattr("pretraining.data.preprocessing.read_geometry", counted)
    with caplog.at_level(logging.WARNING):
        volumes, skipped = preprocess(
            find_scans([str(tmp_path / "in")])[0],
            tmp_path / "preprocessed",
            crop_size=(8, 16, 16),
            processes=processes,
            progress=False,
        )
    assert [volume.path.parent.name for volume in volumes] == ["PGL_spacing_3.00x0.80x0.80"] * 2
    np.testing.assert_array_equal(stored(volumes[0]), np.clip(ct_values, -1024, 325))
    assert sorted(item.name for item in skipped) == ["damaged", "flat", "holes"]
    assert sorted(headers) == ["a", "b", "damaged", "flat", "holes"], "each is read once, whatever the spacing"
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("3 scans could not be used, which changes the median spacing from ")
    assert "from 1 x 0.5 x 0.5 to 3 x 0.8 x 0.8 mm: " in line
    assert f"PGL_spacing_1.00x0.50x0.50 below {tmp_path / 'preprocessed'}" in line

    read = []
    monkeypatch.setattr(
        "pretraining.data.volume_tasks.read_scan", lambda scan: read.append(scan.name) or read_scan(scan)
    )
    again, skipped_again = run(tmp_path / "in", spacing="median")
    assert again == volumes
    assert sorted(skipped_again) == sorted(read) == ["damaged", "flat", "holes"], "all else is there"
    shutil.rmtree(tmp_path / "preprocessed")
    assert [volume.path for volume in run(tmp_path / "in", spacing="median")[0]] == [volume.path for volume in volumes]


@pytest.mark.parametrize("spacing", ["median", "native", (1, 0.5, 0.5)])
def test_nothing_is_done_again_where_the_spacing_stays(
    tmp_path: Path,
    write_scan: Write,
    ct_values: np.ndarray,
    caplog: pytest.LogCaptureFixture,
    spacing: str | tuple[float, float, float],
) -> None:
    """Less than 1 % off, or not the pool's."""
    with_bad_scans(tmp_path / "in", write_scan, ct_values, (2.98, 0.8, 0.8) if spacing == "median" else (1, 0.5, 0.5))
    with caplog.at_level(logging.WARNING):
        volumes, skipped = run(tmp_path / "in", spacing=spacing)
    assert len(volumes) == 2
    assert sorted(skipped) == ["damaged", "flat", "holes"]
    assert caplog.text == ""
    (folder,) = (tmp_path / "preprocessed" / "PGL_folders").glob("*/*")
    expected = {"median": "2.98x0.80x0.80", "native": "native"}.get(str(spacing), "1.00x0.50x0.50")
    assert folder.name == f"PGL_spacing_{expected}"


def test_a_scan_that_only_fails_at_the_new_spacing_stays_out(
    tmp_path: Path, write_scan: Write, ct_values: np.ndarray
) -> None:
    with_bad_scans(tmp_path / "in", write_scan, ct_values, (1, 0.8, 0.8))
    write_scan(tmp_path / "in" / "thin.nii.gz", ct_values[:2], (1, 0.8, 0.8))  # two slices at 1 mm, one at 3
    write_scan(tmp_path / "in" / "c.nii.gz", ct_values, (3, 0.8, 0.8))
    volumes, skipped = run(tmp_path / "in", spacing="median")
    assert [volume.name for volume in volumes] == ["a", "b", "c"]
    assert {volume.path.parent.name for volume in volumes} == {"PGL_spacing_3.00x0.80x0.80"}
    assert "only 1 x 20 x 24 voxels are left" in skipped["thin"]
