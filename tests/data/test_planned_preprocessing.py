"""A plan's preprocessing against nnU-Net's own preprocessor, which reads the same files with the whole plans."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from pretraining.data import DataError, PlannedPreprocessing, Scan, Volume, preprocess
from pretraining.data.store import read_record

Write = Callable[..., Path]

CT, MR = "CTNormalization", "ZScoreNormalization"


def plans(*schemes: str, mask: bool = False, transpose: tuple[int, int, int] = (0, 1, 2)) -> dict[str, Any]:
    """As nnU-Net's planner writes them, with a second configuration that inherits."""
    properties = {"mean": -30.0, "std": 210.5, "percentile_00_5": -900.25, "percentile_99_5": 250.75}
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    fullres = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "patch_size": [8, 16, 16],
        "spacing": [2.0, 1.2, 0.9],
        "normalization_schemes": list(schemes),
        "use_mask_for_norm": [mask] * len(schemes),
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
        "architecture": {"network_class_name": "PlainConvUNet"},
    }
    return {
        "dataset_name": "Dataset017_Plan",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": list(transpose),
        "foreground_intensity_properties_per_channel": {
            str(c): {key: value * (c + 1) for key, value in properties.items()} for c in range(len(schemes))
        },
        "configurations": {
            "2d": {**fullres, "spacing": [1.2, 0.9]},
            "3d_fullres": fullres,
            "3d_lowres": {"inherits_from": "3d_fullres", "spacing": [3.0, 2.4, 1.8]},
        },
    }


@pytest.fixture
def scan(tmp_path: Path, write_scan: Write) -> Callable[..., Scan]:
    """A scan with zeros around and inside, one file per channel."""

    def make(channels: int, name: str = "a") -> Scan:
        files = []
        for channel in range(channels):
            values = np.random.default_rng(channel).normal(-20, 400, (12, 20, 24)).astype(np.float32)
            values[:2] = values[:, :, 20:] = values[4:8, 5:9, 6:12] = 0
            files.append(write_scan(tmp_path / "in" / f"{name}_{channel:04d}.nrrd", values, (3.0, 1.0, 1.0)))
        names = tuple(f"c{channel}" for channel in range(channels))
        return Scan(name, name, "in", "in", tuple(map(str, files)), names, (True,) * channels)

    return make


def stored(tmp_path: Path, scan: Scan, planned: PlannedPreprocessing) -> Volume:
    options: dict[str, Any] = {"crop_size": (4, 8, 8), "processes": 1, "progress": False}
    (volume,), skipped = preprocess([scan], tmp_path / "out", planned=planned, **options)
    assert skipped == []
    return volume


def read(volume: Volume) -> np.ndarray:
    return np.stack([volume.read(channel, (0, 0, 0), volume.shape[1:]) for channel in range(volume.shape[0])])


def through_json(planned: PlannedPreprocessing) -> PlannedPreprocessing:
    return PlannedPreprocessing.from_dict(json.loads(json.dumps(planned.to_dict())))


@pytest.mark.parametrize(
    ("content", "configuration"),
    [
        (plans(CT), "3d_fullres"),
        (plans(MR), "3d_fullres"),
        (plans(MR, mask=True), "3d_fullres"),
        (plans(CT, MR, mask=True), "3d_lowres"),
        (plans(CT, CT), "3d_fullres"),
        (plans(MR, mask=True, transpose=(2, 0, 1)), "3d_fullres"),
    ],
    ids=["ct", "zscore", "mask", "channels_lowres", "two_ct", "transposed"],
)
def test_voxels_are_those_of_nnunets_preprocessor(
    tmp_path: Path, scan: Callable[..., Scan], content: dict[str, Any], configuration: str
) -> None:
    manager = PlansManager(content)
    chosen = manager.get_configuration(configuration)
    one = scan(len(chosen.normalization_schemes))
    expected, _, _ = DefaultPreprocessor(verbose=False).run_case(list(one.files), None, manager, chosen, {})
    volume = stored(tmp_path, one, through_json(PlannedPreprocessing.from_plans(content, configuration)))
    assert volume.dtype == "float16"
    np.testing.assert_array_equal(read(volume), expected.astype(np.float16))
    np.testing.assert_allclose(read(volume).astype(np.float32), expected, rtol=2**-11, atol=2**-24)
    assert set(volume.mean) == {0.0}
    assert set(volume.std) == {1.0}
    assert volume.path.parent.name == f"PGL_Dataset017_Plan_nnUNetPlans_{configuration}"
    np.testing.assert_allclose(volume.spacing, chosen.spacing, rtol=0.15)  # shapes are whole numbers


