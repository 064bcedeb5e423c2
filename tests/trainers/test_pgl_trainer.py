"""The trainer on real plans and data of nnU-Net."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_pgl.checkpoint import load_checkpoint, save_checkpoint
from nnunetv2_pgl.networks import PGLSegmenter
from nnunetv2_pgl.trainers import (
    nnUNetTrainerPGL,
    nnUNetTrainerPGL_5epochs,
    nnUNetTrainerPGL_paper,
    nnUNetTrainerPGLScratch,
    nnUNetTrainerPGLScratch_1epoch,
)
from nnunetv2_pgl.trainers.lengths import with_length
from nnunetv2_pgl.trainers.pgl import network_strides
from nnunetv2_pgl.trainers.schedule import WarmupPolyLRScheduler

CPU = torch.device("cpu")
Workplace = Any  # the fixture of conftest.py
SaveEncoder = Any


def make(trainer: type[nnUNetTrainerPGL], workplace: Workplace, fold: int = 0, **attributes: Any) -> nnUNetTrainerPGL:
    made = trainer(workplace.plans(), "3d_fullres", fold, workplace.dataset_json(), CPU)
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


SHORT = {"num_epochs": 1, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1}


def test_the_encoder_s_weights_arrive_and_one_step_changes_them(
    workplace: Workplace, save_encoder: SaveEncoder
) -> None:
    path = workplace.results / "PGL" / "run" / "checkpoint_final.pth"
    encoder = save_encoder(path)
    trainer = make(nnUNetTrainerPGL, workplace)
    trainer.initialize()
    for key, value in trainer.network.encoder.state_dict().items():
        assert torch.equal(value, encoder.state_dict()[key]), key

    trainer.on_train_start()
    trainer.on_train_epoch_start()
    before = {name: p.detach().clone() for name, p in trainer.network.named_parameters()}
    gradients_of_a_step(trainer)
    # nnU-Net's first step: SGD with Nesterov momentum 0.99, so 1.99 times the rate of the first warm-up epoch.
    rate = trainer.optimizer.param_groups[0]["lr"]
    assert rate == pytest.approx(1e-2 / 51)
    for name, p in trainer.network.named_parameters():
        assert p.grad is not None
        expected = before[name] - rate * 1.99 * (p.grad + 3e-5 * before[name])
        torch.testing.assert_close(p.detach(), expected, rtol=1e-4, atol=1e-7)

    record = json.loads(Path(trainer.output_folder, "pgl_checkpoint.json").read_text())
    assert (record["path"], record["method"], record["epochs"]) == (str(path), "pgl", 3)
    assert len(record["sha256"]) == 64
    log = Path(trainer.log_file).read_text()
    assert str(path) in log
    assert "318 of 318 encoder tensors loaded" in log


def test_the_decoder_arrives_on_request(
    workplace: Workplace, save_encoder: SaveEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = workplace.results / "PGL" / "run" / "checkpoint_final.pth"
    save_encoder(path)
    strides = make(nnUNetTrainerPGLScratch, workplace)
    strides.initialize()
    trained = PGLSegmenter(1, 1, strides.network.encoder.strides)
    checkpoint = load_checkpoint(path)
    save_checkpoint(replace(checkpoint, decoder_weights=trained.decoder_weights()), path)
    monkeypatch.setenv("PGL_TRANSFER_DECODER", "1")
    trainer = make(nnUNetTrainerPGL, workplace)
    trainer.initialize()
    own = trainer.network.decoder_weights()
    assert all(torch.equal(value, own[key]) for key, value in trained.decoder_weights().items())
    assert f"and {len(own)} of the decoder" in Path(trainer.log_file).read_text()


def gradients_of_a_step(trainer: nnUNetTrainerPGL) -> None:
    result = trainer.train_step(next(trainer.dataloader_train))
    assert np.isfinite(result["loss"])


def test_the_fused_optimiser_is_nnunet_s(workplace: Workplace) -> None:
    """Three steps, the last of them after a restart from nnU-Net's unfused state; unfused where there is a scaler."""
    trainer = make(nnUNetTrainerPGLScratch, workplace)
    torch.manual_seed(0)
    trainer.network = torch.nn.Linear(40, 30)
    plain_network = copy.deepcopy(trainer.network)
    fused, _ = trainer.configure_optimizers()
    plain, _ = nnUNetTrainer.configure_optimizers(trainer)
    plain = type(plain)(plain_network.parameters(), **plain.defaults)
    plain.param_groups[0]["lr"] = fused.param_groups[0]["lr"]  # which the warm-up has set
    assert fused.defaults["fused"]
    assert not plain.defaults["fused"]
    for step in range(3):
        for own, other in zip(trainer.network.parameters(), plain_network.parameters(), strict=True):
            own.grad = torch.randn_like(own)
            other.grad = own.grad.clone()
        if step == 2:
            fused.load_state_dict(copy.deepcopy(plain.state_dict()))
        fused.step()
        plain.step()
        for own, other in zip(trainer.network.parameters(), plain_network.parameters(), strict=True):
            torch.testing.assert_close(own, other)
    trainer.device = torch.device("cuda")
    assert not trainer.configure_optimizers()[0].defaults["fused"]


