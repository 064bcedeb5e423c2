"""benchmarks.anatomy: the command, from a run's checkpoint to the JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.ndimage import gaussian_filter

from benchmarks import anatomy
from nnunetv2_pgl.checkpoint import EncoderCheckpoint, load_checkpoint, load_encoder_network, save_checkpoint
from nnunetv2_pgl.networks import PlannedEncoder, ResNet50Encoder
from pretraining.settings.config import PretrainConfig
from pretraining.settings.table import RunOptions
from pretraining.training import loop
from pretraining.training.pool import prepare_volumes
from pretraining.training.pretrain import pretrain
from pretraining.views import ViewSettings
from tests.formats.test_other_frameworks import nnssl_content
from tests.planned_networks import small_architecture, small_network


@pytest.mark.parametrize(
    ("kind", "padding"),
    [(kind, padding) for kind in ("plain", "resenc") for padding in ("zeros", "replicate", None)]
    + [("resnet50", "replicate")],
)
def test_the_encoder_of_a_checkpoint(kind: str, padding: Any, tmp_path: Path) -> None:
    """The same maps as the network whose weights were saved; version 0.1.0 names no padding."""
    network: Any
    if kind == "resnet50":
        network = ResNet50Encoder(1, (4, 4, 4), "instance", padding=padding or "zeros")
        architecture = {"name": kind, "norm": "instance", "centred": True, "strides": [4, 4, 4], "in_channels": 1}
    else:
        planned = small_network(kind)
        network, architecture = PlannedEncoder(planned, 1, padding or "zeros"), small_architecture(planned)
    described = architecture if padding is None else {**architecture, "padding": padding}
    pgl = {"method": "pgl", "architecture": described}
    save_checkpoint(EncoderCheckpoint(dict(network.state_dict()), pgl, {}), tmp_path / "a.pth")
    loaded, checkpoint = load_encoder_network(tmp_path / "a.pth")
    assert not loaded.training
    assert checkpoint.architecture["name"] == architecture["name"]
    views = torch.rand(1, 1, 8, 8, 8)
    with torch.no_grad():
        for one, other in zip(loaded(views), network.eval()(views), strict=True):
            assert torch.equal(one, other)


RUN = PretrainConfig(
    datasets=("Dataset031_Organs",),
    exclude=("organs_3", "organs_4", "organs_5"),
    views=ViewSettings(size=(8, 8, 8)),
    architecture="plain",
    network=small_network(features=(4, 8)).to_dict(),
    padding="replicate",
    epochs=1,
    batch_size=2,
    pairs_per_epoch=2,
    optimizer="adamw",
    warmup_epochs=0,
    hidden_channels=8,
    out_channels=8,
    validation_scans=0,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run on three of six scans with labels, whose voxels are not those of the others in the median."""
    root = tmp_path_factory.mktemp("nnunet")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            patch.setenv(name, str(root / name))
        patch.setenv("nnUNet_n_proc_DA", "0")
        patch.setattr(loop, "validation_batches", lambda *args: [])
        patch.setattr(loop.TrainingLoop, "measure_baseline", lambda self: None)
        patch.setattr(loop.TrainingLoop, "_correspondence", lambda self: {})
        folder = root / "nnUNet_raw" / "Dataset031_Organs"
        for part in ("imagesTr", "labelsTr"):
            (folder / part).mkdir(parents=True)
        described = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nrrd"}
        (folder / "dataset.json").write_text(json.dumps({**described, "numTraining": 6}))
        for scan in range(6):
            noise = gaussian_filter(np.random.default_rng(scan).normal(size=(12, 14, 16)), 2)
            label = np.digitize(noise, np.quantile(noise, [0.5, 0.8])).astype(np.uint8)
            spacing = 1.0 if scan < 3 else 1.1
            for values, file in (
                (10 * noise + label, f"imagesTr/organs_{scan}_0000"),
                (label, f"labelsTr/organs_{scan}"),
            ):
                image = sitk.GetImageFromArray(values)
                image.SetSpacing((spacing,) * 3)
                sitk.WriteImage(image, str(folder / f"{file}.nrrd"))
        (root / "held_out.txt").write_text("organs_3\norgans_4\norgans_5\n")
        pretrain(RUN, RunOptions("run", False, "cpu", 1, 1))
        yield root


