import json
import logging
import os
import pickle
import shutil
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_spacing

from pretraining.data import DataError, Scan, Volume, find_scans, preprocess
from pretraining.data.default_preprocessing import preprocess_without_plan
from pretraining.data.reading import read_geometry, read_scan
from pretraining.data.scan import BadScan
from tests.full_disk import room_for

Write = Callable[..., Path]


def run(folder: Path, modality: str | None = None, **options: Any) -> tuple[list[Volume], dict[str, str]]:
    scans, _ = find_scans([str(folder)], modality)
    options = {"spacing": "native", "crop_size": (8, 16, 16), "processes": 1, "progress": False, **options}
    volumes, skipped = preprocess(scans, folder.parent / "preprocessed", **options)
    return volumes, {item.name: item.reason for item in skipped}


def stored(volume: Volume, channel: int = 0) -> np.ndarray:
    return volume.read(channel, (0, 0, 0), volume.shape[1:])


def test_ct_within_range_comes_back_unchanged(tmp_path: Path, write_scan: Write, ct_values: np.ndarray) -> None:
    ct_values[0, 0, 0], ct_values[0, 0, 1] = -3000, 3000
    write_scan(tmp_path / "in" / "a.nii.gz", ct_values)
    (volume,), skipped = run(tmp_path / "in")
    assert skipped == {}
    assert stored(volume).dtype == np.int16
    np.testing.assert_array_equal(stored(volume), np.clip(ct_values, -1024, 325))
    assert (volume.spacing, volume.is_ct, volume.name, volume.source) == ((3.0, 1.0, 1.0), (True,), "a", "in")
    assert volume.path.parent.name == "PGL_spacing_native"
    zscored = (stored(volume).astype(np.float64) - volume.mean[0]) / volume.std[0]
    assert (zscored.mean(), zscored.std()) == pytest.approx((0, 1), abs=1e-9)
    assert Volume.load(volume.path) == Volume.load(volume.path.with_suffix(".json")) == volume
    assert pickle.loads(pickle.dumps(volume)) == volume


def test_other_modalities_are_zscored(tmp_path: Path, write_scan: Write) -> None:
    values = np.random.default_rng(1).gamma(2.0, 4000.0, (10, 20, 20))
    write_scan(tmp_path / "in" / "a.nii.gz", values.astype(np.float32))
    (volume,), _ = run(tmp_path / "in", "mr")
    assert volume.dtype == "float16"
    expected = (values - values.mean()) / values.std()
    np.testing.assert_allclose(stored(volume), expected, rtol=1e-3, atol=1e-3)
    zscored = (stored(volume).astype(np.float64) - volume.mean[0]) / volume.std[0]
    assert (zscored.mean(), zscored.std()) == pytest.approx((0, 1), abs=1e-9)


def test_mixed_channels_keep_hounsfield_units_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "raw" / "Dataset007_PETCT"
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "dataset.json").write_text('{"channel_names": {"0": "CT", "1": "PET"}, "file_ending": ".nrrd"}')
    rng = np.random.default_rng(0)
    ct, pet = rng.integers(-1024, 326, (9, 10, 11)).astype(np.int16), rng.exponential(3, (9, 10, 11))
    for index, values in enumerate((ct, pet)):
        sitk.WriteImage(sitk.GetImageFromArray(values), str(folder / "imagesTr" / f"a_000{index}.nrrd"))
    monkeypatch.setenv("nnUNet_raw", str(folder.parent))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    scans, _ = find_scans(["7"])
    (volume,), _ = preprocess(scans, spacing="native", crop_size=(4, 4, 4), processes=1, progress=False)
    assert volume.path == tmp_path / "preprocessed" / "Dataset007_PETCT" / "PGL_spacing_native" / "a.b2nd"
    np.testing.assert_array_equal(stored(volume, 0), ct)
    np.testing.assert_allclose(stored(volume, 1), (pet - pet.mean()) / pet.std(), rtol=1e-3, atol=1e-3)