def test_no_checkpoint_stops_in_one_line(workplace: Workplace) -> None:
    with pytest.raises(SystemExit) as stop:
        make(nnUNetTrainerPGL, workplace).initialize()
    assert "PGL_CHECKPOINT" in str(stop.value)
    assert "\n" not in str(stop.value)


def test_an_encoder_of_another_kind_stops_in_one_line(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    path = workplace.root / "other.pth"
    path.write_bytes(b"not a checkpoint")
    monkeypatch.setenv("PGL_CHECKPOINT", str(path))
    with pytest.raises(SystemExit, match=r"other\.pth: truncated, or not a PyTorch checkpoint"):
        make(nnUNetTrainerPGL, workplace).initialize()


def test_scratch_needs_none_and_is_random(workplace: Workplace, save_encoder: SaveEncoder) -> None:
    encoder = save_encoder(workplace.results / "PGL" / "run" / "checkpoint_final.pth")
    trainer = make(nnUNetTrainerPGLScratch, workplace)
    trainer.initialize()
    stem = trainer.network.encoder.conv.weight
    assert not torch.allclose(stem, encoder.conv.weight, atol=1e-3)
    bound = np.sqrt(6 / 343)  # Kaiming uniform for 7 x 7 x 7 x 1 inputs
    assert float(stem.detach().abs().max()) == pytest.approx(bound, rel=0.01)


def test_train_resume_and_validate_without_the_checkpoint(workplace: Workplace, save_encoder: SaveEncoder) -> None:
    """`--c` and `--val` restore nnU-Net's own checkpoint, instance norm and all; the encoder may be gone by then."""
    path = workplace.results / "PGL" / "run" / "checkpoint_final.pth"
    save_encoder(path, norm="instance")
    trainer = make(nnUNetTrainerPGL, workplace, **SHORT)
    trainer.run_training()
    weights = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    path.unlink()

    again = make(nnUNetTrainerPGL, workplace, **{**SHORT, "num_epochs": 2})
    again.load_checkpoint(str(Path(again.output_folder, "checkpoint_final.pth")))
    assert all(torch.equal(v, weights[k]) for k, v in again.network.state_dict().items())
    again.run_training()
    assert again.current_epoch == 2

    stored = PlansManager(json.loads(Path(again.output_folder_base, "plans.json").read_text()))
    configuration = stored.get_configuration("3d_fullres")
    for_prediction = nnUNetTrainerPGL.build_network_architecture(
        stored, configuration, 1, 8, enable_deep_supervision=False
    )
    for_prediction.load_state_dict(again.network.state_dict())


def test_folds_of_one_model_have_one_network(workplace: Workplace, save_encoder: SaveEncoder) -> None:
    path = workplace.results / "PGL" / "run" / "checkpoint_final.pth"
    save_encoder(path)
    make(nnUNetTrainerPGL, workplace, **SHORT).run_training()
    save_encoder(path, norm="instance")
    with pytest.raises(SystemExit, match="all folds of a model need the same"):
        make(nnUNetTrainerPGL, workplace, fold=1).initialize()


def test_2d_stops_with_a_clear_line(workplace: Workplace) -> None:
    plans = workplace.plans()
    plans["configurations"]["2d"] = {**plans["configurations"]["3d_fullres"], "patch_size": [24, 32]}
    with pytest.raises(SystemExit, match="the configuration 2d is 2D: use 3d_fullres"):
        nnUNetTrainerPGL(plans, "2d", 0, workplace.dataset_json(), CPU)


def test_strides_follow_plan_and_paper(workplace: Workplace) -> None:
    plans = workplace.plans()
    configuration = plans["configurations"]["3d_fullres"]
    for pooling, expected in (
        ([[1, 1, 1], [2, 2, 2], [2, 2, 2]], (4, 4, 4)),
        ([[1, 1, 1]] + [[2, 2, 2]] * 5, (8, 16, 16)),
        ([[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 1]], (4, 8, 4)),
    ):
        configuration["architecture"]["arch_kwargs"]["strides"] = pooling
        assert network_strides(PlansManager(plans).get_configuration("3d_fullres")) == expected


@pytest.mark.parametrize(
    ("labels", "heads"),
    [
        ({"background": 0, "a": 1, "b": 2, "ignore": 3}, 3),
        ({"background": 0, "both": [1, 2], "b": 2}, 2),
    ],
)
def test_ignore_label_and_regions_train(workplace: Workplace, labels: dict[str, Any], heads: int) -> None:
    dataset_json = {**workplace.dataset_json(), "labels": labels}
    if heads == 2:
        dataset_json["regions_class_order"] = [1, 2]
    trainer = nnUNetTrainerPGLScratch(workplace.plans(), "3d_fullres", 0, dataset_json, CPU)
    trainer.initialize()
    patch = trainer.configuration_manager.patch_size
    # As nnU-Net's transforms hand them over: label maps; or one channel per region.
    target = torch.randint(0, 4, (2, 1, *patch)) if heads == 3 else torch.randint(0, 2, (2, 2, *patch))
    batch = {"data": torch.randn(2, 1, *patch), "target": target}
    assert trainer.network.head.out_channels == heads
    assert np.isfinite(trainer.train_step(batch)["loss"])
    trainer.network.eval()
    with torch.no_grad():
        assert np.isfinite(trainer.validation_step(batch)["loss"])


def test_more_input_channels(workplace: Workplace, save_encoder: SaveEncoder) -> None:
    save_encoder(workplace.results / "PGL" / "run" / "checkpoint_final.pth")
    dataset_json = {**workplace.dataset_json(), "channel_names": {"0": "CT", "1": "PET"}}
    trainer = nnUNetTrainerPGL(workplace.plans(), "3d_fullres", 0, dataset_json, CPU)
    trainer.initialize()
    assert trainer.network.encoder.conv.in_channels == 2
    assert "adapted to the number of input channels: conv.weight" in Path(trainer.log_file).read_text()


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
    trainer = nnUNetTrainerPGL(copy.deepcopy(plans), "3d_fullres", fold, workplace.dataset_json(), CPU)
    for name, value in SHORT.items():
        setattr(trainer, name, value)
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


def test_a_length_with_a_batch_size_trains_with_it(workplace: Workplace) -> None:
    """nnU-Net reads the batch size from the plan when it sets up, after construction."""
    trainer = make(with_length(nnUNetTrainerPGLScratch, "small", batch_size=1, num_epochs=3), workplace)
    trainer.initialize()
    assert (trainer.batch_size, trainer.num_epochs) == (1, 3)


def test_lengths_follow_nnunet_s_names(workplace: Workplace) -> None:
    assert make(nnUNetTrainerPGL_5epochs, workplace).num_epochs == 5
    trainer = make(nnUNetTrainerPGLScratch_1epoch, workplace)
    assert trainer.num_epochs == 1
    assert type(trainer).__name__ == "nnUNetTrainerPGLScratch_1epoch"
    assert not trainer.starts_from_checkpoint


def test_warm_up_then_nnunet_s_decay() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], 1e-2)
    scheduler = WarmupPolyLRScheduler(optimizer, 1e-2, 100, 5)
    rates = []
    for epoch in range(100):
        scheduler.step(epoch)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[:6] == pytest.approx([1e-2 * k / 6 for k in range(1, 7)])
    assert rates[5 + 57] == pytest.approx(1e-2 * (1 - 57 / 95) ** 0.9)
    assert rates[-1] > 0


