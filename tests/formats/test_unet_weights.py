"""Files that hold the weights of one of nnU-Net's networks and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nnunetv2_pgl.checkpoint import load_checkpoint, load_encoder_network
from nnunetv2_pgl.formats.weights_only import CheckpointError
from nnunetv2_pgl.info.command import describe
from nnunetv2_pgl.networks import PlannedEncoder
from nnunetv2_pgl.transfer import load_encoder
from tests.formats.test_nnunet import Conv2dUNet, encoder_of, require_equal
from tests.formats.test_other_frameworks import require_line, saved
from tests.nnunet_models import nnunet_content
from tests.planned_networks import small_network


@pytest.mark.parametrize("nested", [None, "state_dict", "network_weights", "net", "student", "model"])
@pytest.mark.parametrize("kind", ["plain", "resenc"])
def test_weights_alone_tell_their_network(tmp_path: Path, kind: str, nested: str | None) -> None:
    """As VoCo's VoComni_nnunet.pt, whose loader looks in these places and takes off these prefixes."""
    anisotropic: dict[str, Any] = {
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "kernel_sizes": [[1, 3, 3]] + [[3] * 3] * 2,
    }
    network = small_network(kind, **anisotropic)
    content = nnunet_content(network)
    weights = {f"module.backbone.{key}": value for key, value in content["network_weights"].items()}
    checkpoint = load_checkpoint(saved(tmp_path, {nested: weights, "epoch": 3} if nested else weights))
    require_equal(checkpoint.encoder_weights, encoder_of(content))
    built = checkpoint.architecture["network"]["kwargs"]
    assert {key: built[key] for key in network.kwargs} == network.to_dict()["kwargs"]
    assert checkpoint.architecture["strides"] == [2, 4, 4]
    assert "weights alone" in "".join(describe(checkpoint))
    load_encoder_network(tmp_path / "given.pth")


def test_a_name_with_a_prefix_and_without_is_refused(tmp_path: Path) -> None:
    weights = nnunet_content(small_network("plain"))["network_weights"]
    name = next(iter(weights))
    require_line(saved(tmp_path, {f"module.{name}": weights[name] + 1, **weights}), f"holds {name} with a wrapper's")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_weights_of_few_bits_are_said_to_be_rounded(tmp_path: Path, kind: torch.dtype) -> None:
    weights = nnunet_content(small_network("plain"))["network_weights"]
    for given in (weights, {key: value.double() for key, value in weights.items()}):
        checkpoint = load_checkpoint(saved(tmp_path, given))
        assert "precision     float32" in describe(checkpoint)
        assert {value.dtype for value in checkpoint.encoder_weights.values()} == {torch.float32}
    checkpoint = load_checkpoint(saved(tmp_path, {key: value.to(kind) for key, value in weights.items()}))
    assert f"precision     rounded to {str(kind).removeprefix('torch.')}" in describe(checkpoint)
    assert {value.dtype for value in checkpoint.encoder_weights.values()} == {torch.float32}


def test_an_encoder_alone_has_no_strides(tmp_path: Path) -> None:
    content = nnunet_content(small_network("resenc"))
    weights = {key: value for key, value in content["network_weights"].items() if key.startswith("encoder.")}
    checkpoint = load_checkpoint(saved(tmp_path, weights))
    assert checkpoint.architecture["strides"] is None
    assert load_encoder(PlannedEncoder(small_network("resenc")), checkpoint.encoder_weights, "given.pth").share == 1
    with pytest.raises(CheckpointError, match="its architecture is not known here"):
        load_encoder_network(tmp_path / "given.pth")
    require_line(saved(tmp_path, Conv2dUNet().state_dict()), "a network of 2D convolutions")
    bottleneck = {**weights, "encoder.stages.0.blocks.0.conv3.conv.weight": torch.zeros(4, 4, 1, 1, 1)}
    require_line(saved(tmp_path, bottleneck), "neither nnU-Net's PlainConvUNet nor its ResidualEncoderUNet")
    repeated = {**weights, next(iter(weights)): torch.zeros(1).expand(4, 10**12)}
    require_line(saved(tmp_path, repeated), "network_weights is not a table of named tensors")
