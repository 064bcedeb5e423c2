"""Trained models of nnU-Net, and the weights of such models alone, as encoder checkpoints."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nnunetv2_pgl.checkpoint import load_checkpoint, load_encoder_network, save_checkpoint
from nnunetv2_pgl.export.weights_file import PublishedWeights
from nnunetv2_pgl.formats.weights_only import CheckpointError, load_weights_only
from nnunetv2_pgl.info.command import describe
from nnunetv2_pgl.networks import PGLSegmenter, PlannedEncoder, PlannedNetwork
from nnunetv2_pgl.transfer import load_encoder
from tests.formats.test_other_frameworks import require_line, saved
from tests.hostile import variants
from tests.nnunet_models import CT, nnunet_content, plans_of
from tests.planned_networks import small_network


def encoder_of(content: dict[str, Any]) -> dict[str, Tensor]:
    weights = content["network_weights"]
    return {key.removeprefix("encoder."): value for key, value in weights.items() if key.startswith("encoder.")}


def require_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())


@pytest.mark.parametrize("kind", ["plain", "resenc"])
def test_a_trained_model_is_read(tmp_path: Path, kind: str) -> None:
    network = small_network(kind)
    plans = plans_of(network, transpose_forward=[2, 0, 1])
    content = nnunet_content(network, plans=plans)
    checkpoint = load_checkpoint(saved(tmp_path, content))
    require_equal(checkpoint.encoder_weights, encoder_of(content))
    assert checkpoint.architecture == {
        "name": "plain" if kind == "plain" else "resenc_m",
        "norm": "instance",
        "centred": False,
        "padding": "zeros",
        "strides": [4, 4, 4],
        "in_channels": 1,
        "network": network.to_dict(),
    }
    pgl = checkpoint.pgl
    assert pgl["method"] == "nnU-Net: nnUNetTrainer"
    assert pgl["datasets"] == ["Dataset007_Pancreas"]
    assert (pgl["epochs"], pgl["spacing"], pgl["view_size"]) == (1000, [3, 1, 0.5], [16, 16, 16])
    assert pgl["config"]["preprocessing"]["transpose_forward"] == [2, 0, 1]
    assert pgl["intensity"]["normalization_schemes"] == ["CTNormalization"]
    assert pgl["intensity"]["foreground_intensity_properties_per_channel"] == {"0": CT}
    assert pgl["notes"] == ["It was trained with labels: Dataset007_Pancreas, 3d_fullres, fold 0 of 12 cases"]
    assert f"note          {pgl['notes'][0]}" in describe(checkpoint)
    encoder, _ = load_encoder_network(tmp_path / "given.pth")
    assert isinstance(encoder, PlannedEncoder)


@pytest.mark.parametrize(
    ("plans_name", "name"),
    [
        ("nnUNetPlans", "resenc_l"),
        ("nnUNetResEncUNetMPlans", "resenc_m"),
        ("nnUNetResEncUNetLPlansIso1x1x1", "resenc_l"),
        ("nnUNetResEncUNetXLPlans_80G", "resenc_xl"),
    ],
)
def test_the_size_of_a_residual_network_is_that_of_its_plans(tmp_path: Path, plans_name: str, name: str) -> None:
    network = small_network("resenc")
    content = nnunet_content(network, plans=plans_of(network, plans_name=plans_name))
    assert load_checkpoint(saved(tmp_path, content)).architecture["name"] == name


@pytest.mark.parametrize("kind", ["plain", "resenc"])
def test_its_decoder_is_what_does_not_depend_on_the_classes(tmp_path: Path, kind: str) -> None:
    content = nnunet_content(small_network(kind))
    decoder = load_checkpoint(saved(tmp_path, content)).decoder_weights
    other = small_network(kind).build(1, 9, deep_supervision=True).state_dict()  # nine classes in place of three
    same = {key for key, value in other.items() if value.shape == content["network_weights"][key].shape}
    assert set(decoder) == {key for key in same if not key.startswith(("encoder.", "decoder.encoder."))}
    assert any(".transpconvs." in key for key in decoder)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_are_taken_off(tmp_path: Path, prefix: str) -> None:
    content = nnunet_content(small_network())
    wrapped = {prefix + key: value for key, value in content["network_weights"].items()}
    checkpoint = load_checkpoint(saved(tmp_path, {**content, "network_weights": wrapped}))
    require_equal(checkpoint.encoder_weights, encoder_of(content))


@pytest.mark.parametrize("kind", ["plain", "resenc"])
def test_of_a_cascade_the_images_alone_are_kept(tmp_path: Path, kind: str) -> None:
    network = small_network(kind)
    content = nnunet_content(network, 3, configuration="3d_cascade_fullres")  # one image, two foreground labels
    checkpoint = load_checkpoint(saved(tmp_path, content))
    assert checkpoint.architecture["in_channels"] == 1
    assert (
        "Of a cascade: its 2 input channels for the previous stage's segmentation left out" in checkpoint.pgl["notes"]
    )
    for key, value in encoder_of(content).items():
        assert torch.equal(
            checkpoint.encoder_weights[key], value[:, :1] if value.ndim == 5 and value.shape[1] == 3 else value
        )
    assert load_encoder(PlannedEncoder(network), checkpoint.encoder_weights, "given.pth").share == 1
    four = nnunet_content(network, 3)  # three images: no cascade
    assert load_checkpoint(saved(tmp_path, four)).architecture["in_channels"] == 3


def test_plans_of_nnunet_2_0_to_2_2(tmp_path: Path) -> None:
    """Their keys, as ConfigurationManager converts them."""
    network = small_network("plain", (4, 8, 8), n_conv_per_stage=[2, 2, 2], n_conv_per_stage_decoder=[2, 2])
    plans = plans_of(network)
    fullres = plans["configurations"]["3d_fullres"]
    del fullres["architecture"]
    fullres |= {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 4,
        "unet_max_num_features": 8,
        "n_conv_per_stage_encoder": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
        "num_pool_per_axis": [2, 2, 2],
        "pool_op_kernel_sizes": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
        "conv_kernel_sizes": [[3, 3, 3]] * 3,
    }
    content = nnunet_content(network, plans=plans, inference_allowed_mirroring_axes=None)
    checkpoint = load_checkpoint(saved(tmp_path, content))
    require_equal(checkpoint.encoder_weights, encoder_of(content))
    assert checkpoint.architecture["network"]["kwargs"]["features_per_stage"] == [4, 8, 8]
    assert checkpoint.pgl["notes"][0].endswith("fold 0 of 12 cases, without mirroring")


def test_the_module_that_the_residual_network_was_in(tmp_path: Path) -> None:
    """To which nnU-Net converts plans of version 2.2."""
    network = small_network("resenc")
    plans = plans_of(network)
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    architecture["network_class_name"] = "dynamic_network_architectures.architectures.residual_unet.ResidualEncoderUNet"
    checkpoint = load_checkpoint(saved(tmp_path, nnunet_content(network, plans=plans)))
    assert checkpoint.architecture["network"] == network.to_dict()


def test_intensities_that_the_plan_does_not_use_may_be_anything(tmp_path: Path) -> None:
    network = small_network()
    plans = plans_of(network, foreground_intensity_properties_per_channel={"0": {"mean": 1.0, "std": 0.0}})
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["ZScoreNormalization"]
    intensity = load_checkpoint(saved(tmp_path, nnunet_content(network, plans=plans))).pgl["intensity"]
    assert (intensity["modality"], intensity["normalization_schemes"]) == ("other", ["ZScoreNormalization"])


def test_batch_norm_of_a_trainer_is_seen(tmp_path: Path) -> None:
    """nnUNetTrainerBN replaces the norm that the plans name."""
    network = small_network()
    batch = small_network(norm_op="torch.nn.modules.batchnorm.BatchNorm3d")
    checkpoint = load_checkpoint(saved(tmp_path, nnunet_content(batch, plans=plans_of(network))))
    assert checkpoint.architecture["norm"] == "batch"
    load_encoder_network(tmp_path / "given.pth")


def test_our_trainers_models_of_the_paper_s_network(tmp_path: Path) -> None:
    """For the ResNet-50 the plans still describe a U-Net, and pgl_network says what was built."""
    segmenter = PGLSegmenter(1, 3, (4, 4, 4), "instance", widths=(4, 8, 8, 8))
    plans = plans_of(small_network(), pgl_network={"architecture": "resnet50", "norm": "instance", "centred": True})
    content = nnunet_content(
        small_network(), plans=plans, network_weights=segmenter.state_dict(), trainer_name="nnUNetTrainerPGL"
    )
    checkpoint = load_checkpoint(saved(tmp_path, content))
    require_equal(checkpoint.encoder_weights, dict(segmenter.encoder.state_dict()))
    require_equal(checkpoint.decoder_weights, segmenter.decoder_weights())
    expected = {"name": "resnet50", "norm": "instance", "centred": True, "padding": "zeros", "strides": [4, 4, 4]}
    assert checkpoint.architecture == {**expected, "in_channels": 1}


class Conv2dUNet(nn.Module):
    """The keys of a plain 2D network."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = (
            PlannedNetwork(
                small_network().class_name,
                {
                    **small_network().kwargs,
                    "conv_op": "torch.nn.Conv2d",
                    "norm_op": "torch.nn.InstanceNorm2d",
                    "kernel_sizes": [[3, 3]] * 3,
                    "strides": [[1, 1], [2, 2], [2, 2]],
                },
                small_network().requires_import,
            )
            .build(1, 3)
            .encoder
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(network_weights=Conv2dUNet().state_dict()), "2D convolutions; use a model of a 3D config"),
        (
            lambda c: c.update(network_weights={"eva.blocks.0.attn.qkv.weight": torch.zeros(2, 2)}),
            r"a model of nnU-Net \(nnUNetTrainer\): weights of a network that is neither",
        ),
        (
            lambda c: c.update(network_weights=nnunet_content(small_network("resenc"))["network_weights"]),
            "not those of the PlainConvUNet that its plans describe, but of a ResidualEncoderUNet",
        ),
        (
            lambda c: c.update(network_weights=nnunet_content(small_network(features=(4, 8)))["network_weights"]),
            r"but of a PlainConvUNet with channels \[4, 8\]",
        ),
        (
            lambda c: c["init_args"]["plans"]["configurations"]["3d_fullres"]["architecture"].update(
                network_class_name="some.Primus"
            ),
            "the network Primus is not known here",
        ),
        (lambda c: c["init_args"].update(configuration="3d_other"), r"incomplete \(.*3d_other"),
        (lambda c: c["init_args"].pop("dataset_json"), r"incomplete \(KeyError: 'dataset_json'\)"),
        (lambda c: c.update(network_weights={}), "network_weights is not a table of named tensors"),
        (lambda c: c.update(network_weights={"encoder.x": 3}), "network_weights is not a table of named tensors"),
        (
            lambda c: c.update(network_weights={"encoder.x": torch.zeros(1).expand(10**12)}),
            "network_weights is not a table of named tensors",
        ),
    ],
)
def test_models_that_cannot_be_used(tmp_path: Path, change: Any, message: str) -> None:
    content = copy.deepcopy(nnunet_content(small_network()))
    change(content)
    require_line(saved(tmp_path, content), message)


