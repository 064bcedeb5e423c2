"""Whole small runs on pools of several sources: joint channels, a plan's preprocessing, weights, the manifest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_pgl.checkpoint import load_checkpoint
from pretraining.data import PlannedPreprocessing
from pretraining.settings.config import PretrainConfig
from pretraining.settings.table import RunOptions
from pretraining.training import loop, saving
from pretraining.training.pretrain import pretrain
from pretraining.training.run_folder import RunFolder
from pretraining.training.sampler import PairSampler
from pretraining.views import ViewSettings
from tests.planned_networks import small_network

CONFIG = PretrainConfig(
    datasets=("Dataset011_Two", "Dataset012_One"),
    views=ViewSettings(size=(4, 8, 8)),
    architecture="plain",
    network=small_network(features=(4, 8)).to_dict(),
    epochs=1,
    batch_size=2,
    pairs_per_epoch=2,
    optimizer="adamw",
    warmup_epochs=0,
    hidden_channels=8,
    out_channels=8,
    validation_scans=1,
)


def write_dataset(raw: Path, name: str, channels: dict[str, str], scans: int) -> None:
    folder = raw / name / "imagesTr"
    folder.mkdir(parents=True)
    described = {"channel_names": channels, "file_ending": ".nrrd", "licence": f"{name[-3:]} licence", "reference": "R"}
    (folder.parent / "dataset.json").write_text(json.dumps(described))
    rng = np.random.default_rng(0)
    for scan in range(scans):
        for channel in channels:
            image = sitk.GetImageFromArray(rng.normal(0, 100, (8, 14, 14)).astype(np.float32))
            sitk.WriteImage(image, str(folder / f"{name[-3:]}_{scan}_{int(channel):04d}.nrrd"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("nnunet")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            patch.setenv(name, str(root / name))
        patch.setenv("nnUNet_n_proc_DA", "0")
        patch.setattr(loop, "validation_batches", lambda *args: [])
        patch.setattr(loop.TrainingLoop, "measure_baseline", lambda self: None)
        patch.setattr(loop.TrainingLoop, "_correspondence", lambda self: {})
        write_dataset(root / "nnUNet_raw", "Dataset011_Two", {"0": "T1", "1": "T2"}, 4)
        write_dataset(root / "nnUNet_raw", "Dataset012_One", {"0": "CT"}, 2)
        yield root


def run(name: str, config: PretrainConfig, **changes: Any) -> RunFolder:
    pretrain(config, replace(RunOptions(name, False, "cpu", 1, 1), **changes))
    return RunFolder.from_name(name)


def manifest_of(folder: RunFolder) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(folder.manifest.read_text())
    return content


def test_joint_channels_on_a_plan(folders: Path) -> None:
    planned = PlannedPreprocessing(
        *("Dataset011_Two", "nnUNetPlans", "3d_fullres", (1.0, 1.0, 1.0), (0, 1, 2)),
        *(("ZScoreNormalization",) * 2, (False, False), {"0": {}, "1": {}}),
        *("resample_data_or_seg_to_shape", {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}),
    )
    views = replace(CONFIG.views, channels="joint")
    folder = run("joint", replace(CONFIG, views=views, preprocessing=planned.to_dict()))
    checkpoint = load_checkpoint(folder.final)
    pgl = checkpoint.pgl
    assert pgl["architecture"]["in_channels"] == pgl["config"]["in_channels"] == 2
    assert checkpoint.encoder_weights["stages.0.0.convs.0.conv.weight"].shape[1] == 2
    assert pgl["intensity"]["normalization_schemes"] == ["ZScoreNormalization"] * 2
    assert pgl["spacing"] == [1.0, 1.0, 1.0]
    content = manifest_of(folder)
    assert pgl["manifest"] == {
        "sha256": hashlib.sha256(folder.manifest.read_bytes()).hexdigest(),
        "scans_per_source": {"Dataset011_Two": 4, "Dataset012_One": 0},
    }
    terms = {"reference": "R", "release": None}
    assert pgl["sources"] == [
        {
            "name": "Dataset011_Two",
            "scans": 4,
            "held_out": 1,
            "channels": ["T1", "T2"],
            "licence": "Two licence",
            **terms,
        },
        {"name": "Dataset012_One", "scans": 0, "held_out": 0, "channels": [], "licence": "One licence", **terms},
    ]
    assert {tuple(scan["channels"]) for scan in content["scans"]} == {("T1", "T2")}
    assert [scan["use"] for scan in content["scans"]].count("held out") == 1
    (log,) = folder.path.glob("training_log_*.txt")
    assert (
        "Licences of the scans, from dataset.json: Dataset011_Two: Two licence; Dataset012_One: One" in log.read_text()
    )
    assert "Dataset012_One: One_0 skipped: has 1 channel; -channels joint takes scans with 2" in log.read_text()
    assert (folders / "nnUNet_preprocessed/Dataset011_Two" / planned.folder_name / "Two_0.b2nd").is_file()
    assert PretrainConfig.load(folder.config_file).preprocessing == planned.to_dict()


def test_weights_decide_who_is_drawn_and_a_run_goes_on_with_them(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[int, str]] = []
    order = PairSampler.__iter__

    def spied(self: PairSampler) -> Any:
        for unit in order(self):
            drawn.extend((draw, sources[scan]) for draw, scan in unit)
            yield unit

    sources = ["Dataset011_Two"] * 4 + ["Dataset012_One"] * 2
    monkeypatch.setattr(PairSampler, "__iter__", spied)
    config = replace(CONFIG, weights=(1.0, 3.0), epochs=2, pairs_per_epoch=4, validation_scans=0)
    with monkeypatch.context() as patch:
        save = saving.atomic_save

        def stop(content: Any, path: Path) -> None:
            save(content, path)
            raise OSError("no more")

        patch.setattr(saving, "atomic_save", stop)
        with pytest.raises(OSError, match="no more"):
            run("weighted", config)
    del drawn[4:]  # by the steps until the error was told
    folder = run("weighted", config, resume=True)
    assert [draw for draw, _ in drawn] == list(range(8))
    assert [source for _, source in drawn].count("Dataset011_Two") == 2
    assert manifest_of(folder)["sources"] == {
        "Dataset011_Two": {"scans": 4, "weight": 1.0},
        "Dataset012_One": {"scans": 2, "weight": 3.0},
    }