def test_crop_is_nnunets(tmp_path: Path, write_scan: Write, ct_values: np.ndarray) -> None:
    values = np.zeros((16, 30, 30), np.int16)
    values[2:14, 5:25, 4:28] = ct_values + 1024
    values[6:10, 10:12, 10:12] = 0
    write_scan(tmp_path / "in" / "a.nii.gz", values)
    (volume,), _ = run(tmp_path / "in", "mr")
    cropped, _, _ = crop_to_nonzero(values[None])
    assert volume.shape == cropped.shape


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
def test_the_median_spacing_is_that_of_all_readable_headers(
    tmp_path: Path, write_scan: Write, ct_values: np.ndarray, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    """So it stays when scans with damaged voxels are repaired."""
    with_bad_scans(tmp_path / "in", write_scan, ct_values, (1, 0.5, 0.5))
    (tmp_path / "in" / "no_header.nii.gz").write_bytes(b"")
    headers = []

    def counting(scan: Scan) -> Any:
        headers.append(scan.name)
        return read_geometry(scan)

    monkeypatch.setattr("pretraining.data.preprocessing.read_geometry", counting)
    volumes, skipped = run(tmp_path / "in", spacing="median", processes=processes)
    assert [volume.path.parent.name for volume in volumes] == ["PGL_spacing_1.00x0.50x0.50"] * 2
    assert sorted(skipped) == ["damaged", "flat", "holes", "no_header"]
    assert sorted(headers) == ["a", "b", "damaged", "flat", "holes", "no_header"], "each is read once"

    read = []
    monkeypatch.setattr(
        "pretraining.data.volume_tasks.read_scan", lambda scan: read.append(scan.name) or read_scan(scan)
    )
    again, skipped_again = run(tmp_path / "in", spacing="median")
    assert again == volumes
    assert skipped_again == skipped
    assert sorted(read) == ["damaged", "flat", "holes"], "all else is there"
    write_scan(tmp_path / "in" / "damaged.nii.gz", ct_values, (1, 0.5, 0.5))
    repaired, _ = run(tmp_path / "in", spacing="median")
    assert [volume.name for volume in repaired] == ["a", "b", "damaged"]
    assert repaired[:2] == volumes


@pytest.mark.parametrize("spacing", ["median", "native", (1, 0.5, 0.5)])
def test_scans_that_cannot_be_used_are_skipped_whatever_the_spacing(
    tmp_path: Path,
    write_scan: Write,
    ct_values: np.ndarray,
    caplog: pytest.LogCaptureFixture,
    spacing: str | tuple[float, float, float],
) -> None:
    with_bad_scans(tmp_path / "in", write_scan, ct_values, (2.98, 0.8, 0.8) if spacing == "median" else (1, 0.5, 0.5))
    with caplog.at_level(logging.WARNING):
        volumes, skipped = run(tmp_path / "in", spacing=spacing)
    assert len(volumes) == 2
    assert sorted(skipped) == ["damaged", "flat", "holes"]
    assert caplog.text == ""
    (folder,) = (tmp_path / "preprocessed" / "PGL_folders").glob("*/*")
    expected = {"median": "2.98x0.80x0.80", "native": "native"}.get(str(spacing), "1.00x0.50x0.50")
    assert folder.name == f"PGL_spacing_{expected}"


@pytest.mark.parametrize(("old", "new"), [(1.0, 2.0), (2.0, 1.0), (1.0, 1.5)])
def test_a_ramp_stays_in_place_when_resampled(tmp_path: Path, write_scan: Write, old: float, new: float) -> None:
    """Centre i lies at (i + 0.5) * spacing, before and after."""
    size = 24
    position = (np.arange(size) + 0.5) * old
    ramp = np.broadcast_to(-900 + 10 * position, (size, size, size)).astype(np.float32)
    for axis in range(3):
        write_scan(tmp_path / "in" / f"{axis}.nii.gz", np.moveaxis(ramp, 2, axis), (old, old, old))
    volumes, _ = run(tmp_path / "in", spacing=(new, new, new))
    for axis, volume in enumerate(volumes):
        profile = np.moveaxis(stored(volume), axis, 2)[5, 5]
        expected = -900 + 10 * (np.arange(len(profile)) + 0.5) * new
        np.testing.assert_allclose(profile[4:-4], expected[4:-4], atol=0.51)  # rounded to whole HU


def test_thick_slices_are_repeated_not_smoothed(tmp_path: Path, write_scan: Write) -> None:
    """Separate z with order 0, as in nnU-Net's plans."""
    values = np.random.default_rng(0).integers(-500, 300, (6, 1, 1)) * np.ones((1, 20, 20))
    write_scan(tmp_path / "in" / "a.nii.gz", values.astype(np.int16), (6, 1, 1))
    (volume,), _ = run(tmp_path / "in", spacing=(3, 1, 1))
    np.testing.assert_array_equal(stored(volume)[:, 3, 3], np.repeat(values[:, 0, 0], 2))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((5.0, 1.0, 1.0), (3.0, 0.8, 0.8)),
        ((1.0, 5.0, 1.0), (1.5, 2.5, 1.5)),
        ((1.0, 1.0, 1.0), (2.0, 1.0, 4.0)),
        ((2.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
    ],
)
def test_resampling_is_nnunets(
    tmp_path: Path, write_scan: Write, ct_values: np.ndarray, old: tuple[float, ...], new: tuple[float, ...]
) -> None:
    write_scan(tmp_path / "in" / "a.nii.gz", ct_values, old)
    (volume,), _ = run(tmp_path / "in", spacing=new)
    clipped = np.clip(ct_values, -1024, 325).astype(np.float32)[None]
    reference = resample_data_or_seg_to_spacing(clipped, old, new, order=3, order_z=0, force_separate_z=None)
    np.testing.assert_array_equal(stored(volume), np.rint(np.clip(reference[0], -1024, 325)))


def test_resampling_cannot_leave_the_range(tmp_path: Path, write_scan: Write) -> None:
    values = np.where(np.indices((20, 20, 20)).sum(0) % 8 < 4, -1024, 325).astype(np.int16)
    write_scan(tmp_path / "in" / "a.nii.gz", values, (1, 1, 1))
    (volume,), _ = run(tmp_path / "in", spacing=(0.7, 0.7, 0.7))
    assert (stored(volume).min(), stored(volume).max()) == (-1024, 325)


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


def test_bad_scans_are_skipped_with_the_reason(
    tmp_path: Path, write_scan: Write, ct_values: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    write_scan(tmp_path / "in" / "good.nii.gz", ct_values)
    write_scan(tmp_path / "in" / "flat.nii.gz", np.full((5, 6, 7), 3, np.int16))
    write_scan(tmp_path / "in" / "metal.nii.gz", np.abs(ct_values) + 400)
    write_scan(tmp_path / "in" / "no_air.nii.gz", ct_values % 200)
    (tmp_path / "in" / "text.nii.gz").write_text("no image")
    with caplog.at_level(logging.WARNING):
        volumes, skipped = run(tmp_path / "in")
    assert [volume.name for volume in volumes] == ["good", "no_air"]
    assert "constant" in skipped["flat"]
    assert "constant once clipped" in skipped["metal"]
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


@pytest.mark.parametrize(
    ("modality", "spacing"),
    [("ct", "native"), ("ct", (1.1, 1.1, 1.1)), ("ct", (4.0, 1.1, 1.1)), ("mr", "native"), ("mr", (1.0, 1.1, 1.1))],
)
def test_memory_is_three_scans_at_most(
    tmp_path: Path, write_scan: Write, modality: str, spacing: str | tuple[float, float, float]
) -> None:
    """Counted over all numpy arrays and bytes, from the file to the volume."""
    values = np.random.default_rng(0).integers(-1024, 325, (40, 60, 800)).astype(np.int16)
    write_scan(tmp_path / "in" / "a.nii.gz", values, (1, 1, 1))
    run(tmp_path / "in", modality, spacing=spacing)  # imports, and weights that are kept
    shutil.rmtree(tmp_path / "preprocessed")
    tracemalloc.start()
    try:
        run(tmp_path / "in", modality, spacing=spacing)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 1 < peak / (4 * values.size) < 3


def test_real_scans(tmp_path: Path) -> None:
    if "PGL_TEST_DATA" not in os.environ:
        pytest.skip("PGL_TEST_DATA is not set: it names the folder of real scans")
    data = Path(os.environ["PGL_TEST_DATA"])
    scans, _ = find_scans([str(data / "Task04_Hippocampus")], "mr")
    assert len(scans) == len(list((data / "Task04_Hippocampus" / "imagesTr").glob("h*.nii.gz")))
    torso = [scan for scan in find_scans([str(data / "ct")])[0] if scan.name == "torso_3mm_ct"]
    options: dict[str, Any] = {"crop_size": (25, 64, 64), "processes": 1, "progress": False}
    volumes, skipped = preprocess([*scans[:5], *torso], tmp_path, spacing="native", **options)
    assert skipped == []
    reference = sitk.GetArrayFromImage(sitk.ReadImage(torso[0].files[0]))
    assert volumes[-1].shape[1:] == reference.shape
    assert np.abs(stored(volumes[-1]) - np.clip(reference, -1024, 325)).max() <= 0.5
    assert all(volume.dtype == "float16" for volume in volumes[:5])


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


def test_a_spacing_that_no_memory_could_hold_is_named(tmp_path: Path, write_scan: Write, ct_values: np.ndarray) -> None:
    write_scan(tmp_path / "in" / "ct.nii.gz", ct_values, (2, 1, 1))
    write_scan(tmp_path / "in" / "odd.nii.gz", ct_values, (2000, 1000, 1000))
    volumes, skipped = run(tmp_path / "in", spacing=(2.0, 1.0, 1.0))
    assert [volume.name for volume in volumes] == ["ct"]
    assert skipped["odd"].startswith("has a spacing of 2000 x 1000 x 1000 mm, and would be of 12000 x 20000 x 24000")


def test_a_channel_without_a_z_score_is_named() -> None:
    array = np.random.default_rng(0).normal(size=(2, 6, 6, 6)).astype(np.float32)
    array[1] = 3
    with pytest.raises(BadScan, match="channel 1 is constant once resampled"):
        preprocess_without_plan(array, (1, 1, 1), (False, False), None)
