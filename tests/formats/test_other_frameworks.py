"""Checkpoints that others made: nnssl's are read, the rest is named in one line."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nnunetv2_pgl.checkpoint import EncoderCheckpoint, load_checkpoint, save_checkpoint
from nnunetv2_pgl.formats.nnssl import read_nnssl
from nnunetv2_pgl.formats.weights_only import CheckpointError
from nnunetv2_pgl.info.command import describe
from nnunetv2_pgl.networks import PlannedEncoder, PlannedNetwork, ResNet50Encoder
from nnunetv2_pgl.transfer import load_encoder
from tests.hostile import variants
from tests.planned_networks import small_architecture, small_network


def nnssl_content(network: PlannedNetwork, prefix: str = "", in_channels: int = 1) -> dict[str, Any]:
    """What nnssl saves after a pre-training: all weights of the U-Net, the decoder's reference to the encoder too."""
    built = network.build(in_channels, 1)
    return {
        "network_weights": {prefix + key: value for key, value in built.state_dict().items()},
        "nnssl_adaptation_plan": {
            "architecture_plans": {
                "arch_class_name": network.class_name.rsplit(".", 1)[-1],
                "arch_kwargs": dict(network.kwargs),
                "arch_kwargs_requiring_import": list(network.requires_import),
            },
            "pretrain_plan": {
                "configurations": {
                    "onemmiso": {
                        "patch_size": [16, 16, 16],
                        "spacing": [1, 1, 1],
                        "normalization_schemes": ["ZScoreNormalization"],
                    }
                }
            },
            "pretrain_num_input_channels": in_channels,
            "recommended_downstream_patchsize": [16, 16, 16],
            "key_to_encoder": prefix + built.key_to_encoder,
            "key_to_stem": prefix + built.key_to_stem,
            "keys_to_in_proj": [prefix + key for key in built.keys_to_in_proj],
            "key_to_lpe": None,
        },
        "citations": [
            {"type": "Framework", "name": "nnssl", "apa_citations": ["Wald et al."]},
            {"type": "Pre-Training Method", "name": "MAE", "apa_citations": ["He et al."]},
        ],
        "trainer_name": "BaseMAETrainer",
    }


def saved(tmp_path: Path, content: object, **options: Any) -> Path:
    path = tmp_path / "given.pth"
    torch.save(content, path, **options)
    return path


def test_of_two_networks_in_a_file_of_nnssl_the_named_one_arrives(tmp_path: Path) -> None:
    network = small_network("plain")
    content = nnssl_content(network, "backbone.")
    others = {key.removeprefix("backbone."): value + 1 for key, value in content["network_weights"].items()}
    wanted = content["network_weights"]
    content = {**content, "network_weights": {**others, **wanted}}
    for key, value in load_checkpoint(saved(tmp_path, content)).encoder_weights.items():
        assert torch.equal(value, wanted[f"backbone.encoder.{key}"])


@pytest.mark.parametrize("kind", ["plain", "resenc"])
@pytest.mark.parametrize("prefix", ["", "net."])
def test_nnssl_s_encoder_arrives(tmp_path: Path, kind: str, prefix: str) -> None:
    network = small_network(kind)
    content = nnssl_content(network, prefix)
    checkpoint = load_checkpoint(saved(tmp_path, content))
    encoder = PlannedEncoder(network)
    assert checkpoint.encoder_weights.keys() == encoder.state_dict().keys()
    assert load_encoder(encoder, checkpoint.encoder_weights, "given.pth").share == 1
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, content["network_weights"][f"{prefix}encoder.{key}"])
    assert checkpoint.decoder_weights == {}
    assert checkpoint.pgl["method"] == "nnssl: MAE"
    assert checkpoint.pgl["spacing"] == [1, 1, 1]
    assert checkpoint.pgl["view_size"] == [16, 16, 16]
    assert checkpoint.pgl["intensity"]["normalization_schemes"] == ["ZScoreNormalization"]
    expected = small_architecture(network)
    assert checkpoint.architecture == {**expected, "name": "plain" if kind == "plain" else "resenc_l"}
    text = "\n".join(describe(checkpoint))
    assert "epochs        unknown" in text
    assert f"{sum(p.numel() for p in encoder.parameters()):,} in {len(list(encoder.parameters()))} tensors" in text


