"""nnUNetTrainerPGL from a model that nnU-Net's own trainer has trained, on real plans and data of nnU-Net."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_pgl.adaptation import canonical
from nnunetv2_pgl.checkpoint import load_checkpoint
from nnunetv2_pgl.networks import PlannedEncoder, PlannedNetwork
from nnunetv2_pgl.trainers import nnUNetTrainerPGL, nnUNetTrainerPGLScratch
from tests.nnunet_models import nnunet_content, plans_of
from tests.planned_networks import small_network
from tests.trainers.test_planned_network import SHORT, log_of, make, plans_for

CPU = torch.device("cpu")
Workplace = Any  # the fixture of conftest.py
Start = Callable[..., nnUNetTrainerPGL]


def trained(workplace: Workplace, network: PlannedNetwork) -> Path:
    """The final checkpoint of nnU-Net's own trainer, after one step."""
    trainer = nnUNetTrainer(plans_for(workplace, network), "3d_fullres", 0, workplace.dataset_json(), CPU)
    for name, value in SHORT.items():
        setattr(trainer, name, value)
    trainer.run_training()
    return Path(trainer.output_folder, "checkpoint_final.pth")


@pytest.fixture
def start(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Initialises a trainer from a file in nnU-Net's layout."""

    def start_from(content: dict[str, Any], network: PlannedNetwork, dataset_json: Any = None, **plans: Any) -> Any:
        path = workplace.root / "checkpoint_best.pth"
        torch.save(content, path)
        monkeypatch.setenv("PGL_CHECKPOINT", str(path))
        trainer = make(workplace, plans_for(workplace, network, **plans), dataset_json=dataset_json)
        trainer.initialize()
        return trainer

    return start_from


@pytest.mark.parametrize("kind", ["plain", "resenc"])
def test_training_starts_with_its_encoder_bit_for_bit(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    network = small_network(kind)
    path = trained(workplace, network)
    content = torch.load(path, weights_only=False)
    assert isinstance(content["_best_ema"], np.floating)  # what makes it unreadable as it is
    made = nnunet_content(network)
    assert content.keys() == made.keys()
    assert content["init_args"].keys() == made["init_args"].keys()
    monkeypatch.setenv("PGL_CHECKPOINT", str(path))
    monkeypatch.setenv("PGL_TRANSFER_DECODER", "1")
    trainer = make(workplace, plans_for(workplace, network, plans_name="fine_tuned"))
    trainer.initialize()
    for key, value in trainer.network.state_dict().items():
        is_the_same = torch.equal(value, content["network_weights"][key])
        assert is_the_same or ".seg_layers." in key, key
        assert not (is_the_same and key.endswith(".weight") and ".seg_layers." in key), key
    log = log_of(trainer)
    assert "): nnU-Net: nnUNetTrainer, 1 epoch, spacing [" in log
    assert "encoder tensors loaded, 100 % of its parameters" in log
    assert "and 12 of the decoder" in log
    assert "It was trained with labels: Dataset502_Torso, 3d_fullres, fold 0 of 5 cases" in log
    assert "WARNING" not in log  # the same plans: neither spacing nor intensities differ
    record = json.loads(Path(trainer.output_folder, "pgl_checkpoint.json").read_text())
    assert (record["method"], record["share_loaded"]) == ("nnU-Net: nnUNetTrainer", 1)
    trainer.run_training()


def test_our_own_models_are_a_start_too(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's network, and the plan's, as nnUNetTrainerPGLScratch has trained them."""
    for number, entry in enumerate((None, {"architecture": "plan"})):
        network = {"pgl_network": entry} if entry else {}
        plans = plans_for(workplace, small_network(), plans_name=f"first_{number}", **network)
        first = make(workplace, plans, nnUNetTrainerPGLScratch)
        first.initialize()
        path = Path(first.output_folder, "checkpoint_final.pth")
        first.save_checkpoint(str(path))
        monkeypatch.setenv("PGL_CHECKPOINT", str(path))
        again = make(workplace, plans_for(workplace, small_network(), plans_name=f"second_{number}"))
        again.initialize()
        assert type(again.network) is type(first.network)
        for key, value in again.network.encoder.state_dict().items():
            assert torch.equal(value, first.network.encoder.state_dict()[key]), key


@pytest.mark.parametrize("kind", ["plain", "resenc"])
def test_other_plans_channels_and_axes(start: Start, workplace: Workplace, kind: str) -> None:
    """Another patch, two channels in place of one, and the axes in another order."""
    strides, kernels = [[1, 1, 1], [1, 2, 2], [2, 2, 1]], [[1, 3, 3], [3, 3, 3], [3, 3, 1]]
    network = small_network(kind, strides=strides, kernel_sizes=kernels)
    content = nnunet_content(network, plans=plans_of(network, transpose_forward=[1, 0, 2]))
    axes = (1, 2, 0)  # the model's axes in the order of the plan (0, 2, 1)
    turned = small_network(
        kind,
        strides=[[stage[axis] for axis in axes] for stage in strides],
        kernel_sizes=[[stage[axis] for axis in axes] for stage in kernels],
    )
    dataset_json = {**workplace.dataset_json(), "channel_names": {"0": "CT", "1": "PET"}}
    before, after = {"transpose_forward": [0, 2, 1]}, {"transpose_backward": [0, 2, 1]}
    trainer = start(content, turned, dataset_json, **before, **after)
    encoder = PlannedEncoder(network).eval()
    encoder.load_state_dict(load_checkpoint(workplace.root / "checkpoint_best.pth").encoder_weights)
    image = torch.randn(1, 1, 8, 16, 24)
    order = (0, 1, *(2 + axis for axis in axes))
    with torch.no_grad():
        expected = encoder(image)
        found = trainer.network.eval().encoder(image.permute(order).repeat(1, 2, 1, 1, 1))
    for one, other in zip(expected, found, strict=True):
        assert torch.allclose(one.permute(order), other, rtol=1e-3, atol=1e-3)
    log = log_of(trainer)
    assert "adapted to the number of input channels" in log
    assert "The plan has the pre-training's axes (z, y, x) in the order (y, x, z); kernels are turned" in log
    assert "WARNING: pre-trained at 1 x 0.5 x 3 mm" in log
    assert "WARNING: pre-trained on CT clipped to [-200, 300] HU, less 10 and divided by 100" in log


def test_too_little_is_refused_unless_it_is_allowed(
    start: Start, workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, deeper = nnunet_content(small_network(features=(4, 6))), small_network(features=(4, 6, 8))
    with pytest.raises(
        SystemExit, match=r"only \d+\.\d % of the encoder's parameters can be loaded.*PGL_ALLOW_PARTIAL"
    ):
        start(content, deeper)
    monkeypatch.setenv("PGL_ALLOW_PARTIAL", "1")
    trainer = start(content, deeper)
    weights = content["network_weights"]
    for key, value in trainer.network.encoder.state_dict().items():
        assert f"encoder.{key}" not in weights or torch.equal(value, weights[f"encoder.{key}"])
    for key, _ in trainer.network.encoder.named_parameters():
        if key.startswith("stages.2."):
            assert f"not loaded: {canonical(key)}: the checkpoint has 2 stages" in log_of(trainer)
    monkeypatch.setenv("PGL_TRANSFER_DECODER", "1")
    with pytest.raises(SystemExit, match="its decoder does not fit this network"):
        start(content, deeper)
    with pytest.raises(SystemExit, match=r"has a PlainConvUNet, .* is for a ResidualEncoderUNet: plan with"):
        start(nnunet_content(small_network("resenc")), deeper)


def test_a_cascade_s_model_for_images_and_for_a_cascade(start: Start, workplace: Workplace) -> None:
    network = small_network()
    content = nnunet_content(network, 3, configuration="3d_cascade_fullres")
    trainer = start(content, network)
    first = "encoder.stages.0.0.convs.0.conv.weight"
    assert torch.equal(trainer.network.state_dict()[first], content["network_weights"][first][:, :1])
    assert "Of a cascade: its 2 input channels for the previous stage's segmentation left out" in log_of(trainer)
    plans = workplace.with_cascade(plans_for(workplace, network))
    cascade = nnUNetTrainerPGL(plans, "3d_cascade_fullres", 0, workplace.dataset_json(), CPU)
    cascade.initialize()
    workplace.require_cascade(cascade, cascade_images(content, network))


def cascade_images(content: dict[str, Any], network: PlannedNetwork) -> PlannedEncoder:
    """Its encoder for the image alone."""
    encoder = PlannedEncoder(network)
    weights = {key: value for key, value in content["network_weights"].items() if key.startswith("encoder.")}
    fitting = {
        key.removeprefix("encoder."): value[:, :1] if value.ndim == 5 and value.shape[1] == 3 else value
        for key, value in weights.items()
    }
    encoder.load_state_dict(fitting)
    return encoder


def test_weights_alone(start: Start) -> None:
    content = nnunet_content(small_network("resenc"))
    trainer = start(
        {"net": {f"module.{key}": v for key, v in content["network_weights"].items()}}, small_network("resenc")
    )
    for key, value in trainer.network.encoder.state_dict().items():
        assert torch.equal(value, content["network_weights"][f"encoder.{key}"])
    log = log_of(trainer)
    assert "weights of a nnU-Net; " in log
    assert "The file holds weights alone" in log
    assert "The checkpoint does not record the spacing it was pre-trained at" in log
    assert "The checkpoint does not record how its intensities were normalised" in log


@pytest.mark.parametrize("trainer", [nnUNetTrainerPGL, nnUNetTrainerPGLScratch])
def test_pretrained_weights_of_nnunet_do_not_replace_the_start(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, trainer: type[nnUNetTrainerPGL]
) -> None:
    """As ``nnUNetv2_train -pretrained_weights`` does (`maybe_load_checkpoint`): after ``initialize``."""
    network = small_network()
    content = nnunet_content(network, plans=plans_for(workplace, network))
    path = workplace.root / "model.pth"
    torch.save(content, path)
    monkeypatch.setenv("PGL_CHECKPOINT", str(path))
    made = make(workplace, plans_for(workplace, network, pgl_network={"architecture": "plan"}), trainer)
    made.initialize()
    load_pretrained_weights(made.network, str(path))  # the same model: its decoder is no random start, either
    with pytest.raises(SystemExit, match=r"weights that it starts from were replaced .* -pretrained_weights") as stop:
        made.run_training()
    assert "\n" not in str(stop.value)
    assert not list(Path(made.output_folder).glob("*.pth"))
