"""Whole small runs of the loop on stored scans: resuming, two processes, pictures, bad values."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread

from nnunetv2_pgl.checkpoint import CheckpointError, load_checkpoint
from nnunetv2_pgl.networks import ResNet50Encoder
from nnunetv2_pgl.transfer import load_encoder
from pretraining.config import PretrainConfig
from pretraining.demo.datasets import write_unlabelled_dataset
from pretraining.pretrain import RunOptions, pretrain
from pretraining.run_folder import RunError, RunFolder
from pretraining.training.errors import Stopped, TrainingError
from pretraining.training.state import TrainingState
from pretraining.training.step import Stepper
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
        patch.setattr("pretraining.training.loop.has_bfloat16", lambda device: False)
        patch.setattr("socket.socket.connect", no_network)
        write_unlabelled_dataset(root / "nnUNet_raw", 501, "Small", 4, 0, shape=(10, 20, 24), spacing=(28, 16, 16))
        yield root


@pytest.fixture(scope="module")
def straight(folders: Path) -> RunFolder:
    pretrain(CONFIG, options("straight"))
    return RunFolder.named("straight")


@pytest.fixture(autouse=True)
def only_the_shared_run_keeps_its_weights(folders: Path) -> Iterator[None]:
    """Together, the states of all runs would take eleven gigabytes."""
    yield
    for file in (folders / "nnUNet_results").rglob("*.pth"):
        if file.parent.name != "straight":
            file.unlink()


def encoder_of(folder: RunFolder) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder.final).encoder_weights


def records(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]


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
        "between the places of a view",
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


class Killed(Exception):  # noqa: N818
    pass


def killed_after_the_first_epoch(patch: pytest.MonkeyPatch) -> None:
    save = TrainingState.save

    def die(state: TrainingState, path: Path) -> None:
        save(state, path)
        raise Killed

    patch.setattr(TrainingState, "save", die)


def told_to_stop(after_steps: int) -> Callable[[pytest.MonkeyPatch], None]:
    def interrupt(patch: pytest.MonkeyPatch) -> None:
        make_step = Stepper.__call__

        def signalled(self: Stepper, number: int, batches: Any) -> Any:
            output = make_step(self, number, batches)
            if number + 1 == after_steps:
                os.kill(os.getpid(), signal.SIGTERM)
            return output

        patch.setattr(Stepper, "__call__", signalled)

    return interrupt


@pytest.mark.parametrize(
    ("name", "interrupt", "error"),
    [
        ("killed_after_the_first_epoch", killed_after_the_first_epoch, Killed),
        ("stopped_within_the_first_epoch", told_to_stop(1), Stopped),
        ("stopped_at_the_end_of_the_first_epoch", told_to_stop(2), Stopped),
    ],
)
def test_resumed_is_the_uninterrupted_run(
    straight: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    interrupt: Callable[[pytest.MonkeyPatch], None],
    error: type[Exception],
) -> None:
    """Same losses, bit-equal encoder."""
    with monkeypatch.context() as patch:
        interrupt(patch)
        with pytest.raises(error):
            pretrain(CONFIG, options(name))
    pretrain(CONFIG, options(name, resume=True))
    resumed = RunFolder.named(name)
    for one, other in zip(records(straight), records(resumed), strict=True):
        assert one["loss"] == other["loss"]
        assert all(one[key] == other[key] for key in CORRESPONDENCE)
    weights = encoder_of(resumed)
    assert all(torch.equal(value, weights[key]) for key, value in encoder_of(straight).items())


def test_accumulated_parts_see_the_same_pairs(straight: RunFolder) -> None:
    """With batch norm the parts are normalised alone, so losses are close, not equal."""
    pretrain(replace(CONFIG, accumulate=2, epochs=1, norm="instance"), options("accumulated"))
    pretrain(replace(CONFIG, epochs=1, norm="instance"), options("at_once"))
    one, other = (records(RunFolder.named(name))[0]["loss"] for name in ("accumulated", "at_once"))
    assert one == pytest.approx(other, rel=0.5)


def test_a_finished_run_can_be_continued_to_no_effect(straight: RunFolder) -> None:
    before = encoder_of(straight)
    pretrain(CONFIG, options("straight", resume=True))
    assert all(torch.equal(value, before[key]) for key, value in encoder_of(straight).items())


def test_a_state_of_the_first_version_is_continued(straight: RunFolder) -> None:
    older = RunFolder.named("older")
    older.start(CONFIG)
    state = torch.load(straight.latest, weights_only=True)
    assert state.pop("training_state") == 2
    assert state.pop("so_far")["steps"] == 0
    torch.save({**state, "training_state": 1}, older.latest)
    pretrain(CONFIG, options("older", resume=True))
    weights = encoder_of(older)
    assert all(torch.equal(value, weights[key]) for key, value in encoder_of(straight).items())


def of_010(record: dict[str, Any]) -> dict[str, Any]:
    """A record as version 0.1.0 wrote it."""
    kept = {key: value for key, value in record.items() if key not in CORRESPONDENCE}
    return {**kept, "correspondence": 0.25, "chance": 0.125, "miss_distance": 9.0}


def test_records_of_the_first_version_are_continued(straight: RunFolder) -> None:
    """Its correspondence was one share of all pairs, which stands in the curves beside what later epochs measured."""
    older = RunFolder.named("older_records")
    older.start(CONFIG)
    state = torch.load(straight.latest, weights_only=True)
    history = [of_010(state["history"][0])]
    baseline = {"correspondence": 0.2, "miss_distance": 8.0}
    torch.save({**state, "epoch": 1, "history": history, "baseline": baseline}, older.latest)
    pretrain(CONFIG, options("older_records", resume=True))
    *before, last = records(older)
    assert before == history
    assert last.keys() >= CORRESPONDENCE
    assert "correspondence" not in last
    assert load_checkpoint(older.final).pgl["metrics"]["flipped_right"] == last["flipped_right"]


def test_two_runs_do_not_share_a_folder(straight: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretraining.run_folder._UNTIL_LOADERS_END", 0.1)
    before = straight.latest.stat().st_mtime_ns
    with straight.locked(), pytest.raises(RunError, match=r"straight: a run is at work there; .* -o$"):
        pretrain(CONFIG, options("straight", resume=True))
    assert straight.latest.stat().st_mtime_ns == before


def test_other_scans_are_not_passed_over(straight: RunFolder, folders: Path) -> None:
    """A pool that has lost a scan would silently change what every later draw means."""
    copied = RunFolder.named("other_scans")
    copied.start(CONFIG)
    shutil.copy(straight.latest, copied.latest)
    scan = next((folders / "nnUNet_raw" / "Dataset501_Small" / "imagesTr").glob("*_003_0000.nii.gz"))
    hidden = scan.rename(folders / scan.name)
    try:
        with pytest.raises(CheckpointError, match="started on other scans"):
            pretrain(CONFIG, options("other_scans", resume=True))
    finally:
        hidden.rename(scan)


def test_a_truncated_state_is_named(straight: RunFolder, folders: Path) -> None:
    broken = RunFolder.named("broken")
    broken.start(CONFIG)
    content = straight.latest.read_bytes()
    broken.latest.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"checkpoint_latest\.pth: truncated"):
        pretrain(CONFIG, options("broken", resume=True))


@pytest.mark.parametrize(
    ("method", "measured", "cited"),
    [
        ("byol", {"loss", "feature_std"}, "Grill"),
        ("models_genesis", {"loss", "deformed"}, "Zhou"),
        ("pgl_mae", {"loss", "feature_std", "within_views", "interpolated", "restoration"}, "He, K."),
    ],
)
def test_other_methods_run_in_the_same_loop(folders: Path, method: Any, measured: set[str], cited: str) -> None:
    """An encoder for the trainer, and a decoder where one was trained."""
    pretrain(replace(CONFIG, method=method, pairs_per_epoch=2, epochs=1), options(method))
    folder = RunFolder.named(method)
    (record,) = records(folder)
    common = {"epoch", "learning_rate", "seconds", "scans_per_second", "views_per_second", "waiting", *CORRESPONDENCE}
    assert common <= record.keys()
    assert record.keys() - common - {"tau"} == measured
    assert ("tau" in record) == (method != "models_genesis")
    checkpoint = load_checkpoint(folder.final)
    assert checkpoint.pgl["method"] == method
    assert any(cited in text for entry in checkpoint.citations for text in entry["apa_citations"])
    load_encoder(ResNet50Encoder(), checkpoint.encoder_weights, str(folder.final))
    assert bool(checkpoint.decoder_weights) == (method != "byol")


def test_infinite_loss_stops_the_run(folders: Path) -> None:
    with pytest.raises(TrainingError, match="not finite in epoch"):
        pretrain(replace(CONFIG, learning_rate=1e30, optimizer="sgd", warmup_epochs=0), options("diverged"))
    assert not RunFolder.named("diverged").final.exists()
