"""What the release 0.1.0 has written is read by the code of today; see golden/make.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunetv2_pgl.checkpoint import load_checkpoint
from nnunetv2_pgl.files import sha256_of
from nnunetv2_pgl.networks import PlannedEncoder, PlannedNetwork
from pretraining.data import Volume
from pretraining.data.store import read_record
from pretraining.settings.table import RunOptions
from pretraining.training.pretrain import pretrain
from tests.golden.make import DATASET, FOLDERS, GOLDEN, RUN, config, machine

SCANS = [f"scan_{number}" for number in range(4)]


def features(path: Path) -> torch.Tensor:
    """The deepest map of a fixed view."""
    checkpoint = load_checkpoint(path)
    encoder = PlannedEncoder(PlannedNetwork.from_dict(checkpoint.architecture["network"], "the checkpoint"))
    encoder.load_state_dict(checkpoint.encoder_weights, strict=True)
    with torch.no_grad():
        return encoder(torch.linspace(-2, 2, 512).sin().view(1, 1, 8, 8, 8))[-1]


@pytest.mark.parametrize("scan", SCANS)
def test_a_volume_of_the_store(scan: str) -> None:
    (folder,) = (GOLDEN / "nnUNet_preprocessed" / DATASET).iterdir()
    volume = Volume.load(folder / f"{scan}.json")
    assert (volume.name, volume.source, volume.spacing, volume.is_ct) == (scan, DATASET, (2, 1, 1), (True,))
    raw = sitk.ReadImage(str(GOLDEN / "nnUNet_raw" / DATASET / "imagesTr" / f"{scan}_0000.nrrd"))
    expected = np.clip(sitk.GetArrayFromImage(raw), -1024, 325)
    assert np.array_equal(volume.read(0, (0, 0, 0), volume.shape[1:]), expected)
    assert volume.mean[0] == pytest.approx(expected.mean())
    assert volume.std[0] == pytest.approx(expected.std())
    assert read_record(volume.path)["sha256"] == sha256_of(volume.path)


def test_an_encoder() -> None:
    path = GOLDEN / "nnUNet_results" / "PGL" / RUN / "checkpoint_final.pth"
    checkpoint = load_checkpoint(path)
    assert checkpoint.pgl["num_scans"] == 3
    assert checkpoint.pgl["spacing"] == [2, 1, 1]
    network = PlannedNetwork.from_dict(checkpoint.architecture["network"], "the checkpoint")
    assert network.to_dict() == config().network
    assert features(path).std() > 0.1


def test_a_run_goes_on_as_it_did_then(tmp_path: Path) -> None:
    """Its second epoch gives the losses and the encoder of then, but for the rounding of another machine.

    Features are compared, not weights: biases before a norm have no gradient but rounding, which AdamW makes large.
    """
    for folder in FOLDERS:
        shutil.copytree(GOLDEN / folder, tmp_path / folder)
    run = tmp_path / "nnUNet_results" / "PGL" / RUN
    then = features(run / "checkpoint_final.pth")
    (run / "checkpoint_final.pth").unlink()
    with machine(tmp_path):
        pretrain(config(), RunOptions(RUN, True, "cpu", 1, 1))
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert losses == pytest.approx(json.loads((GOLDEN / "expected.json").read_text())["losses"], rel=1e-3)
    assert (features(run / "checkpoint_final.pth") - then).norm() < 0.02 * then.norm()
