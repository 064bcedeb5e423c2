"""Lengths, mirroring and learning rates."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform

from nnunetv2_pgl.trainers import (
    nnUNetTrainerPGL,
    nnUNetTrainerPGL_5epochs,
    nnUNetTrainerPGL_NoMirroring,
    nnUNetTrainerPGL_paper,
    nnUNetTrainerPGL_sawtooth,
    nnUNetTrainerPGLScratch,
    nnUNetTrainerPGLScratch_1epoch,
    nnUNetTrainerPGLScratch_NoMirroring,
)
from nnunetv2_pgl.trainers.optimisation import SawtoothPolyLRScheduler, WarmupPolyLRScheduler
from nnunetv2_pgl.trainers.variants import with_length

Workplace = Any  # the fixture of conftest.py
SaveEncoder = Any


def test_a_length_with_a_batch_size_trains_with_it(workplace: Workplace) -> None:
    """nnU-Net reads the batch size from the plan when it sets up, after construction."""
    trainer = workplace.make(with_length(nnUNetTrainerPGLScratch, "small", batch_size=1, num_epochs=3))
    trainer.initialize()
    assert (trainer.batch_size, trainer.num_epochs) == (1, 3)


def test_lengths_follow_nnunet_s_names(workplace: Workplace) -> None:
    assert workplace.make(nnUNetTrainerPGL_5epochs).num_epochs == 5
    trainer = workplace.make(nnUNetTrainerPGLScratch_1epoch)
    assert trainer.num_epochs == 1
    assert type(trainer).__name__ == "nnUNetTrainerPGLScratch_1epoch"
    assert not trainer.starts_from_checkpoint


def test_every_trainer_has_nnunet_s_arguments(workplace: Workplace) -> None:
    """nnU-Net looks at their names, and stores them in its checkpoints."""
    names = ["plans", "configuration", "fold", "dataset_json", "device"]
    for trainer in (nnUNetTrainerPGL_5epochs, nnUNetTrainerPGL_paper, nnUNetTrainerPGL_sawtooth):
        assert list(workplace.make(trainer).my_init_kwargs) == names


def mirrored_axes(transform: Any) -> list[tuple[int, ...]]:
    """Of nnU-Net's augmentation: the axes of each transform in it that mirrors."""
    found = [transform.allowed_axes] if isinstance(transform, MirrorTransform) else []
    inner = [*getattr(transform, "transforms", ()), *filter(None, [getattr(transform, "transform", None)])]
    return found + [axes for other in inner for axes in mirrored_axes(other)]


@pytest.mark.parametrize(
    ("trainer_class", "axes"),
    [
        (nnUNetTrainerPGL, (0, 1, 2)),
        (nnUNetTrainerPGLScratch, (0, 1, 2)),
        (nnUNetTrainerPGL_NoMirroring, None),
        (nnUNetTrainerPGLScratch_NoMirroring, None),
    ],
)
def test_mirroring_in_training_and_prediction(
    workplace: Workplace, save_encoder: SaveEncoder, trainer_class: type[nnUNetTrainerPGL], axes: tuple[int, ...] | None
) -> None:
    if trainer_class.starts_from_checkpoint:
        save_encoder(workplace.results / "PGL" / "run" / "checkpoint_final.pth")
    trainer = workplace.make(trainer_class)
    trainer.initialize()
    trainer.on_train_start()
    assert mirrored_axes(trainer.dataloader_train.data_loader.transforms) == ([] if axes is None else [axes])
    trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_final.pth")
    stored = torch.load(f"{trainer.output_folder}/checkpoint_final.pth", weights_only=False)
    assert stored["inference_allowed_mirroring_axes"] == axes  # what nnUNetv2_predict reads
    assert stored["trainer_name"] == trainer_class.__name__


def test_other_lengths_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(nnUNetTrainerPGL_5epochs)) is nnUNetTrainerPGL_5epochs


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


def test_rates_rise_twice_then_decay() -> None:
    rest, encoder = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [rest]}, {"params": [encoder]}], 1e-2)
    scheduler = SawtoothPolyLRScheduler(optimizer, 1e-2, 100, 4)
    rates = []
    for epoch in range(100):
        scheduler.step(epoch)
        rates.append([group["lr"] for group in optimizer.param_groups])
    of_rest, of_encoder = zip(*rates, strict=True)
    rise = [1e-2 * k / 5 for k in range(1, 5)]
    assert of_rest[:9] == pytest.approx([*rise, *rise, 1e-2])
    assert of_encoder[:9] == pytest.approx([0, 0, 0, 0, *rise, 1e-2])
    assert of_rest[8:] == of_encoder[8:]
    assert of_rest[8 + 46] == pytest.approx(1e-2 * 0.5**0.9)
    assert of_rest[-1] > 0


def test_the_encoder_waits_for_the_decoder(workplace: Workplace, save_encoder: SaveEncoder) -> None:
    save_encoder(workplace.results / "PGL" / "run" / "checkpoint_final.pth")
    trainer = workplace.make(nnUNetTrainerPGL_sawtooth)
    trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch, trainer.num_epochs = 1, 1, 40
    trainer.initialize()
    assert trainer.warmup_epochs == 2
    trainer.on_train_start()
    changed = []
    for epoch in range(3):
        trainer.current_epoch = epoch
        before = {name: parameter.detach().clone() for name, parameter in trainer.network.named_parameters()}
        trainer.on_train_epoch_start()
        trainer.train_step(next(trainer.dataloader_train))
        changed.append(
            {
                name.startswith("encoder.")
                for name, parameter in trainer.network.named_parameters()
                if not torch.equal(parameter, before[name])
            }
        )
    assert changed == [{False}, {False}, {True, False}]


def test_every_parameter_is_optimised_once(workplace: Workplace, save_encoder: SaveEncoder) -> None:
    save_encoder(workplace.results / "PGL" / "run" / "checkpoint_final.pth")
    trainer = workplace.make(nnUNetTrainerPGL_sawtooth)
    trainer.initialize()
    groups = [[id(parameter) for parameter in group["params"]] for group in trainer.optimizer.param_groups]
    assert sorted(groups[0] + groups[1]) == sorted(map(id, trainer.network.parameters()))
    assert set(groups[1]) == set(map(id, trainer.network.encoder.parameters()))
    assert all(group["weight_decay"] == trainer.weight_decay for group in trainer.optimizer.param_groups)
