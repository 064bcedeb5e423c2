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
from nnunetv2_pgl.networks import PGLSegmenter, ResNet50Encoder
from nnunetv2_pgl.networks.planned import network_strides
from nnunetv2_pgl.trainers import (
    nnUNetTrainerPGL,
    nnUNetTrainerPGL_demo,
    nnUNetTrainerPGLScratch,
)
from tests.full_disk import room_for

CPU = torch.device("cpu")
Workplace = Any  # the fixture of conftest.py
SaveEncoder = Any


SHORT = {"num_epochs": 1, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1}


def test_the_encoder_s_weights_arrive_and_one_step_changes_them(
    workplace: Workplace, save_encoder: SaveEncoder
) -> None:
    path = workplace.results / "PGL" / "run" / "checkpoint_final.pth"
    encoder = save_encoder(path)
    trainer = workplace.make(nnUNetTrainerPGL)
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


def test_kernels_follow_the_axes_of_the_plan(workplace: Workplace, save_encoder: SaveEncoder) -> None:
    path = workplace.results / "PGL" / "run" / "checkpoint_final.pth"
    kernel = save_encoder(path).state_dict()["conv.weight"]
    plans = {**workplace.plans(), "transpose_forward": [1, 0, 2], "transpose_backward": [1, 0, 2]}
    trainer = workplace.make(nnUNetTrainerPGL, plans=plans)
    trainer.initialize()
    assert torch.equal(trainer.network.encoder.conv.weight, kernel.transpose(2, 3))
    log = Path(trainer.log_file).read_text()
    assert "in the order (y, z, x); kernels are turned" in log
    assert "pre-trained at 1 x 3 x 1 mm" in log, "in the plan's order, as the plan's own"

    checkpoint = load_checkpoint(path)
    followed = {"config": {"preprocessing": {"transpose_forward": [1, 0, 2]}}}
    save_checkpoint(replace(checkpoint, pgl={**checkpoint.pgl, **followed}), path)
    trainer = workplace.make(nnUNetTrainerPGL, fold=1, plans=plans)
    trainer.initialize()
    assert torch.equal(trainer.network.encoder.conv.weight, kernel)
    assert "kernels are turned" not in Path(trainer.log_file).read_text()