@pytest.fixture
def command(folders: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def call(*arguments: object) -> None:
        given = (*arguments, "-d", "31", "-np", "1") if "-d" not in arguments else arguments
        monkeypatch.setattr(sys, "argv", ["anatomy", *map(str, given)])
        anatomy.main()

    return call


def final(folders: Path) -> Path:
    return folders / "nnUNet_results" / "PGL" / "run" / "checkpoint_final.pth"


SHARES = ("flipped_right", "unflipped_right", "decoy", "position_code", "ceiling", "noise_match")


def test_from_the_checkpoint_to_the_json(
    folders: Path, command: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[Any] = []

    def spied(*arguments: Any) -> Any:
        found = prepare_volumes(*arguments)
        prepared.extend(found[0])
        return found

    monkeypatch.setattr(anatomy, "prepare_volumes", spied)
    file = folders / "anatomy.json"
    only = ("--only", folders / "held_out.txt")
    command(final(folders), *only, "--labels", "--pairs", "12", "--json", file)
    figures = json.loads(file.read_text())
    for row in (figures, *figures["beside"].values()):
        assert all(isinstance(row[name], float) and 0 <= row[name] <= 1 for name in SHARES)
        for flips in ("flips", "no_flips"):
            for kind in ("knn5", "knn20", "probe"):
                assert row[flips][kind].keys() == {"mean", "a", "b"}
                assert all(isinstance(share, float) and share < 1 for share in row[flips][kind].values())
        assert row["axes"].keys() == {"z", "y", "x"}
    assert figures["beside"]["code of the place in the view"]["noise_match"] == 1
    assert figures["flipped_right"] != figures["beside"]["random weights"]["flipped_right"]
    text = capsys.readouterr().out
    assert "3 scans, 12 pairs of views" in text
    assert f"{figures['flipped_right']:.3f}" in text
    assert [volume.name for volume in prepared] == ["organs_3", "organs_4", "organs_5"]
    assert {volume.path.parent.name for volume in prepared} == {"PGL_spacing_1.00x1.00x1.00"}  # of the pre-training


def test_flips_that_the_command_asks_for(folders: Path, command: Callable[..., None]) -> None:
    file = folders / "no_flips.json"
    command(final(folders), "--flip_probability", "0", "--pairs", "4", "--json", file)
    figures = json.loads(file.read_text())
    assert figures["flipped_right"] is figures["ceiling"] is figures["axes"]["z"] is None
    assert figures["unflipped_right"] >= 0
    command(final(folders), "--flip_probability", "0", "0", "0.5", "--pairs", "4", "--json", file)
    axes = json.loads(file.read_text())["axes"]
    assert axes["z"] is axes["y"] is None
    assert axes["x"] is not None


def refusal(call: Callable[[], None]) -> str:
    with pytest.raises(SystemExit) as stop:
        call()
    message = stop.value.code
    assert isinstance(message, str)  # which ends the process with 1
    assert message.startswith("benchmarks.anatomy: ")
    assert "\n" not in message
    return message


def test_wrong_input_is_one_line(folders: Path, command: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("organs_3\nsomebody\n")
    (tmp_path / "one.txt").write_text("organs_3\n")
    path, held_out = final(folders), ("--only", folders / "held_out.txt")
    for given, told in (
        ((folders / "missing.pth",), "missing.pth: no such checkpoint"),
        ((path, "--only", tmp_path / "names.txt"), "-only names somebody, which is not a scan of -d"),
        ((path, "--only", tmp_path / "nowhere.txt"), "nowhere.txt: cannot be read"),
        ((path, "-d", "999"), "999"),
        ((path, "--flip_probability", "0.5", "0.5"), "give one or three"),
        ((path, "--flip_probability", "2"), "give one or three"),
        ((path, "--json", tmp_path / "nowhere" / "a.json"), "there is no such folder"),
        ((path, "--labels", "--only", tmp_path / "one.txt"), "needs at least 3 scans"),
        ((path, *held_out, "--labels", "--pairs", "4"), "needs at least 3 scans"),
    ):
        assert told in refusal(lambda given=given: command(*given))  # type: ignore[misc]
    labels = folders / "nnUNet_raw" / "Dataset031_Organs" / "labelsTr"
    hidden = labels.rename(tmp_path / "labels")
    try:
        message = refusal(lambda: command(path, *held_out, "--labels"))
    finally:
        hidden.rename(labels)
    assert f"--labels: {labels / 'organs_3.nrrd'} is missing" in message


def changed(folders: Path, name: str, **pgl: Any) -> Path:
    checkpoint = load_checkpoint(final(folders))
    save_checkpoint(replace(checkpoint, pgl={**checkpoint.pgl, **pgl}), folders / name)
    return folders / name


def test_checkpoints_that_do_not_tell_their_views(folders: Path, command: Callable[..., None]) -> None:
    made = load_checkpoint(final(folders)).pgl["config"]
    without = changed(folders, "without.pth", config=None)
    assert "not of pgl_pretrain" in refusal(lambda: command(without))
    nnssl = folders / "nnssl.pth"
    torch.save(nnssl_content(small_network("resenc")), nnssl)
    assert "nnssl.pth: not of pgl_pretrain" in refusal(lambda: command(nnssl))
    for config in ({**made, "views": 5}, {**made, "epochs": "many"}, {**made, "unheard": 1}):
        damaged = changed(folders, "damaged.pth", config=config)
        assert "damaged.pth: not the settings of a pre-training" in refusal(lambda file=damaged: command(file))  # type: ignore[misc]
    joint = {**made, "views": {**made["views"], "channels": "joint"}, "in_channels": 2}
    two = changed(folders, "two.pth", config=joint)
    assert "the encoder takes 2 channels, the scans have 1" in refusal(lambda: command(two))
    other = load_checkpoint(final(folders)).pgl["architecture"] | {"network": small_network(features=(6, 8)).to_dict()}
    assert "do not fit its architecture" in refusal(lambda: command(changed(folders, "other.pth", architecture=other)))


def test_padding_that_the_command_asks_for(folders: Path, command: Callable[..., None]) -> None:
    """As if the encoder had been pre-trained with it; such as zeros, which nnU-Net's segmenter has."""
    file, architecture = folders / "padding.json", load_checkpoint(final(folders)).pgl["architecture"]
    found = []
    for path, *given in (
        (final(folders),),
        (final(folders), "--padding", "zeros"),
        (changed(folders, "zeros.pth", architecture={**architecture, "padding": "zeros"}),),
    ):
        command(path, *given, "--pairs", "4", "--json", file)
        found.append(json.loads(file.read_text()))
    assert architecture["padding"] == "replicate"
    assert found[0] != found[1] == found[2]


@pytest.mark.slow
def test_as_a_process() -> None:
    """The exit code that a script sees."""
    line = [sys.executable, "-m", "benchmarks.anatomy", "missing.pth", "-d", "31"]
    done = subprocess.run(line, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("benchmarks.anatomy: missing.pth: no such checkpoint")
