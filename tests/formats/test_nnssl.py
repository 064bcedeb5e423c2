"""What nnU-Net's tools for nnssl checkpoints find in ours.

They are in nnU-Net's git version only, so what they read is written down here once more: the published schema, and per
reader which entries it takes and what it makes of them.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import Tensor, nn

from nnunetv2_pgl.checkpoint import EncoderCheckpoint, save_checkpoint
from nnunetv2_pgl.export.weights_file import halved
from nnunetv2_pgl.formats.nnssl import adaptation_plan
from nnunetv2_pgl.networks import PlannedEncoder, PlannedNetwork
from pretraining.settings.config import PretrainConfig
from pretraining.training.encoder_checkpoint import make_checkpoint

VIEW = (20, 24, 32)
COMMON = {
    "n_stages": 3,
    "features_per_stage": [4, 8, 8],
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
KWARGS = {
    "resenc_m": {**COMMON, "n_blocks_per_stage": [1, 1, 2], "n_conv_per_stage_decoder": [1, 1]},
    "plain": {**COMMON, "n_conv_per_stage": [2, 2, 2], "n_conv_per_stage_decoder": [2, 2]},
}
CLASSES = {"resenc_m": "ResidualEncoderUNet", "plain": "PlainConvUNet"}
IMPORTED = ("conv_op", "norm_op", "dropout_op", "nonlin")


def network_of(name: str) -> PlannedNetwork:
    class_name = f"dynamic_network_architectures.architectures.unet.{CLASSES[name]}"
    return PlannedNetwork(class_name, KWARGS[name], IMPORTED)


def encoder_of(name: str, in_channels: int = 1) -> PlannedEncoder:
    """Every weight is random: nnU-Net's initialisation leaves norms at one and zero, which any mix-up would pass."""
    encoder = PlannedEncoder(network_of(name), in_channels)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return encoder.eval()


def make(encoder: PlannedEncoder, name: str, **settings: Any) -> EncoderCheckpoint:
    config = PretrainConfig(datasets=("/data/Dataset501_Scans",), **settings)
    config = replace(config, architecture=name, views=replace(config.views, size=VIEW))  # type: ignore[arg-type]
    objective: Any = SimpleNamespace(encoder=encoder, kept_decoder=dict)
    return make_checkpoint(objective, config, (3.0, 1.0, 0.75), True, 7, {"loss": 1.5})


def write(encoder: PlannedEncoder, name: str, path: Path, **settings: Any) -> dict[str, Any]:
    """What `pgl_pretrain` writes, as nnU-Net's tools load it."""
    save_checkpoint(make(encoder, name, **settings), path)
    content: dict[str, Any] = torch.load(path, weights_only=True)  # no map_location, as PretrainedTrainer does
    return content


