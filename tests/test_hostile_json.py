"""JSON files of others, with values of every wrong kind in every place: used right or refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nnunetv2_pgl.errors import PGLError
from pretraining.data import DataError, find_scans, preprocess
from pretraining.settings.checks import check_config
from pretraining.settings.config import PretrainConfig
from pretraining.settings.plans import settings_of_plan
from pretraining.training.pool import Manifest, split_pool
from tests.golden.make import DATASET, GOLDEN, RUN
from tests.hostile import variants
from tests.planned_networks import small_network


def written(path: Path, content: Any) -> Iterator[str]:
    """Writes variants of a JSON file one after the other; gives what is wrong with each."""
    for what, value in variants(content):
        path.write_text(json.dumps(value), encoding="utf-8")
        yield what
    path.write_bytes(b"[" * 100_000)
    yield "nested 100,000 levels deep"
    path.write_bytes(b'{"a": \xff}')
    yield "not UTF-8"


@pytest.fixture
def scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(GOLDEN / "nnUNet_raw", tmp_path / "nnUNet_raw")
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path / "nnUNet_raw" / DATASET


def test_a_dataset_json(scans: Path) -> None:
    file = scans / "dataset.json"
    content = {**json.loads(file.read_text()), "overwrite_image_reader_writer": "SimpleITKIO"}
    content["dataset"] = {f"scan_{n}": {"images": [f"imagesTr/scan_{n}_0000.nrrd"], "label": "x"} for n in range(2)}
    refused = 0
    for what in written(file, content):
        try:
            found, _ = find_scans([str(scans)])
        except DataError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
        else:
            assert all(scan.name == scan.name.strip("./\\") and "/" not in scan.identifier for scan in found), what
    assert refused > 20


def test_a_plan(scans: Path) -> None:
    network = small_network(features=(4, 8))
    kwargs = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "patch_size": [16, 16, 16],
        "spacing": [2.0, 1.0, 1.0],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": kwargs,
        "architecture": {
            "network_class_name": network.class_name,
            "arch_kwargs": {"n_stages": 2, **network.kwargs},
            "_kw_requires_import": list(network.requires_import),
        },
    }
    properties = {"mean": 0.0, "std": 100.0, "percentile_00_5": -900.0, "percentile_99_5": 300.0}
    plans = {
        "dataset_name": DATASET,
        "plans_name": "nnUNetPlans",
        "transpose_forward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {"0": properties},
        "configurations": {"3d_fullres": configuration},
    }
    folder = scans.parents[1] / "nnUNet_preprocessed" / DATASET
    folder.mkdir()

    def used() -> None:
        settings_of_plan("601", "nnUNetPlans", "3d_fullres", None)

    file = folder / "nnUNetPlans.json"
    file.write_text(json.dumps(plans))
    used()
    refused = 0
    for what in written(file, plans):
        try:
            used()
        except PGLError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    assert refused > 100


def test_the_settings_of_a_run(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    content = json.loads((GOLDEN / "nnUNet_results" / "PGL" / RUN / "config.json").read_text())
    refused = 0
    for what in written(file, content):
        try:
            check_config(PretrainConfig.load(file))
        except ValueError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    assert refused > 100


def test_the_record_of_a_stored_scan(scans: Path) -> None:
    """Scans are preprocessed again where it does not say what it should."""
    images = [path for path in sorted((scans / "imagesTr").iterdir()) if "scan_0" not in path.name]
    for path in images:
        path.unlink()

    def volumes() -> Any:
        found, _ = find_scans([str(scans)])
        options: Any = {"spacing": "native", "crop_size": (8, 8, 8), "processes": 1, "progress": False}
        stored, skipped = preprocess(found, **options, verify=True)
        assert not skipped
        return stored

    (good,) = volumes()
    record = good.path.with_suffix(".json")
    content = json.loads(record.read_text())
    for what in written(record, content):
        try:
            (volume,) = volumes()
            assert (volume.name, volume.shape) == (good.name, good.shape)
            Manifest.from_pool(
                PretrainConfig(datasets=(str(scans),)), split_pool([volume], PretrainConfig(("x",)), [0])
            )
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