def test_the_decoder_arrives_on_request(
    workplace: Workplace, save_encoder: SaveEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = workplace.results / "PGL" / "run" / "checkpoint_final.pth"
    save_encoder(path)
    strides = workplace.make(nnUNetTrainerPGLScratch)
    strides.initialize()
    trained = PGLSegmenter(1, 1, strides.network.encoder.strides)
    checkpoint = load_checkpoint(path)
    save_checkpoint(replace(checkpoint, decoder_weights=trained.decoder_weights()), path)
    monkeypatch.setenv("PGL_TRANSFER_DECODER", "1")
    trainer = workplace.make(nnUNetTrainerPGL)
    trainer.initialize()
    own = trainer.network.decoder_weights()
    assert all(torch.equal(value, own[key]) for key, value in trained.decoder_weights().items())
    assert f"and {len(own)} of the decoder" in Path(trainer.log_file).read_text()


def gradients_of_a_step(trainer: nnUNetTrainerPGL) -> None:
    result = trainer.train_step(next(trainer.dataloader_train))
    assert np.isfinite(result["loss"])


def test_the_fused_optimiser_is_nnunet_s(workplace: Workplace) -> None:
    """Three steps, the last of them after a restart from nnU-Net's unfused state; unfused where there is a scaler."""
    trainer = workplace.make(nnUNetTrainerPGLScratch)
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
        workplace.make(nnUNetTrainerPGL).initialize()
    assert "PGL_CHECKPOINT" in str(stop.value)
    assert "\n" not in str(stop.value)


def test_an_encoder_of_another_kind_stops_in_one_line(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    path = workplace.root / "other.pth"
    path.write_bytes(b"not a checkpoint")
    monkeypatch.setenv("PGL_CHECKPOINT", str(path))
    with pytest.raises(SystemExit, match=r"other\.pth: truncated, or not a PyTorch checkpoint"):
        workplace.make(nnUNetTrainerPGL).initialize()


def test_scratch_needs_none_and_is_random(workplace: Workplace, save_encoder: SaveEncoder) -> None:
    encoder = save_encoder(workplace.results / "PGL" / "run" / "checkpoint_final.pth")
    trainer = workplace.make(nnUNetTrainerPGLScratch)
    trainer.initialize()
    stem = trainer.network.encoder.conv.weight
    assert not torch.allclose(stem, encoder.conv.weight, atol=1e-3)
    bound = np.sqrt(6 / 343)  # Kaiming uniform for 7 x 7 x 7 x 1 inputs
    assert float(stem.detach().abs().max()) == pytest.approx(bound, rel=0.01)


def test_train_resume_and_validate_without_the_checkpoint(workplace: Workplace, save_encoder: SaveEncoder) -> None:
    """`--c` and `--val` restore nnU-Net's own checkpoint, instance norm and all; the encoder may be gone by then."""
    path = workplace.results / "PGL" / "run" / "checkpoint_final.pth"
    save_encoder(path, norm="instance")
    trainer = workplace.make(nnUNetTrainerPGL, **SHORT)
    trainer.run_training()
    weights = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    path.unlink()

    again = workplace.make(nnUNetTrainerPGL, **{**SHORT, "num_epochs": 2})
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


def test_a_full_disk_keeps_the_former_checkpoint(workplace: Workplace) -> None:
    """nnU-Net alone would have begun to overwrite it."""
    trainer = workplace.make(nnUNetTrainerPGLScratch)
    trainer.initialize()
    latest = Path(trainer.output_folder, "checkpoint_latest.pth")
    trainer.save_checkpoint(str(latest))
    before = latest.read_bytes()
    with room_for(10_000_000), pytest.raises(RuntimeError, match=r"write failed|unexpected pos"):
        trainer.save_checkpoint(str(latest))
    assert latest.read_bytes() == before
    assert [path.name for path in latest.parent.glob("*checkpoint*")] == [latest.name]


def test_folds_of_one_model_have_one_network(workplace: Workplace, save_encoder: SaveEncoder) -> None:
    path = workplace.results / "PGL" / "run" / "checkpoint_final.pth"
    save_encoder(path)
    workplace.make(nnUNetTrainerPGL, **SHORT).run_training()
    save_encoder(path, norm="instance")
    with pytest.raises(SystemExit, match="all folds of a model need the same"):
        workplace.make(nnUNetTrainerPGL, fold=1).initialize()


def test_2d_stops_with_a_clear_line(workplace: Workplace) -> None:
    plans = workplace.plans()
    plans["configurations"]["2d"] = {**plans["configurations"]["3d_fullres"], "patch_size": [24, 32]}
    with pytest.raises(SystemExit, match="the configuration 2d is 2D: use 3d_fullres"):
        nnUNetTrainerPGL(plans, "2d", 0, workplace.dataset_json(), CPU)
    assert not any(workplace.results.iterdir()), "nnU-Net has made no folder"


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


def test_a_cascade_starts_as_if_there_were_no_previous_stage(workplace: Workplace, save_encoder: SaveEncoder) -> None:
    encoder = save_encoder(workplace.results / "PGL" / "run" / "checkpoint_final.pth")
    plans = workplace.with_cascade(workplace.plans())
    trainer = nnUNetTrainerPGL(plans, "3d_cascade_fullres", 0, workplace.dataset_json(), CPU)
    trainer.initialize()
    of_the_plan = ResNet50Encoder(1, trainer.network.encoder.strides)
    of_the_plan.load_state_dict(encoder.state_dict())
    workplace.require_cascade(trainer, of_the_plan)


@pytest.mark.parametrize(
    ("cores", "asked", "threads"),
    [({3}, "", 1), ({0, 1, 5}, "", 3), ({0, 1, 5}, "2", 2), ({0}, "4", 1), ({0, 1}, "0", 2), ({0, 1}, "all", 2)],
)
def test_threads_are_those_of_the_cores_to_run_on(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, cores: set[int], asked: str, threads: int
) -> None:
    """Not of all cores of the machine, as nnU-Net has set them by then."""
    before = torch.get_num_threads()
    monkeypatch.setattr("os.sched_getaffinity", lambda process: cores, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    try:
        torch.set_num_threads(7)
        workplace.make(nnUNetTrainerPGL)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_the_demo_trains_with_single_patches_and_without_mirroring(workplace: Workplace) -> None:
    trainer = workplace.make(nnUNetTrainerPGL_demo)
    assert trainer.configuration_manager.batch_size == 1
    *_, mirrored_axes = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    assert mirrored_axes is None
    assert trainer.inference_allowed_mirroring_axes is None