def test_paper_s_recipe(workplace: Workplace, save_encoder: SaveEncoder) -> None:
    save_encoder(workplace.results / "PGL" / "run" / "checkpoint_final.pth")
    trainer = make(nnUNetTrainerPGL_paper, workplace)
    trainer.initialize()
    assert (trainer.batch_size, trainer.num_epochs, trainer.initial_lr) == (8, 100, 1e-2)
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 100, 1, 1
    trainer.on_train_start()
    batch = next(trainer.dataloader_train)
    patch = trainer.configuration_manager.patch_size
    assert batch["data"].shape == (8, 1, *patch)
    assert batch["target"].shape == (8, 1, *patch)
    assert int(batch["target"].min()) >= 0


def test_paper_stops_when_the_dice_stops_rising(
    workplace: Workplace, save_encoder: SaveEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_encoder(workplace.results / "PGL" / "run" / "checkpoint_final.pth")
    trainer = make(
        nnUNetTrainerPGL_paper, workplace, num_iterations_per_epoch=0, num_val_iterations_per_epoch=0, patience=2
    )
    dice = iter([0.1, 0.5, 0.4, 0.3, 0.9])
    monkeypatch.setattr(trainer, "train_step", lambda batch: {"loss": 1.0})
    monkeypatch.setattr(
        trainer, "on_train_epoch_end", lambda o: trainer.logger.log("train_losses", 1.0, trainer.current_epoch)
    )

    def validated(outputs: object) -> None:
        value = next(dice)
        for key, entry in (
            ("mean_fg_dice", value),
            ("ema_fg_dice", value),
            ("dice_per_class_or_region", [value]),
            ("val_losses", 1.0),
        ):
            trainer.logger.log(key, entry, trainer.current_epoch)

    monkeypatch.setattr(trainer, "on_validation_epoch_end", validated)
    trainer.run_training()
    assert len(trainer.logger.get_value("ema_fg_dice", step=None)) >= 4
    assert Path(trainer.output_folder, "checkpoint_final.pth").is_file()
    assert "has not risen for 2 epochs" in Path(trainer.log_file).read_text()