def test_nnssl_s_preset_has_its_448_keys() -> None:
    """The published size: 448 keys for 224 tensors, 90.3 million parameters (measured on nnssl's ResEncL)."""
    with torch.device("meta"):
        content = nnssl_content(PlannedNetwork.from_preset("resenc_l", (160, 160, 160), (1, 1, 1)))
        architecture = content["nnssl_adaptation_plan"]["architecture_plans"]
        architecture |= {"arch_class_name": "ResEncL", "arch_kwargs": None, "arch_kwargs_requiring_import": None}
        weights, pgl = read_nnssl(content)
        encoder = PlannedEncoder(PlannedNetwork.from_dict(pgl["architecture"]["network"], "preset"))
    assert len(weights) == 448
    assert {key: value.shape for key, value in weights.items()} == {
        key: value.shape for key, value in encoder.state_dict().items()
    }
    parameters = list(encoder.parameters())
    assert len(parameters) == 224
    assert sum(parameter.numel() for parameter in parameters) == pytest.approx(90.3e6, rel=1e-3)
    assert pgl["architecture"]["strides"] == [32, 32, 32]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda plan: plan["architecture_plans"].update(arch_class_name="PrimusM", arch_kwargs=None),
            r"a transformer \(PrimusM\), pre-trained with nnssl, .* use a checkpoint of nnssl's ResEncL",
        ),
        (
            lambda plan: plan["architecture_plans"].update(arch_class_name="SwinUNETR"),
            r"a transformer \(SwinUNETR\), pre-trained with nnssl",
        ),
        (
            lambda plan: plan["architecture_plans"].update(arch_class_name="Other"),
            "a network of the class Other, pre-trained with nnssl",
        ),
        (lambda plan: plan.pop("architecture_plans"), "nnssl_adaptation_plan is incomplete .*architecture_plans"),
        (lambda plan: plan["pretrain_plan"].update(configurations={}), "nnssl_adaptation_plan is incomplete"),
        (lambda plan: plan["architecture_plans"].update(arch_kwargs=None), "arch_kwargs are empty"),
        (
            lambda plan: plan["architecture_plans"]["arch_kwargs"].update(conv_op="torch.nn.Conv2d"),
            "a checkpoint of nnssl: a network of 2D convolutions",
        ),
        (
            lambda plan: plan.update(key_to_encoder="net.encoder.stages"),
            r"without weights under net\.encoder\.stages, its key_to_encoder \(they begin with encoder\.",
        ),
    ],
)
def test_nnssl_checkpoints_that_cannot_be_used(tmp_path: Path, change: Any, message: str) -> None:
    content = copy.deepcopy(nnssl_content(small_network("resenc")))
    change(content["nnssl_adaptation_plan"])
    require_line(saved(tmp_path, content), message)


def test_whatever_nnssl_s_plan_says(tmp_path: Path) -> None:
    content, path = nnssl_content(small_network("plain", (4, 8))), tmp_path / "given.pth"
    refused = 0
    for entry in ("nnssl_adaptation_plan", "citations", "trainer_name"):
        for what, value in variants(content[entry]):
            torch.save({**content, entry: value}, path)
            try:
                describe(load_checkpoint(path))
            except CheckpointError:
                refused += 1
            except Exception as error:
                raise AssertionError(f"{entry} {what}: {type(error).__name__}: {error}") from error
    assert refused > 100


def require_line(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"given\.pth: .*{message}") as stop:
        load_checkpoint(path)
    assert "\n" not in str(stop.value)


class Genesis(nn.Module):
    """Names and order of the modules in Models Genesis' pytorch/unet3d.py, as narrow as it gets."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("down_tr64", "down_tr128", "up_tr64"):
            block = nn.Module()
            unit = nn.Module()
            unit.conv1, unit.bn1 = nn.Conv3d(1, 1, 3), nn.BatchNorm3d(1)
            block.ops = nn.Sequential(unit)
            self.add_module(name, block)


class MedicalNet(nn.Module):
    """Names of MedicalNet's ResNet (torchvision's) with 3D convolutions."""

    def __init__(self, convolution: Any = nn.Conv3d) -> None:
        super().__init__()
        self.conv1 = convolution(1, 2, 7, bias=False)
        block = nn.Module()
        block.conv1 = convolution(2, 2, 3)
        self.layer1 = nn.Sequential(block)


class ViT(nn.Module):
    """Names of timm's and DINO's vision transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 2))
        self.blocks = nn.Sequential(nn.Sequential())


ONE = torch.zeros(1, 1, 3, 3, 3)