@pytest.fixture(params=["resenc_m", "plain"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _triple(kind: type) -> Any:
    return lambda value: isinstance(value, list) and len(value) == 3 and all(type(entry) is kind for entry in value)


def _is(*kinds: type) -> Any:
    return lambda value: type(value) in kinds


SCHEMA: dict[str, Any] = {
    "architecture_plans": {
        "arch_class_name": lambda value: value in CLASSES.values(),
        "arch_kwargs": _is(dict),
        "arch_kwargs_requiring_import": lambda value: value == list(IMPORTED),
    },
    "pretrain_plan": {"configurations": {"pgl": {"patch_size": _triple(int), "spacing": _triple(float)}}},
    "pretrain_num_input_channels": _is(int),
    "recommended_downstream_patchsize": _triple(int),
    "key_to_encoder": _is(str),
    "key_to_stem": _is(str),
    "keys_to_in_proj": lambda value: type(value) is list and value and all(type(key) is str for key in value),
    "key_to_lpe": _is(type(None)),
}


def misfits(value: Any, schema: Any, path: str = "plan") -> list[str]:
    """Where a plan departs from the schema: keys too many, too few, or with other values."""
    if not isinstance(schema, dict):
        return [] if schema(value) else [f"{path}: {value!r}"]
    if not isinstance(value, dict) or value.keys() != schema.keys():
        return [f"{path}: {sorted(value) if isinstance(value, dict) else value!r}"]
    return [line for key in schema for line in misfits(value[key], schema[key], f"{path}.{key}")]


def test_follows_the_published_schema(name: str, tmp_path: Path) -> None:
    content = write(encoder_of(name), name, tmp_path / "c.pth")
    plan, weights = content["nnssl_adaptation_plan"], content["network_weights"]
    assert misfits(plan, SCHEMA) == []
    assert json.loads(json.dumps(plan)) == plan  # preprocess_like_nnssl writes it into a plans file
    for key in ("key_to_encoder", "key_to_stem"):
        assert any(found.startswith(plan[key] + ".") for found in weights), key
    projections = [weights[f"{key}.weight"] for key in plan["keys_to_in_proj"]]
    assert all(projection.shape[1] == 1 for projection in projections)
    assert not any(key.startswith(("module.", "_orig_mod.")) for key in weights)
    assert all(tensor.device.type == "cpu" for tensor in weights.values())
    for citation in content["citations"]:
        assert citation.keys() == {"type", "name", "apa_citations"}
        assert citation["apa_citations"]


def test_the_checker_sees_departures(name: str) -> None:
    plan = adaptation_plan(network_of(name), 1, VIEW, (3.0, 1.0, 0.75))
    assert misfits({key: value for key, value in plan.items() if key != "key_to_lpe"}, SCHEMA)
    assert misfits({**plan, "key_to_stem": None}, SCHEMA)
    assert misfits({**plan, "recommended_downstream_patchsize": (20, 24, 32)}, SCHEMA)


def stock_network(plan: dict[str, Any], channels: int = 1) -> nn.Module:
    """The network that nnU-Net builds.

    `preprocess_like_nnssl` moves ``architecture_plans`` into a plans file,
    `PretrainedTrainer.build_network_architecture` gives the three entries to `get_network_from_plans`.
    """
    described = json.loads(json.dumps(plan["architecture_plans"]))
    with pytest.warns(UserWarning, match="Attempting to locate it"):  # nnssl's short names are no import paths
        network: nn.Module = get_network_from_plans(
            described["arch_class_name"],
            described["arch_kwargs"],
            described["arch_kwargs_requiring_import"],
            channels,
            3,
            allow_init=True,
            deep_supervision=False,
        )
    return network


def _below(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) + 1 :]: value for key, value in weights.items() if key.startswith(prefix + ".")}


def load_as_nnunet_does(network: Any, content: dict[str, Any]) -> None:
    """`PretrainedTrainer.load_pretrained_weights` with as many channels as before.

    The weights below the checkpoint's two prefixes go, both strictly, into the modules that the network's class names.
    """
    plan, weights = content["nnssl_adaptation_plan"], content["network_weights"]
    for mine, its in (("key_to_encoder", network.key_to_encoder), ("key_to_stem", network.key_to_stem)):
        network.get_submodule(its).load_state_dict(_below(weights, plan[mine]), strict=True)


