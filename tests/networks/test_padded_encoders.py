"""Encoders that pad by replication: what each convolution sees, and what features tell of the place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from nnunetv2_pgl.checkpoint import load_checkpoint, load_encoder_network, save_checkpoint
from nnunetv2_pgl.info.command import describe
from nnunetv2_pgl.networks import (
    PLANNERS,
    Encoder,
    PlannedEncoder,
    PlannedNetwork,
    ResNet50Encoder,
)
from nnunetv2_pgl.networks.padding import (
    PaddingName,
    ReplicateConv3d,
)
from nnunetv2_pgl.networks.strided import StridedConv
from tests.networks.test_padding import edge
from tests.planned_networks import small_network

GOLDEN = Path(__file__).parent.parent / "golden" / "nnUNet_results" / "PGL" / "golden" / "checkpoint_final.pth"
SMALL: Any = {"blocks": (2, 2, 2, 2), "widths": (4, 4, 6, 8)}  # ResNets of few weights


def observed(encoder: nn.Module, x: Tensor) -> Iterator[tuple[str, nn.Conv3d, Tensor, Tensor]]:
    """Name, convolution, input and output of all that pad, in a pass through the encoder."""
    found: list[tuple[str, nn.Conv3d, Tensor, Tensor]] = []
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Conv3d) and max(module.kernel_size) > 1:
            module.register_forward_hook(lambda m, i, o, n=name: found.append((n, m, i[0].clone(), o.clone())))
    with torch.no_grad():
        encoder(x)
    yield from found


@pytest.mark.parametrize("strides", [(8, 16, 16), (2, 8, 4), (1, 16, 1)])
@pytest.mark.parametrize("centred", [True, False])
def test_each_convolution_of_the_resnet_sees_its_outermost_cells_again(
    strides: tuple[int, int, int], centred: bool
) -> None:
    """torch's own replicate padding where cells are not shifted, numpy's and a convolution without where they are."""
    torch.manual_seed(0)
    encoder = ResNet50Encoder(1, strides, centred=centred, padding="replicate", **SMALL).double().eval()
    shifted = set()
    for name, conv, x, output in observed(encoder, torch.randn(1, 1, 9, 33, 32, dtype=torch.float64)):
        assert isinstance(conv, StridedConv)
        half = conv.kernel_size[0] // 2
        if any(conv.shifted):
            shifted.add(name)
            pads = [(half - shift, half + shift) for shift in map(int, conv.shifted)]
            expected = F.conv3d(edge(x, pads), conv.weight, stride=conv.stride)
        else:
            sizes: Any = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, half)
            how: Any = {"bias": False, "padding_mode": "replicate", "dtype": torch.float64}
            reference = nn.Conv3d(*sizes, **how)
            reference.load_state_dict(conv.state_dict())
            expected = reference(x)
        torch.testing.assert_close(output, expected, msg=lambda text: f"{name}: {text}")  # noqa: B023
    assert bool(shifted) == (centred and strides != (1, 16, 1)) or shifted == {"stage3.0.conv2"}


def unlike_cells(encoder: Encoder, size: tuple[int, int, int]) -> list[float]:
    """How far the features of a view of one value differ from cell to cell, for each map."""
    encoder.eval().double()
    with torch.no_grad():
        maps = encoder(torch.full((1, 1, *size), 0.7, dtype=torch.float64))
    return [float((cells - cells.mean(dim=(2, 3, 4), keepdim=True)).abs().max() / cells.abs().max()) for cells in maps]


@pytest.mark.parametrize("strides", [(8, 16, 16), (4, 8, 2), (16, 1, 16)])
@pytest.mark.parametrize("centred", [True, False])
def test_a_view_of_one_value_is_alike_in_every_cell(strides: tuple[int, int, int], centred: bool) -> None:
    """Nothing tells the place, at even and odd sizes; with zeros it shows in every map."""
    torch.manual_seed(0)
    replicate, zeros = (ResNet50Encoder(1, strides, "batch", centred, name, **SMALL) for name in ("replicate", "zeros"))
    zeros.load_state_dict(replicate.state_dict())
    for size in ((16, 32, 32), (17, 33, 35)):
        assert max(unlike_cells(replicate, size)) < 1e-9
        assert min(unlike_cells(zeros, size)) > 1e-3


@pytest.mark.parametrize("kind", ["plain", "resenc"])
def test_so_it_is_in_nnunets_encoders(kind: str) -> None:
    """With batch norm: instance norm would blow up the rounding that is left of a view of one value."""
    torch.manual_seed(0)
    batch_norm: Any = {"norm_op": "torch.nn.modules.batchnorm.BatchNorm3d"}
    network = small_network(kind, **batch_norm)
    replicate, zeros = (PlannedEncoder(network, 1, name) for name in ("replicate", "zeros"))
    zeros.load_state_dict(replicate.state_dict())
    assert max(unlike_cells(replicate, (8, 16, 16))) < 1e-9
    assert min(unlike_cells(zeros, (8, 16, 16))) > 1e-3


@pytest.mark.parametrize("name", PLANNERS)
def test_no_convolution_of_nnunets_presets_pads_with_zeros(name: str) -> None:
    network = PlannedNetwork.from_preset(name, (16, 96, 96), (3.0, 1.0, 1.0))
    with torch.device("meta"):
        encoder, stock = PlannedEncoder(network, 1, "replicate"), PlannedEncoder(network, 1)
    padded = [
        module for module in encoder.modules() if getattr(module, "padding", 0) not in (0, (0, 0, 0), "replicate")
    ]
    assert {type(module) for module in padded} == {ReplicateConv3d}
    assert len(padded) == sum(type(m) is nn.Conv3d and max(m.kernel_size) > 1 for m in stock.modules()) > 5
    assert not any(isinstance(module, ReplicateConv3d) for module in stock.modules())
    shapes = [{key: value.shape for key, value in one.state_dict().items()} for one in (encoder, stock)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("is_resnet", [True, False])
def test_weights_and_places_do_not_depend_on_the_padding(is_resnet: bool) -> None:
    def make(name: PaddingName) -> Encoder:
        return ResNet50Encoder(padding=name, **SMALL) if is_resnet else PlannedEncoder(small_network(), 1, name)

    replicate, zeros = make("replicate"), make("zeros")
    assert {k: v.shape for k, v in replicate.state_dict().items()} == {
        k: v.shape for k, v in zeros.state_dict().items()
    }
    assert (replicate.padding, zeros.padding) == ("replicate", "zeros")
    zeros.load_state_dict(replicate.state_dict(), strict=True)
    replicate.load_state_dict(zeros.state_dict(), strict=True)
    for stage in range(len(zeros.stage_strides)):
        assert replicate.feature_grid((16, 64, 64), stage) == zeros.feature_grid((16, 64, 64), stage)
    x = torch.randn(1, 1, 16, 64, 64)
    replicate.eval(), zeros.eval()
    with torch.no_grad():
        for own, other in zip(replicate(x), zeros(x), strict=True):
            assert own.shape == other.shape
            assert not torch.equal(own, other)


def test_a_checkpoint_tells_its_padding_and_older_ones_pad_with_zeros(tmp_path: Path) -> None:
    older = load_checkpoint(GOLDEN)
    assert "padding" not in older.architecture
    stock, _ = load_encoder_network(GOLDEN)
    assert stock.padding == "zeros"
    assert not any(isinstance(module, ReplicateConv3d) for module in stock.modules())
    older.pgl["architecture"]["padding"] = "replicate"
    path = tmp_path / "checkpoint_final.pth"
    save_checkpoint(older, path)
    encoder, checkpoint = load_encoder_network(path)
    assert encoder.padding == "replicate"
    assert any(isinstance(module, ReplicateConv3d) for module in encoder.modules())
    (line,) = (line for line in describe(checkpoint) if line.startswith("encoder"))
    assert "padding replicate" in line
    assert all(torch.equal(value, encoder.state_dict()[key]) for key, value in stock.state_dict().items())