def parallel(module: nn.Module) -> dict[str, Any]:
    return nn.DataParallel(module).state_dict()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"epoch": 3, "state_dict": parallel(Genesis()), "optimizer_state_dict": {"state": {}, "param_groups": []}},
            "the 3D U-Net of Models Genesis .* pgl_pretrain -m models_genesis",
        ),
        ({"state_dict": parallel(MedicalNet())}, "a 3D ResNet of MedicalNet .* pgl_pretrain -a resnet50"),
        (MedicalNet(nn.Conv2d).state_dict(), "a 2D ResNet"),
        (ViT().state_dict(), "a vision transformer .*nnssl's ResEncL"),
        ({"teacher": {"backbone.patch_embed.proj.weight": torch.zeros(2, 3, 4, 4)}, "epoch": 1}, "vision transformer"),
        ({"state_dict": {"conv_blocks_context.0.blocks.0.conv.weight": ONE}}, "a network of nnU-Net version 1"),
        ({"network_weights": {"conv_blocks_context.0.0.conv1.weight": ONE}}, "a STU-Net, whose weights fit none"),
        ({"net": {"module.backbone.convInit.conv.weight": ONE}}, "MONAI's SegResNet, as of SuPreM"),
        ({"net": {"module.backbone.down_tr64.ops.0.conv1.weight": ONE}}, "Models Genesis .* and SuPreM"),
        ({"encoder.conv_init.weight": ONE, "encoder.layers.0.blocks.0.conv1.weight": ONE}, "the SegResNet of CT-FM"),
        ({"state_dict": {"module.swinViT.patch_embed.proj.weight": ONE}}, "a vision transformer .*MONAI"),
        ({"conv_init.weight": ONE, "layers.0.blocks.0.conv1.weight": ONE}, "the encoder of CT-FM's SegResNet"),
        ({"state_dict": {"enc_block_0.0.conv1.weight": ONE}}, "a MedNeXt"),
        ({"encode_image.i3_resnet.conv1.weight": ONE}, "the image encoder of Merlin"),
        (
            {"network_weights": {"encoder.x": torch.zeros(1)}, "trainer_name": "BaseMAETrainer", "init_args": {}},
            r"a training checkpoint \(trainer BaseMAETrainer\) without the plans .* let a newer nnssl write it again",
        ),
        ({"conv.weight": torch.zeros(1)}, r"not written by pgl_pretrain \(it holds: conv\.weight\)"),
    ],
    ids=[
        *("genesis", "medicalnet", "resnet2d", "vit", "dino", "nnunet1", "stunet", "segresnet", "suprem"),
        *("ctfm", "swin", "ctfm_encoder", "mednext", "merlin", "training", "unknown"),
    ],
)
def test_what_others_wrote_is_named(tmp_path: Path, content: Any, message: str, zipped: bool) -> None:
    """Also in the file format of the time when Models Genesis and MedicalNet were published."""
    require_line(saved(tmp_path, content, _use_new_zipfile_serialization=zipped), message)


def test_an_old_file_that_is_cut_off(tmp_path: Path) -> None:
    path = saved(tmp_path, {"state_dict": parallel(Genesis())}, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(CheckpointError, match=r"given\.pth: .*(damaged|truncated)"):
        load_checkpoint(path)


def test_info_sums_a_planned_network_up(tmp_path: Path) -> None:
    network = small_network("resenc", (4, 6, 8))
    encoder = PlannedEncoder(network)
    pgl = {"method": "pgl", "architecture": small_architecture(network), "epochs": 3, "num_scans": 2}
    path = tmp_path / "checkpoint_final.pth"
    save_checkpoint(EncoderCheckpoint(dict(encoder.state_dict()), pgl, {}), path)
    lines = dict(line.split(maxsplit=1) for line in describe(load_checkpoint(path)))
    assert lines["network"] == (
        "ResidualEncoderUNet, 3 stages, channels [4, 6, 8], blocks [1, 1, 1], kernels [[3, 3, 3], [3, 3, 3], [3, 3, "
        "3]], strides [[1, 1, 1], [2, 2, 2], [2, 2, 2]]"
    )
    assert lines["encoder"] == "name resenc_m, norm instance, centred False, strides [4, 4, 4], in_channels 1"
    assert lines["parameters"].startswith(f"{sum(p.numel() for p in encoder.parameters()):,} in ")
    resnet = ResNet50Encoder()
    architecture = {"name": "resnet50", "norm": "batch", "centred": True}
    of_the_paper = replace(load_checkpoint(path), encoder_weights=dict(resnet.state_dict()))
    of_the_paper.pgl["architecture"] = architecture
    assert "parameters    46,155,072 in 318 tensors" in describe(of_the_paper)
