"""Whole small runs of the paper's network on stored scans: what they leave, other methods, bad values."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from nnunetv2_pgl.checkpoint import load_checkpoint
from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.networks import PGLSegmenter, ResNet50Encoder
from nnunetv2_pgl.transfer import load_encoder
from pretraining.data import DataError
from pretraining.demo.datasets import write_unlabelled_dataset
from pretraining.settings.config import PretrainConfig, published_for_mae
from pretraining.settings.table import RunOptions
from pretraining.training import networks
from pretraining.training.pretrain import pretrain
from pretraining.training.run_folder import RunFolder
from pretraining.views import ViewSettings

CONFIG = PretrainConfig(
    datasets=("Dataset501_Small",),
    views=ViewSettings(size=(6, 12, 16)),
    strides=(4, 8, 8),
    epochs=2,
    batch_size=2,
    pairs_per_epoch=4,
    optimizer="adamw",
    learning_rate=1e-4,
    warmup_epochs=1,
    hidden_channels=32,
    out_channels=16,
    validation_scans=1,
)


NARROW = (16, 32, 64, 128)
CORRESPONDENCE = {
    *("flipped_right", "unflipped_right", "decoy", "position_code", "unflipped_position_code"),
    *("ceiling", "unflipped_ceiling", "miss_distance"),
}


def options(name: str, **changes: Any) -> RunOptions:
    return replace(RunOptions(name, False, "cpu", 1, 1), **changes)


def no_network(*_: object) -> None:
    raise AssertionError("a run in one process has nobody to connect to")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("nnunet")
    variables = {name: str(root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.setenv("nnUNet_n_proc_DA", "0")
        patch.setattr("pretraining.training.loop.autocast_type", lambda device: None)
        patch.setattr("socket.socket.connect", no_network)
        write_unlabelled_dataset(root / "nnUNet_raw", 501, "Small", 4, 0, shape=(10, 20, 24), spacing=(28, 16, 16))
        yield root


@pytest.fixture(scope="module")
def straight(folders: Path) -> RunFolder:
    pretrain(CONFIG, options("straight"))
    return RunFolder.from_name("straight")


@pytest.fixture(autouse=True)
def only_the_shared_run_keeps_its_weights(folders: Path) -> Iterator[None]:
    """Together, the states of all runs would take gigabytes."""
    yield
    for file in (folders / "nnUNet_results").rglob("*.pth"):
        if file.parent.name != "straight":
            file.unlink()


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ResNet-50 at a quarter of its width; the memory it needs is counted for the shared run alone."""
    monkeypatch.setattr("pretraining.training.pretrain.require_fitting_batch", lambda *_: None)
    for network in (ResNet50Encoder, PGLSegmenter):
        monkeypatch.setattr(networks, network.__name__, partial(network, widths=NARROW))


def records(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]


def test_what_is_said_of_the_files_stands_in_the_log(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (scan,) = (folders / "nnUNet_raw" / "Dataset501_Small" / "imagesTr").glob("*000_0000.nii.gz")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / scan.name).symlink_to(scan)

    def stop(*_: object, **__: object) -> None:
        raise DataError("enough")

    monkeypatch.setattr("pretraining.training.pool.preprocess", stop)
    with pytest.raises(DataError, match="enough"):
        pretrain(replace(CONFIG, datasets=(str(tmp_path),)), options("said"))
    (log,) = RunFolder.from_name("said").path.glob("training_log_*.txt")
    assert "ignored files that are not scans: 1 .txt" in log.read_text()


def test_a_run_leaves_what_it_promises(straight: RunFolder) -> None:
    names = {path.name for path in straight.path.iterdir()}
    expected = {
        "checkpoint_latest.pth",
        "checkpoint_final.pth",
        "config.json",
        "metrics.jsonl",
        "progress.png",
        "views.png",
    }
    assert expected <= names
    assert not [name for name in names if name.endswith(".tmp") or name.startswith(".")]
    assert PretrainConfig.load(straight.config_file) == CONFIG
    for picture in ("progress.png", "views.png"):
        assert imread(straight.path / picture).std() > 0.05
    (log,) = straight.path.glob("training_log_*.txt")
    text = log.read_text()
    for word in (
        "train_loss",
        "feature_std",
        "between positions within a view",
        "tau",
        "views/s",
        "time left",
        "flipped pairs: ",
        "pairs without a flip: ",
        "Before training",
    ):
        assert word in text
    assert 'export nnUNet_extTrainer="$(pgl_extension)"' in text
    history = records(straight)
    assert [record["epoch"] for record in history] == [0, 1]
    assert history[-1]["tau"] > history[0]["tau"] > 0.996
    assert all(0 < record["loss"] < 8 for record in history)


