"""Trainings whose plans say cases, seed and start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnunetv2_pgl.checkpoint import EncoderCheckpoint, save_checkpoint
from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.trainers import nnUNetTrainerPGL
from pretraining.comparison.derived import extra_epochs
from pretraining.settings.config import PretrainConfig
from pretraining.training.footprint import flop_of_pair
from pretraining.views import ViewSettings

Workplace = Any  # the fixture of conftest.py
SaveEncoder = Any
SHORT = {"num_epochs": 1, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1}


def planned_run(workplace: Workplace, initialisation: str, path: Path | None = None, seed: int = 0) -> dict[str, Any]:
    """Plans as `pgl_compare` writes them: fold 0 has other cases than nnU-Net would give it."""
    cases = sorted(file.name.removesuffix(".pkl") for file in preprocessed(workplace).glob("*.pkl"))
    folds = {"0": {"training_cases": [cases[4], cases[1]], "validation_cases": [cases[2]]}}
    plans = {**workplace.plans(), "plans_name": f"planned_{initialisation}_{seed}"}
    plans["pgl_run"] = {"initialisation": initialisation, "seed": seed, "folds": folds}
    if path is not None:
        plans["pretrain_info"] = {"checkpoint_path": str(path)}
    else:
        plans["pgl_network"] = {"architecture": "resnet50", "norm": "instance", "centred": True}
    return plans


def preprocessed(workplace: Workplace) -> Path:
    plans = workplace.plans()
    folder = workplace.root / "nnUNet_preprocessed" / plans["dataset_name"]
    return folder / plans["configurations"]["3d_fullres"]["data_identifier"]


def trained_on(plans: dict[str, Any], workplace: Workplace, fold: int | str = 0) -> nnUNetTrainerPGL:
    trainer: nnUNetTrainerPGL = workplace.make(nnUNetTrainerPGL, fold, plans, **SHORT)
    return trainer


def test_a_planned_run_has_its_own_cases(workplace: Workplace) -> None:
    plans = planned_run(workplace, "random")
    cases = plans["pgl_run"]["folds"]["0"]
    trainer = trained_on(plans, workplace)
    assert trainer.do_split() == (cases["training_cases"], cases["validation_cases"])
    training, validation = trainer.get_tr_and_val_datasets()
    assert set(training.identifiers) == set(cases["training_cases"])  # nnU-Net sorts them
    assert list(validation.identifiers) == cases["validation_cases"]
    splits_file = workplace.root / "nnUNet_preprocessed" / plans["dataset_name"] / "splits_final.json"
    before = splits_file.read_bytes() if splits_file.exists() else None
    trainer.do_split()
    assert (splits_file.read_bytes() if splits_file.exists() else None) == before
    cases["training_cases"].append("stranger")
    with pytest.raises(SystemExit, match="case stranger of pgl_run is not preprocessed in"):
        trained_on(plans, workplace).do_split()


def test_starts_of_one_seed_differ_in_the_encoder_alone(workplace: Workplace, save_encoder: SaveEncoder) -> None:
    """Decoder, batches and their augmentation are the same; another seed changes them."""
    path = workplace.root / "given.pth"
    encoder = save_encoder(path, norm="instance")
    batches, states = {}, {}
    for name, plans in {
        "random": planned_run(workplace, "random"),
        "mine": planned_run(workplace, "mine", path),
        "other": planned_run(workplace, "random", seed=1),
    }.items():
        torch.manual_seed(len(states))  # what was drawn before does not matter
        np.random.seed(len(states))
        trainer = trained_on(plans, workplace)
        trainer.initialize()
        states[name] = {key: value.clone() for key, value in trainer.network.state_dict().items()}
        batches[name] = next(trainer.get_dataloaders()[0])
        log = Path(trainer.log_file).read_text()
        start = "the encoder of mine" if name == "mine" else "random weights"
        assert f"start from {start}, 2 training and 1 validation cases, seed {plans['pgl_run']['seed']}" in log
    for key, value in states["random"].items():
        if key.startswith("encoder."):
            expected = encoder.state_dict()[key.removeprefix("encoder.")]
            assert torch.equal(states["mine"][key], expected)
        else:
            assert torch.equal(states["mine"][key], value), key
    assert not torch.equal(states["random"]["encoder.conv.weight"], states["mine"]["encoder.conv.weight"])
    assert torch.equal(batches["random"]["data"], batches["mine"]["data"])
    assert not torch.equal(states["random"]["head.weight"], states["other"]["head.weight"])
    assert not torch.equal(batches["random"]["data"], batches["other"]["data"])


def test_a_planned_random_run_ignores_checkpoints_and_goes_on(
    workplace: Workplace, save_encoder: SaveEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network is that of the plans, in the model folder too; what follows a restart is not what came first."""
    monkeypatch.setenv("PGL_CHECKPOINT", str(workplace.root / "none.pth"))
    plans = planned_run(workplace, "random")
    trainer = trained_on(plans, workplace)
    trainer.run_training()
    stored = json.loads(Path(trainer.output_folder_base, "plans.json").read_text())
    assert stored["pgl_network"]["norm"] == "instance"
    again = trained_on(plans, workplace)
    again.load_checkpoint(str(Path(again.output_folder, "checkpoint_final.pth")))
    assert all(torch.equal(v, trainer.network.state_dict()[k]) for k, v in again.network.state_dict().items())
    drawn = np.random.rand()
    fresh = trained_on(plans, workplace)
    fresh._planned_run.seed_all(0, 0)
    assert np.random.rand() != drawn
    fresh._planned_run.seed_all(1, 0)  # after one epoch
    assert np.random.rand() == drawn


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plans: plans["pgl_run"].pop("seed"), "is incomplete"),
        (lambda plans: plans["pgl_run"]["folds"]["0"]["validation_cases"].clear(), "no validation cases for fold 0"),
        (lambda plans: plans["pgl_run"].update(initialisation="pgl"), "starts from pgl, but .* names no checkpoint"),
        (
            lambda plans: plans["pgl_run"]["folds"].update({"1": plans["pgl_run"]["folds"].pop("0")}),
            "no fold 0: it has 1",
        ),
    ],
)
def test_a_planned_run_that_cannot_be_trained(workplace: Workplace, change: Any, message: str) -> None:
    plans = planned_run(workplace, "random")
    change(plans)
    with pytest.raises(SystemExit, match=message):
        trained_on(plans, workplace)


