"""A pool of scans: what is done, done again, left out, and shared with other runs."""

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pretraining.data import DataError, Scan, Volume, find_scans, preprocess
from pretraining.data.reading import read_scan
from tests.data.preprocessed import run, stored
from tests.full_disk import room_for

Write = Callable[..., Path]


def test_second_run_skips_all_and_changes_are_redone(
    tmp_path: Path, write_scan: Write, ct_values: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        write_scan(tmp_path / "in" / f"{name}.nii.gz", ct_values)
    first, _ = run(tmp_path / "in")
    before = {path: path.stat().st_mtime_ns for path in first[0].path.parent.iterdir()}
    with monkeypatch.context() as context:
        context.setattr("pretraining.data.volume_tasks.read_scan", lambda scan: pytest.fail("was read again"))
        assert run(tmp_path / "in")[0] == first
    assert {path: path.stat().st_mtime_ns for path in first[0].path.parent.iterdir()} == before

    stored(first[0])  # has the file open
    write_scan(tmp_path / "in" / "a.nii.gz", np.clip(ct_values, -1000, 300))
    again, _ = run(tmp_path / "in")
    assert stored(again[0]).min() == -1000
    assert first[1].path.stat().st_mtime_ns == before[first[1].path]

    again[1].path.write_bytes(b"")  # lost half way, by a crash
    assert stored(run(tmp_path / "in")[0][1]).min() == -1024
    assert run(tmp_path / "in", "mr")[0][0].is_ct == (False,)


def test_a_volume_that_has_changed_on_disk_is_redone_when_checksums_are_compared(
    tmp_path: Path, write_scan: Write, ct_values: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    for name in "abc":
        write_scan(tmp_path / "in" / f"{name}.nii.gz", ct_values)
    volumes, _ = run(tmp_path / "in")
    content = volumes[0].path.read_bytes()
    volumes[0].path.write_bytes(content[:-200] + bytes([content[-200] ^ 255]) + content[-199:])
    record = json.loads(volumes[1].path.with_suffix(".json").read_text())
    del record["sha256"]  # as an earlier version wrote it
    volumes[1].path.with_suffix(".json").write_text(json.dumps(record))
    before = volumes[2].path.stat().st_mtime_ns
    with caplog.at_level(logging.WARNING):
        assert run(tmp_path / "in")[0] == volumes
        assert caplog.text == ""
        assert volumes[0].path.read_bytes() != content
        assert run(tmp_path / "in", verify=True)[0] == volumes
    assert ["a.b2nd is damaged" in caplog.text, "b.b2nd is damaged" in caplog.text] == [True, True]
    assert volumes[0].path.read_bytes() == content
    assert json.loads(volumes[1].path.with_suffix(".json").read_text())["sha256"]
    assert volumes[2].path.stat().st_mtime_ns == before


def test_a_record_that_does_not_fit_its_file_is_redone_when_checksums_are_compared(
    tmp_path: Path, write_scan: Write, ct_values: np.ndarray
) -> None:
    write_scan(tmp_path / "in" / "a.nii.gz", ct_values)
    (volume,), _ = run(tmp_path / "in")
    file = volume.path.with_suffix(".json")
    record = json.loads(file.read_text())
    depth, height, width = record["shape"][1:]
    file.write_text(json.dumps({**record, "shape": [1, height, depth, width]}))
    assert run(tmp_path / "in")[0] != [volume]
    assert run(tmp_path / "in", verify=True)[0] == [volume]


def test_bad_scans_are_skipped_with_the_reason(
    tmp_path: Path, write_scan: Write, ct_values: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    write_scan(tmp_path / "in" / "good.nii.gz", ct_values)
    write_scan(tmp_path / "in" / "flat.nii.gz", np.full((5, 6, 7), 3, np.int16))
    write_scan(tmp_path / "in" / "metal.nii.gz", np.abs(ct_values) + 400)
    write_scan(tmp_path / "in" / "no_air.nii.gz", ct_values % 200)
    (tmp_path / "in" / "text.nii.gz").write_text("no image")
    thin = write_scan(tmp_path / "other" / "good.nii.gz", ct_values).parent
    write_scan(thin / "thin.nii.gz", ct_values[:3])
    with caplog.at_level(logging.WARNING):
        volumes, skipped = run(tmp_path / "in")
    assert [volume.name for volume in volumes] == ["good", "no_air"]
    assert "constant" in skipped["flat"]
    assert "constant once clipped" in skipped["metal"]
    assert "only 1 x 20 x 24 voxels are left at a spacing of 9 x 1 x 1 mm" in run(thin, spacing=(9, 1, 1))[1]["thin"]
    assert "text.nii.gz" in skipped["text"]
    assert "no_air" in caplog.text
    assert "good" not in caplog.text


def test_nothing_left_is_an_error(tmp_path: Path, write_scan: Write, ct_values: np.ndarray) -> None:
    write_scan(tmp_path / "in" / "flat.nii.gz", np.full((5, 6, 7), 3, np.int16))
    for spacing in ("native", "median"):
        with pytest.raises(DataError, match=r"flat skipped: .*constant"):
            run(tmp_path / "in", spacing=spacing)
    write_scan(tmp_path / "in" / "flat.nii.gz", ct_values[0])
    with pytest.raises(DataError, match=r"flat skipped: .*2D"):
        run(tmp_path / "in", spacing="median")
    for spacing in ("mean", (1, 0, 1)):
        with pytest.raises(DataError, match="spacing"):
            run(tmp_path / "in", spacing=spacing)


def test_leftovers_of_a_killed_run_go_and_those_at_work_stay(
    tmp_path: Path, write_scan: Write, ct_values: np.ndarray
) -> None:
    write_scan(tmp_path / "in" / "a.nii.gz", ct_values)
    (volume,), _ = run(tmp_path / "in")
    old, young = (volume.path.with_name(f".x{number}.b2nd.{number}.tmp") for number in (1, 2))
    old.touch()
    young.touch()
    os.utime(old, (time.time() - 1e5, time.time() - 1e5))
    run(tmp_path / "in")
    assert sorted(path.name for path in volume.path.parent.iterdir()) == [young.name, "a.b2nd", "a.json"]


@pytest.mark.parametrize(("processes", "rooms"), [(1, (0, 500, 3000)), (2, (500,))])
def test_a_full_disk_ends_the_run_and_leaves_nothing_half_written(
    tmp_path: Path, write_scan: Write, ct_values: np.ndarray, processes: int, rooms: tuple[int, ...]
) -> None:
    """No scan may be skipped for it: the run would go on with the few that had room."""
    for name in ("a", "b", "c"):
        write_scan(tmp_path / "in" / f"{name}.nii.gz", ct_values)
    for room in rooms:
        with (
            room_for(room),
            pytest.raises(DataError, match=r"^could not write .*[abc]\.b2nd: File too large; check space and rights$"),
        ):
            run(tmp_path / "in", processes=processes)
        assert [path for path in (tmp_path / "preprocessed").rglob("*") if path.is_file()] == []
    volumes, skipped = run(tmp_path / "in", processes=processes)
    assert len(volumes) == 3
    assert not skipped


def test_runs_at_the_same_time_share_the_work_and_do_not_disturb_each_other(
    tmp_path: Path, write_scan: Write, ct_values: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abcd":
        write_scan(tmp_path / "in" / f"{name}.nii.gz", ct_values)
    read, seen_by_other = [], []

    def read_while_another_run_prepares_all(scan: Scan) -> tuple[np.ndarray, tuple[float, float, float], str]:
        read.append(scan.name)
        if len(read) == 1:
            seen_by_other.extend(run(tmp_path / "in")[0])
        return read_scan(scan)

    def replace_with_all_records_in_place(source: str, target: Path) -> None:
        assert all(Volume.load(volume.path) == volume for volume in seen_by_other)
        os.rename(source, target)

    monkeypatch.setattr("pretraining.data.volume_tasks.read_scan", read_while_another_run_prepares_all)
    monkeypatch.setattr("nnunetv2_pgl.files.os.replace", replace_with_all_records_in_place)
    volumes, skipped = run(tmp_path / "in")
    assert volumes == seen_by_other
    assert skipped == {}
    assert sorted(read[1:]) == list("abcd"), "the first scan twice, the others by one run"
    for volume in volumes:
        np.testing.assert_array_equal(stored(volume), np.clip(ct_values, -1024, 325))


def test_two_processes_give_the_same(tmp_path: Path, write_scan: Write, ct_values: np.ndarray) -> None:
    for name in "abc":
        write_scan(tmp_path / "in" / f"{name}.nii.gz", ct_values)
    (tmp_path / "in" / "b.nii.gz").write_bytes(b"broken")
    volumes, skipped = run(tmp_path / "in", processes=2)
    assert [volume.name for volume in volumes] == ["a", "c"]
    assert list(skipped) == ["b"]
    np.testing.assert_array_equal(stored(volumes[1]), np.clip(ct_values, -1024, 325))


def test_a_mask_that_was_taken_is_looked_at_again(tmp_path: Path, write_scan: Write, ct_values: np.ndarray) -> None:
    """With --use_masks, or by an earlier version: what is stored is not taken for a scan."""
    write_scan(tmp_path / "in" / "ct.nii.gz", ct_values)
    write_scan(tmp_path / "in" / "liver.nii.gz", (ct_values > 0).astype(np.uint8))
    root, options = tmp_path / "out", {"spacing": "native", "crop_size": (8, 16, 16), "processes": 1, "progress": False}
    names = []
    for use_masks in (True, False, True, False):
        scans, _ = find_scans([str(tmp_path / "in")], "mr", use_masks)
        names.append([volume.name for volume in preprocess(scans, root, **options)[0]])
    assert names == [["ct", "liver"], ["ct"]] * 2


@pytest.mark.parametrize("ending", ["mha", "nrrd", "nii.gz"])
def test_volumes_of_earlier_readers_are_made_anew(
    tmp_path: Path, write_scan: Write, ct_values: np.ndarray, ending: str
) -> None:
    """But for NIfTI, of which they read the same."""
    write_scan(tmp_path / "in" / f"a.{ending}", ct_values)
    (volume,), _ = run(tmp_path / "in")
    path = volume.path.with_suffix(".json")
    record = json.loads(path.read_text())
    for key in ("reader", "reading"):
        assert (record["settings"].pop(key, None) is None) == (ending == "nii.gz")
    path.write_text(json.dumps(record))
    before = volume.path.stat().st_mtime_ns
    run(tmp_path / "in")
    assert (volume.path.stat().st_mtime_ns == before) == (ending == "nii.gz")
    after = volume.path.stat().st_mtime_ns
    run(tmp_path / "in")
    assert volume.path.stat().st_mtime_ns == after
