"""A labelled phantom data set, planned and preprocessed by nnU-Net's own command, once for all trainer tests."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnunetv2_pgl.checkpoint import EncoderCheckpoint, save_checkpoint
from nnunetv2_pgl.extension_folder import extension_folder
from nnunetv2_pgl.networks import PlannedEncoder, PlannedNetwork, ResNet50Encoder
from nnunetv2_pgl.trainers import nnUNetTrainerPGL, nnUNetTrainerPGL_paper
from pretraining.demo.datasets import write_labelled_dataset
from tests.planned_networks import small_architecture

DATASET = "Dataset502_Torso"


@dataclass(frozen=True)
class Workplace:
    """nnU-Net's three folders, and the variables a shell would have."""

    root: Path

    @property
    def environment(self) -> dict[str, str]:
        names = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
        own = {name: str(self.root / name) for name in names}
        quiet = {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "nnUNet_compile": "f"}
        return {**own, **quiet, "nnUNet_extTrainer": str(extension_folder())}

    @property
    def results(self) -> Path:
        return self.root / "nnUNet_results"

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs an installed command as a user would."""
        executable = Path(sys.executable).parent / command[0]
        environment = {**os.environ, **self.environment, **variables}
        environment = {name: value for name, value in environment.items() if value}
        return subprocess.run(
            [str(executable), *command[1:]],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
            check=False,
        )

    def make(
        self,
        trainer: type[nnUNetTrainerPGL],
        fold: int | str = 0,
        plans: dict[str, Any] | None = None,
        **attributes: Any,
    ) -> nnUNetTrainerPGL:
        """The trainer of a fold with these attributes, on a copy of the plans or on the data set's own."""
        made = trainer(
            copy.deepcopy(plans or self.plans()), "3d_fullres", fold, self.dataset_json(), torch.device("cpu")
        )
        for name, value in attributes.items():
            setattr(made, name, value)
        return made

    def plans(self) -> dict[str, Any]:
        plans = json.loads((self.root / "nnUNet_preprocessed" / DATASET / "nnUNetPlans.json").read_text())
        return {**plans, "continue_training": False}

    def with_cascade(self, plans: dict[str, Any]) -> dict[str, Any]:
        """The plans with the configurations of a cascade, as nnU-Net's planner writes them."""
        stages = {
            "3d_lowres": {"inherits_from": "3d_fullres", "next_stage": "3d_cascade_fullres"},
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        }
        return {**plans, "configurations": {**plans["configurations"], **stages}}

    def require_cascade(self, trainer: nnUNetTrainerPGL, before: Any) -> None:
        """That a trainer's encoder sees its one image as the encoder of one channel does, and can learn to see more."""
        previous = len(trainer.label_manager.foreground_labels)
        assert previous == 7
        # In float32 the sums over one channel and over eight round differently, which deep maps make large.
        before, after = (copy.deepcopy(encoder).double().eval() for encoder in (before, trainer.network.encoder))
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(1, 1, 16, 32, 32, generator=generator, dtype=torch.float64)
        found = torch.nn.functional.one_hot(torch.randint(previous, (1, 16, 32, 32), generator=generator))
        one_hot = found.movedim(-1, 1).double()
        for segmentation in (torch.zeros_like(one_hot), one_hot):  # the former is what finds nothing
            features = after(torch.cat((image, segmentation), dim=1))
            for one, other in zip(before(image), features, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
        features[0].square().sum().backward()
        gradient = next(p.grad for p in after.parameters() if p.ndim == 5)
        assert all(gradient[:, channel].any() for channel in range(1 + previous))

        log = Path(trainer.log_file).read_text()
        assert "input channels of the previous stage's segmentation (7) start at zero" in log
        how = "unchanged for 1 image channel, zeros for 7 channels of the previous stage"
        assert how in log
        record = json.loads(Path(trainer.output_folder, "pgl_checkpoint.json").read_text())
        assert record["previous_stage_channels"] == 7
        assert [change.endswith(how) for change in record["changes"]] == [True]

    def dataset_json(self) -> dict[str, Any]:
        return json.loads((self.root / "nnUNet_preprocessed" / DATASET / "dataset.json").read_text())


@pytest.fixture(scope="session")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    workplace = Workplace(tmp_path_factory.mktemp("trainers"))
    raw = workplace.root / "nnUNet_raw"
    raw.mkdir()
    # All that nnU-Net's five folds need, and no more: small scans of the whole body.
    write_labelled_dataset(raw, 502, "Torso", 5, 1, 0, shape=(16, 24, 32), spacing=(18, 13, 12))
    result = workplace.run(
        "nnUNetv2_plan_and_preprocess", "-d", "502", "-c", "3d_fullres", "-np", "1", "-npfp", "1", nnUNet_n_proc_DA="1"
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return workplace


@pytest.fixture
def workplace(planned: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    """The planned data with a results folder of each test's own."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        (tmp_path / name).symlink_to(planned.root / name)
    (tmp_path / "nnUNet_results").mkdir()
    own = Workplace(tmp_path)
    for name, value in own.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PGL_CHECKPOINT", raising=False)
    return own


@pytest.fixture
def save_encoder() -> Callable[..., ResNet50Encoder]:
    """Writes a checkpoint of known weights and returns its encoder."""
    return _save_encoder


def _save_encoder(path: Path, norm: str = "batch", seed: int = 7) -> ResNet50Encoder:
    torch.manual_seed(seed)
    encoder = ResNet50Encoder(norm=norm)  # type: ignore[arg-type]
    pgl = {
        "method": "pgl",
        "architecture": {
            "name": "resnet50",
            "norm": norm,
            "centred": True,
            "strides": [8, 16, 16],
            "in_channels": 1,
        },
        "epochs": 3,
        "num_scans": 2,
        "spacing": [3.0, 1.0, 1.0],
        "datasets": ["Dataset501_Small"],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(EncoderCheckpoint(dict(encoder.state_dict()), pgl, {}), path)
    return encoder


@pytest.fixture
def paper(workplace: Workplace, save_encoder: Any) -> Callable[..., nnUNetTrainerPGL_paper]:
    """Makes the paper's trainer, with an encoder to start from; all is drawn alike in each test."""
    torch.manual_seed(0)
    np.random.seed(0)
    save_encoder(workplace.results / "PGL" / "run" / "checkpoint_final.pth")
    made: Callable[..., nnUNetTrainerPGL_paper] = lambda **attributes: workplace.make(  # noqa: E731
        nnUNetTrainerPGL_paper, **attributes
    )
    return made


@pytest.fixture
def save_planned(workplace: Workplace) -> Callable[..., PlannedEncoder]:
    """Writes the checkpoint of an encoder of known weights as the only run, and returns the encoder."""

    def save(network: PlannedNetwork, in_channels: int = 1, **pgl: Any) -> PlannedEncoder:
        torch.manual_seed(7)
        encoder = PlannedEncoder(network, in_channels)
        described = {
            "method": "pgl",
            "architecture": small_architecture(network, in_channels),
            "epochs": 3,
            "num_scans": 2,
            "spacing": [1.5, 1.5, 1.5],
            "intensity": {"modality": "ct", "clip": [-1024.0, 325.0], "normalisation": "z-score per scan"},
            **pgl,
        }
        path = workplace.results / "PGL" / "run" / "checkpoint_final.pth"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(EncoderCheckpoint(dict(encoder.state_dict()), described, {}), path)
        return encoder

    return save
