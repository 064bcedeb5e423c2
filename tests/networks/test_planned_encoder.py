"""Encoders of nnU-Net's networks against nnU-Net's own, and where their cells sit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nnunetv2_pgl.networks import (
    PlannedEncoder,
    PlannedSegmenter,
    ResNet50Encoder,
)
from tests.networks.test_planned import network_of

both = pytest.mark.parametrize("kind", ["PlainConvUNet", "ResidualEncoderUNet"])


@both
def test_encoder_is_that_of_nnunets_network(kind: str) -> None:
    encoder = PlannedEncoder(network_of(kind), 2)
    stock = network_of(kind).build(2, 3)
    weights = {key.removeprefix("encoder."): v for key, v in stock.state_dict().items() if key.startswith("encoder.")}
    encoder.load_state_dict(weights, strict=True)
    x = torch.randn(1, 2, 8, 16, 16)
    for own, theirs in zip(encoder(x), stock.encoder(x), strict=True):  # type: ignore[operator]
        assert torch.equal(own, theirs)
    assert [tuple(x.shape[2:]) for x in encoder(x)] == [
        tuple(n // s for n, s in zip((8, 16, 16), strides, strict=True)) for strides in encoder.stage_strides
    ]
    assert [m.shape[1] for m in encoder(x)] == list(encoder.stage_channels)


@both
def test_what_lies_beyond_a_level_does_not_matter_to_it(kind: str) -> None:
    encoder = PlannedEncoder(network_of(kind))
    x = torch.randn(1, 1, 8, 16, 16)
    encoder(x, 1)[-1].sum().backward()
    beyond = {id(p) for stage in encoder.modules_after(1) for p in stage.parameters()}
    assert beyond == {id(p) for p in encoder.parameters() if p.grad is None}
    assert len(encoder(x, 1)) == 2
    assert encoder.modules_after(-1) == []


def test_levels_of_the_resnet() -> None:
    encoder = ResNet50Encoder()
    assert encoder.modules_after(3) == []
    assert encoder.modules_after(1) == [encoder.stage2, encoder.stage3, encoder.stage4]
    assert encoder.modules_after(0)[:2] == [encoder.pool, encoder.stage1]


class Linear(nn.Module):
    """Stands for a norm or an activation where only places matter."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def centroid(encoder: PlannedEncoder, stage: int, size: int) -> list[float]:
    """Where a cell in the middle of a map looks, in voxels from its corner: the centroid of its receptive field."""
    x = torch.zeros(1, 1, size, size, size, requires_grad=True)
    features = encoder(x, stage)[stage]
    middle = [n // 2 for n in features.shape[2:]]
    features[0, :, middle[0], middle[1], middle[2]].sum().backward()
    assert x.grad is not None
    weights = x.grad[0, 0].abs()
    places = torch.arange(size) + 0.5
    found = []
    for axis in range(3):
        profile = weights.sum(dim=[a for a in range(3) if a != axis])
        found.append(
            float((profile * places).sum() / profile.sum()) - encoder.stage_strides[stage][axis] * middle[axis]
        )
    return found


def with_positive_weights(encoder: PlannedEncoder, branches: float) -> PlannedEncoder:
    """All weights positive, no norms: what is left is where they look. ``branches`` scales the residual branches."""
    for module in encoder.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.InstanceNorm3d | nn.LeakyReLU):
                setattr(module, name, Linear())
        if hasattr(module, "all_modules"):
            module.all_modules = nn.Sequential(*(c for c in module.all_modules if isinstance(c, nn.Conv3d)))
        if isinstance(module, nn.Conv3d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for name, module in encoder.named_modules():
        if name.endswith("conv2") and encoder.network.is_residual:
            module.all_modules[0].weight.data *= branches  # type: ignore[union-attr, index, operator]
    return encoder


def test_places_of_plain_cells_are_the_centroids_of_their_receptive_fields() -> None:
    encoder = with_positive_weights(PlannedEncoder(network_of("PlainConvUNet")), 1)
    for stage in range(4):
        assert centroid(encoder, stage, 48) == pytest.approx(encoder.feature_grid((48,) * 3, stage).offset, abs=1e-3)


def test_places_of_residual_cells_lie_in_the_middle_of_what_shortcuts_and_branches_alone_give() -> None:
    network = network_of("ResidualEncoderUNet")
    shortcuts = with_positive_weights(PlannedEncoder(network), 0)
    branches = with_positive_weights(PlannedEncoder(network), 1e6)
    for stage in range(4):
        strides = network.strides[stage]
        first, last = centroid(shortcuts, stage, 48), centroid(branches, stage, 48)
        assert first == pytest.approx([stride / 2 for stride in strides], abs=1e-3)
        assert last == pytest.approx([0.5] * 3, abs=0.05)
        middle = [(a + b) / 2 for a, b in zip(first, last, strict=True)]
        assert shortcuts.feature_grid((48,) * 3, stage).offset == pytest.approx(middle, abs=0.05)


@both
def test_segmenter_is_nnunets_network(kind: str) -> None:
    network = network_of(kind)
    segmenter, stock = PlannedSegmenter(network, 1, 2), network.build(1, 2)
    own = segmenter.state_dict()
    theirs = {key: value for key, value in stock.state_dict().items() if not key.startswith("decoder.encoder.")}
    assert own.keys() == theirs.keys()
    segmenter.load_state_dict(theirs)
    x = torch.randn(1, 1, 8, 16, 16)
    assert torch.equal(segmenter(x), stock(x))
    assert len(set(map(id, segmenter.parameters()))) == len(list(segmenter.parameters()))