def test_values_too_large_for_float16_are_kept_exact(tmp_path: Path, write_scan: Write) -> None:
    values = np.random.default_rng(0).integers(0, 70000, (8, 9, 10)).astype(np.float32)
    file = write_scan(tmp_path / "in" / "a.nrrd", values, (2.0, 1.2, 0.9))
    one = Scan("a", "a", "in", "in", (str(file),), ("MR",), (False,))
    volume = stored(tmp_path, one, PlannedPreprocessing.from_plans(plans("NoNormalization"), "3d_fullres"))
    assert volume.dtype == "float32"
    np.testing.assert_array_equal(read(volume)[0], values)


def test_a_changed_plan_redoes_the_volume(tmp_path: Path, scan: Callable[..., Scan]) -> None:
    content = plans(CT)
    first = stored(tmp_path, scan(1), PlannedPreprocessing.from_plans(content, "3d_fullres"))
    before = first.path.stat().st_mtime_ns
    again = stored(tmp_path, scan(1), through_json(PlannedPreprocessing.from_plans(content, "3d_fullres")))
    assert again.path.stat().st_mtime_ns != before  # the scan's own file was written anew by now
    one, before = scan(1), 0
    for number in range(3):
        content["foreground_intensity_properties_per_channel"]["0"]["mean"] = float(number // 2)
        volume = stored(tmp_path, one, PlannedPreprocessing.from_plans(content, "3d_fullres"))
        assert (volume.path.stat().st_mtime_ns == before) == (number == 1)
        before = volume.path.stat().st_mtime_ns
    assert read_record(volume.path)["settings"]["planned"]["normalization_schemes"] == [CT]


def test_one_scheme_serves_any_number_of_channels(
    tmp_path: Path, scan: Callable[..., Scan], caplog: pytest.LogCaptureFixture
) -> None:
    two, content = scan(2), plans(CT, CT)
    properties = content["foreground_intensity_properties_per_channel"]
    properties["1"] = properties["0"]
    manager = PlansManager(content)
    expected, _, _ = DefaultPreprocessor(verbose=False).run_case(
        list(two.files), None, manager, manager.get_configuration("3d_fullres"), {}
    )
    two = replace(two, is_ct=(True, False))
    with caplog.at_level(logging.WARNING):
        volume = stored(tmp_path, two, PlannedPreprocessing.from_plans(plans(CT), "3d_fullres"))
    np.testing.assert_array_equal(read(volume), expected.astype(np.float16))
    assert "in: nnUNetPlans clips channel c1 as CT, which it is not declared to be" in caplog.text
    assert "c0" not in caplog.text


def test_other_numbers_of_channels_are_skipped_in_one_line(tmp_path: Path, scan: Callable[..., Scan]) -> None:
    planned = PlannedPreprocessing.from_plans(plans(CT, MR), "3d_fullres")
    options: dict[str, Any] = {"crop_size": (4, 8, 8), "processes": 1, "progress": False, "planned": planned}
    volumes, skipped = preprocess([scan(2), scan(1, "b"), scan(3, "c")], tmp_path / "out", **options)
    assert [volume.name for volume in volumes] == ["a"]
    assert sorted(map(str, skipped)) == [
        "in: b skipped: has 1 channel, nnUNetPlans is for 2",
        "in: c skipped: has 3 channels, nnUNetPlans is for 2",
    ]


@pytest.mark.parametrize(
    ("changes", "configuration", "message"),
    [
        ({}, "3d_cascade", "nnUNetPlans: Requested configuration 3d_cascade not found"),
        ({}, "2d", "must be 3D: spacing is"),
        ({"preprocessor_name": "Mine"}, "3d_fullres", "no preprocessor Mine"),
        ({"resampling_fn_data": "mine"}, "3d_fullres", "resampling function named 'mine'"),
        ({"normalization_schemes": None}, "3d_fullres", "normalization_schemes"),
    ],
)
def test_unusable_plans_are_one_line(changes: dict[str, Any], configuration: str, message: str) -> None:
    content = plans(CT)
    fullres = content["configurations"]["3d_fullres"]
    for key, value in changes.items():
        fullres.pop(key) if value is None else fullres.update({key: value})
    with pytest.raises(DataError) as caught:
        PlannedPreprocessing.from_plans(content, configuration)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