def test_the_stock_network_gets_every_weight_and_computes_the_same(name: str, tmp_path: Path) -> None:
    encoder = encoder_of(name)
    content = write(encoder, name, tmp_path / "c.pth")
    network: Any = stock_network(content["nnssl_adaptation_plan"]).eval()
    expected = {key: value for key, value in network.state_dict().items() if key.startswith("encoder.")}
    weights = content["network_weights"]
    assert {key: value.shape for key, value in weights.items()} == {k: v.shape for k, v in expected.items()}
    image = torch.randn(1, 1, *VIEW)
    before = network.encoder(image)
    load_as_nnunet_does(network, content)
    with torch.no_grad():
        maps, wanted = network.encoder(image), encoder(image)
    assert len(maps) == len(wanted) == 3
    assert all(torch.equal(a, b) for a, b in zip(maps, wanted, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(before, wanted, strict=True))


def test_the_stock_network_takes_float16_and_stays_float32(name: str, tmp_path: Path) -> None:
    encoder = encoder_of(name)
    save_checkpoint(halved(make(encoder, name)), tmp_path / "half.pth")
    content = torch.load(tmp_path / "half.pth", weights_only=True)
    assert any(value.dtype == torch.float16 for value in content["network_weights"].values())
    network: Any = stock_network(content["nnssl_adaptation_plan"])
    load_as_nnunet_does(network, content)
    for key, value in _below(network.state_dict(), "encoder").items():
        weight = encoder.state_dict()[key]
        assert value.dtype == torch.float32
        assert torch.equal(value, weight.half().float() if weight.ndim > 1 else weight), key


def test_a_patch_as_recommended_passes_the_stock_network(name: str) -> None:
    plan = adaptation_plan(network_of(name), 2, VIEW, None)
    patch = plan["recommended_downstream_patchsize"]
    assert plan["pretrain_plan"]["configurations"]["pgl"] == {"patch_size": [20, 24, 32], "spacing": None}
    assert plan["pretrain_num_input_channels"] == 2
    network = stock_network(plan, 2).train()
    assert network(torch.randn(1, 2, *patch)).shape == (1, 3, *patch)


@pytest.mark.parametrize(("view", "patch"), [((20, 24, 32), [20, 24, 32]), ((5, 31, 1), [6, 32, 8])])
def test_recommended_patch(view: tuple[int, int, int], patch: list[int]) -> None:
    """Strides are 2, 4, 4: rounded up to whole cells, at least two."""
    assert adaptation_plan(network_of("plain"), 1, view, None)["recommended_downstream_patchsize"] == patch


def test_stages_are_told_from_the_names(name: str, tmp_path: Path) -> None:
    """`DynamicPretrainedTrainer.load_pretrained_weights_dynamic`, without ``architecture_kwargs`` (`plan_like_dynamic`
    looks for them at the top, where nnssl does not write them), counts by the number that follows the prefix.
    """
    content = write(encoder_of(name), name, tmp_path / "c.pth")
    plan = content["nnssl_adaptation_plan"]
    assert "architecture_kwargs" not in plan
    heads = {key.split(".")[0] for key in _below(content["network_weights"], plan["key_to_encoder"])}
    assert heads == {"0", "1", "2"}


def test_tensors_of_two_names_are_stored_once(name: str, tmp_path: Path) -> None:
    encoder = encoder_of(name)
    path = tmp_path / "c.pth"
    weights = write(encoder, name, path)["network_weights"]
    size = sum(parameter.numel() * parameter.element_size() for parameter in encoder.parameters())
    stored = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in weights.values()}
    assert any(".all_modules." in key for key in weights)
    assert len(weights) > len(stored) == len(list(encoder.parameters()))
    assert sum(stored.values()) == size


def test_the_checkpoint_holds_copies(name: str) -> None:
    encoder = encoder_of(name)
    checkpoint = make(encoder, name)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    assert all(tensor.abs().sum() > 0 for tensor in checkpoint.encoder_weights.values())


def test_native_spacing_is_none(tmp_path: Path) -> None:
    """Then ``-am like_pretrained`` falls back to nnU-Net's spacing (`new_spacing_from_mode`)."""
    plan = write(encoder_of("plain"), "plain", tmp_path / "c.pth", spacing="native")["nnssl_adaptation_plan"]
    assert plan["pretrain_plan"]["configurations"]["pgl"]["spacing"] is None


def test_the_checkpoint_says_which_network_it_is_for(name: str, tmp_path: Path) -> None:
    architecture = write(encoder_of(name, 2), name, tmp_path / "c.pth")["pgl"]["architecture"]
    network = architecture.pop("network")
    assert PlannedNetwork.from_dict(network, "c.pth").to_dict() == network_of(name).to_dict()
    padding = {"centred": False, "padding": "zeros"}
    assert architecture == {"name": name, "norm": "instance", **padding, "strides": [2, 4, 4], "in_channels": 2}


def test_the_published_example() -> None:
    """ResEnc-L of six stages: 448 keys of 224 tensors, and the keyword arguments of the schema's example."""
    network = PlannedNetwork.from_preset("resenc_l", (128, 128, 128), (1.0, 1.0, 1.0))
    plan = adaptation_plan(network, 1, (64, 64, 64), (1.0, 1.0, 1.0))
    assert plan["architecture_plans"]["arch_class_name"] == "ResidualEncoderUNet"
    assert plan["architecture_plans"]["arch_kwargs"] == {
        **COMMON,
        "n_stages": 6,
        "features_per_stage": [32, 64, 128, 256, 320, 320],
        "kernel_sizes": [[3, 3, 3]] * 6,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * 5,
        "n_blocks_per_stage": [1, 3, 4, 6, 6, 6],
        "n_conv_per_stage_decoder": [1] * 5,
    }
    assert plan["key_to_encoder"] == "encoder.stages"
    assert plan["key_to_stem"] == "encoder.stem"
    assert plan["keys_to_in_proj"] == ["encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0"]
    assert plan["recommended_downstream_patchsize"] == [64, 64, 64]
    with torch.device("meta"):
        encoder = PlannedEncoder(network)
    assert len(encoder.state_dict()) == 448
    assert len(list(encoder.parameters())) == 224