def test_whatever_a_model_says_of_itself(tmp_path: Path) -> None:
    content, path = nnunet_content(small_network("plain", (4, 8))), tmp_path / "given.pth"
    content["optimizer_state"] = None
    del content["init_args"]["plans"]["configurations"]["3d_lowres"]
    refused = 0
    for entry in ("init_args", "trainer_name", "current_epoch", "inference_allowed_mirroring_axes"):
        for what, value in variants(content[entry]):
            torch.save({**content, entry: value}, path)
            try:
                describe(load_checkpoint(path))
            except CheckpointError:
                refused += 1
            except Exception as error:
                raise AssertionError(f"{entry} {what}: {type(error).__name__}: {error}") from error
    assert refused > 100


def test_a_model_is_not_exported_as_a_pretraining(tmp_path: Path) -> None:
    path = saved(tmp_path, nnunet_content(small_network()))
    with pytest.raises(ValueError, match=r"made by nnU-Net, not by pgl_pretrain"):
        PublishedWeights.from_file(path)


def test_it_can_be_saved_as_an_encoder(tmp_path: Path) -> None:
    """As pgl_compare does with shuffled weights."""
    checkpoint = load_checkpoint(saved(tmp_path, nnunet_content(small_network())))
    save_checkpoint(checkpoint, tmp_path / "encoder.pth")
    again = load_checkpoint(tmp_path / "encoder.pth")
    require_equal(again.encoder_weights, checkpoint.encoder_weights)
    require_equal(again.decoder_weights, checkpoint.decoder_weights)


@pytest.mark.parametrize("number", [np.float32(1.5), np.float64(-2.25), np.int64(7), np.bool_(True), np.float16(0.5)])
def test_numbers_of_numpy_become_python_s(tmp_path: Path, number: Any) -> None:
    read = load_weights_only(saved(tmp_path, {"value": number}))["value"]
    assert read == number.item()
    assert type(read) in (bool, int, float)
