"""What the trainer does where an encoder of nnU-Net's networks does not fit the plan, its channels or its data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nnunetv2_pgl.adaptation import canonical
from nnunetv2_pgl.networks import PlannedEncoder
from nnunetv2_pgl.trainers import nnUNetTrainerPGL
from tests.planned_networks import small_network
from tests.trainers.test_planned_network import log_of, make, plans_for

CPU = torch.device("cpu")
Workplace = Any  # the fixture of conftest.py
SaveEncoder = Any
SavePlanned = Callable[..., PlannedEncoder]


def test_the_log_says_where_the_data_differ(workplace: Workplace, save_planned: SavePlanned) -> None:
    network = small_network()
    save_planned(network)
    trainer = make(workplace, plans_for(workplace, network))
    trainer.initialize()
    log = log_of(trainer)
    spacing = " x ".join(f"{value:.3g}" for value in trainer.configuration_manager.spacing)
    assert f"WARNING: pre-trained at 1.5 x 1.5 x 1.5 mm, fine-tuning at {spacing} mm" in log
    assert (
        "WARNING: pre-trained on CT clipped to [-1024, 325] HU with z-score per scan, fine-tuning on CT clipped" in log
    )


def test_a_plan_of_another_network_stops_in_one_line(workplace: Workplace, save_planned: SavePlanned) -> None:
    save_planned(small_network("resenc"))
    with pytest.raises(SystemExit) as stop:
        make(workplace, plans_for(workplace, small_network("plain"))).initialize()
    line = str(stop.value)
    assert "has a PlainConvUNet" in line
    assert "checkpoint_final.pth is for a ResidualEncoderUNet" in line
    assert "nnUNetv2_plan_experiment -d 502 -pl nnUNetPlannerResEncM and train with -p nnUNetResEncUNetMPlans" in line
    assert "\n" not in line
    save_planned(small_network("plain"))
    with pytest.raises(SystemExit, match=r"plan with nnUNetv2_plan_experiment -d 502 and train with -p nnUNetPlans"):
        make(workplace, plans_for(workplace, small_network("resenc"))).initialize()
    plans = plans_for(workplace, small_network("resenc"))
    plans["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = "some.package.Transformer"
    with pytest.raises(SystemExit, match=r"the network Transformer is not known here.* nnUNetv2_plan_experiment"):
        make(workplace, plans).initialize()


def test_an_encoder_that_fits_too_little_stops_unless_it_is_allowed(
    workplace: Workplace, save_planned: SavePlanned, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_planned(small_network("plain", (4, 6)))
    plans = plans_for(workplace, small_network("plain", (4, 6, 8)))
    with pytest.raises(
        SystemExit, match=r"only \d+\.\d % of the encoder's parameters can be loaded.*PGL_ALLOW_PARTIAL"
    ):
        make(workplace, plans).initialize()
    monkeypatch.setenv("PGL_ALLOW_PARTIAL", "1")
    trainer = make(workplace, plans_for(workplace, small_network("plain", (4, 6, 8))))
    trainer.initialize()
    reason = "the checkpoint has 2 stages, the network 3: stays random"
    for key, _ in trainer.network.encoder.named_parameters():
        if key.startswith("stages.2."):
            assert f"not loaded: {canonical(key)}: {reason}" in log_of(trainer)
    monkeypatch.delenv("PGL_ALLOW_PARTIAL")
    allowed = plans_for(workplace, small_network("plain", (4, 6, 8)), pretrain_info={"allow_partial": True})
    make(workplace, allowed).initialize()


def test_more_input_channels(workplace: Workplace, save_planned: SavePlanned) -> None:
    network = small_network("resenc")
    encoder = save_planned(network)
    dataset_json = {**workplace.dataset_json(), "channel_names": {"0": "CT", "1": "PET"}}
    trainer = make(workplace, plans_for(workplace, network), dataset_json=dataset_json)
    trainer.initialize()
    expected = encoder.stem.convs[0].conv.weight / 2
    for channel in (0, 1):
        assert torch.equal(trainer.network.encoder.stem.convs[0].conv.weight[:, [channel]], expected)
    assert "adapted: stem.convs.0.conv.weight: repeated over 2 channels and divided by 2" in log_of(trainer)


@pytest.mark.parametrize("kind", ["plain", "resenc"])
def test_a_cascade_starts_as_if_there_were_no_previous_stage(
    workplace: Workplace, save_planned: SavePlanned, kind: str
) -> None:
    network = small_network(kind)
    encoder = save_planned(network)
    trainer = nnUNetTrainerPGL(
        workplace.with_cascade(plans_for(workplace, network)), "3d_cascade_fullres", 0, workplace.dataset_json(), CPU
    )
    trainer.initialize()
    workplace.require_cascade(trainer, encoder)


def test_the_previous_stage_is_not_pre_trained_for(workplace: Workplace, save_planned: SavePlanned) -> None:
    """An encoder of three channels fits the three images of a cascade, and no two of them."""
    network = small_network()
    encoder = save_planned(network, in_channels=3)
    plans = workplace.with_cascade(plans_for(workplace, network))
    dataset_json = {**workplace.dataset_json(), "channel_names": {"0": "T1", "1": "T2", "2": "FLAIR"}}
    trainer = nnUNetTrainerPGL(dict(plans), "3d_cascade_fullres", 0, dataset_json, CPU)
    trainer.initialize()
    stem, before = (e.stages[0][0].convs[0].conv.weight for e in (trainer.network.encoder, encoder))
    assert torch.equal(stem[:, :3], before)
    assert not stem[:, 3:].any()
    dataset_json = {**dataset_json, "channel_names": {"0": "T1", "1": "T2"}}
    with pytest.raises(SystemExit, match=r"this dataset has 2 \(and 7 of .*; pre-train on scans of 2 channels"):
        nnUNetTrainerPGL(plans, "3d_cascade_fullres", 1, dataset_json, CPU).initialize()


def test_folds_of_one_model_have_one_network(
    workplace: Workplace, save_planned: SavePlanned, save_encoder: SaveEncoder
) -> None:
    network = small_network()
    save_planned(network)
    make(workplace, plans_for(workplace, network)).run_training()
    make(workplace, plans_for(workplace, network), fold=1).initialize()
    save_encoder(workplace.results / "PGL" / "run" / "checkpoint_final.pth")
    with pytest.raises(SystemExit, match="all folds of a model need the same"):
        make(workplace, plans_for(workplace, network), fold=1).initialize()