def test_the_checkpoint_says_what_it_is(straight: RunFolder) -> None:
    checkpoint = load_checkpoint(straight.final)
    pgl = checkpoint.pgl
    assert pgl["method"] == "pgl"
    assert (pgl["epochs"], pgl["num_scans"]) == (2, 3)
    assert pgl["architecture"] == {
        "name": "resnet50",
        "norm": "batch",
        "centred": True,
        "padding": "zeros",
        "strides": [4, 8, 8],
        "in_channels": 1,
    }
    assert pgl["intensity"]["clip"] == [-1024.0, 325.0]
    assert pgl["spacing"] == pytest.approx([28, 16, 16], rel=0.15)
    (log,) = straight.path.glob("training_log_*.txt")
    (before, *_) = re.findall(r"flipped pairs: ([\d.]+)% of cells", log.read_text())
    assert f"{100 * pgl['metrics_before']['flipped_right']:.1f}" == before
    assert pgl["metrics_before"].keys() == CORRESPONDENCE
    plan = checkpoint.nnssl_adaptation_plan
    assert set(plan) == {
        "architecture_plans",
        "pretrain_plan",
        "pretrain_num_input_channels",
        "recommended_downstream_patchsize",
        "key_to_encoder",
        "key_to_stem",
        "keys_to_in_proj",
        "key_to_lpe",
    }
    assert (
        sum(v.numel() for k, v in checkpoint.encoder_weights.items() if "running" not in k and "num" not in k)
        == 46_155_072
    )


@pytest.mark.parametrize(
    ("method", "measured", "cited"),
    [
        ("byol", {"loss", "feature_std"}, "Grill"),
        ("models_genesis", {"loss", "deformed"}, "Zhou"),
        ("mae", {"loss", "mean_error"}, "Wald"),
        ("pgl_mae", {"loss", "feature_std", "within_views", "interpolated", "restoration"}, "He, K."),
    ],
)
@pytest.mark.usefixtures("narrow")
def test_other_methods_run_in_the_same_loop(folders: Path, method: Any, measured: set[str], cited: str) -> None:
    """An encoder for the trainer, and a decoder where one was trained."""
    pretrain(replace(CONFIG, method=method, pairs_per_epoch=2, epochs=1), options(method))
    folder = RunFolder.from_name(method)
    (record,) = records(folder)
    common = {"epoch", "learning_rate", "seconds", "scans_per_second", "views_per_second", "waiting", *CORRESPONDENCE}
    assert common <= record.keys()
    assert record.keys() - common - {"tau"} == measured
    assert ("tau" in record) == (method not in ("models_genesis", "mae"))
    checkpoint = load_checkpoint(folder.final)
    assert checkpoint.pgl["method"] == method
    assert any(cited in text for entry in checkpoint.citations for text in entry["apa_citations"])
    load_encoder(ResNet50Encoder(widths=NARROW), checkpoint.encoder_weights, str(folder.final))
    assert bool(checkpoint.decoder_weights) == (method != "byol")


@pytest.mark.usefixtures("narrow")
def test_mae_with_the_settings_published_for_it(folders: Path) -> None:
    """At the test's size; crops of the views' size need not meet. The checkpoint says all of it."""
    published = published_for_mae()
    small = {"datasets": CONFIG.datasets, "strides": CONFIG.strides, "validation_scans": 1, "epochs": 1}
    config = replace(published, views=replace(published.views, size=(6, 12, 16)), pairs_per_epoch=8, **small)  # type: ignore[arg-type]
    pretrain(config, options("published"))
    folder = RunFolder.from_name("published")
    (record,) = records(folder)
    assert record["learning_rate"] == pytest.approx(1e-2 * 0.5**0.9)  # of the second of two steps
    assert 0 < record["mean_error"] < 3
    pgl = load_checkpoint(folder.final).pgl
    kept = {"mask_ratio": 0.75, "optimizer": "nnunet", "preset": "published", "weight_decay": 3e-5, "batch_size": 4}
    assert kept.items() <= pgl["config"].items()
    assert pgl["method"] == "mae"
    assert (pgl["architecture"]["norm"], pgl["architecture"]["padding"]) == ("instance", "zeros")
    (log,) = folder.path.glob("training_log_*.txt")
    text = log.read_text()
    assert "The settings published for mae" in text
    assert f"error of each view's mean {record['mean_error']:.4f}" in text
    assert (folder.path / "views.png").is_file()


@pytest.mark.usefixtures("narrow")
def test_infinite_loss_stops_the_run(folders: Path) -> None:
    with pytest.raises(PGLError, match="not finite in epoch"):
        pretrain(replace(CONFIG, learning_rate=1e30, optimizer="sgd", warmup_epochs=0), options("diverged"))
    assert not RunFolder.from_name("diverged").final.exists()