def test_a_training_of_more_epochs_has_its_whole_schedule_longer(workplace: Workplace) -> None:
    plans = planned_run(workplace, "random")
    plans["pgl_run"]["extra_epochs"] = 3
    trainer = trained_on(plans, workplace)
    trainer.initialize()
    assert trainer.num_epochs == SHORT["num_epochs"] + 3
    assert trainer.lr_scheduler.max_steps == trainer.num_epochs
    assert "start from random weights, 3 epochs longer" in Path(trainer.log_file).read_text()


def test_the_epochs_longer_are_those_of_a_pretrainings_computation(workplace: Workplace, tmp_path: Path) -> None:
    views = ViewSettings(size=(16, 16, 16))
    config = PretrainConfig(datasets=("a",), views=views, epochs=3, batch_size=4, hidden_channels=8)
    pgl = {"architecture": {"name": "resnet50"}, "config": {**config.to_dict(), "exclude": 2}, "num_scans": 10}
    path, record = tmp_path / "encoder.pth", tmp_path / "record.json"
    save_checkpoint(EncoderCheckpoint({"weight": torch.zeros(1)}, pgl, {}), path)
    trainer = trained_on(planned_run(workplace, "random"), workplace)
    epochs = extra_epochs(path, trainer, record)
    found = json.loads(record.read_text())
    # Ten scans are two steps of four pairs an epoch.
    assert found["pretraining_flop"] == 3 * 2 * 4 * flop_of_pair(config)
    assert (epochs - 1) * found["training_epoch_flop"] < found["pretraining_flop"]
    assert found["pretraining_flop"] <= epochs * found["training_epoch_flop"]
    trainer.num_iterations_per_epoch *= 2
    extra_epochs(path, trainer, record)
    assert json.loads(record.read_text())["training_epoch_flop"] == 2 * found["training_epoch_flop"]
    save_checkpoint(EncoderCheckpoint({"weight": torch.zeros(1)}, {**pgl, "config": None}, {}), path)
    with pytest.raises(PGLError, match="does not record how it was pre-trained"):
        extra_epochs(path, trainer, record)
