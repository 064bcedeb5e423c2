"""Replicate padding against torch's and numpy's own; what features tell of the place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunetv2_pgl.checkpoint import load_checkpoint, load_encoder_network, save_checkpoint
from nnunetv2_pgl.info import describe
from nnunetv2_pgl.networks import (
    PLANNERS,
    Encoder,
    PlannedEncoder,
    PlannedNetwork,
    ResNet50Encoder,
    padding,
    strided,
)
from nnunetv2_pgl.networks.padding import (
    PaddingName,
    ReplicateChannelsLast,
    ReplicateConv3d,
    pad_by_replication,
    replicate_pad,
    require_padding,
)
from nnunetv2_pgl.networks.strided import StridedConv, fold_stride
from tests.planned_networks import small_network

ASYMMETRIC = ((0, 2), (1, 1), (3, 0))
PADS = [
    ASYMMETRIC,
    ((1, 1), (1, 1), (1, 1)),
    ((0, 2), (0, 2), (0, 2)),
    ((3, 3), (2, 4), (7, 9)),
    ((0, 0), (1, 0), (0, 0)),
]
GOLDEN = Path(__file__).parent.parent / "golden" / "nnUNet_results" / "PGL" / "golden" / "checkpoint_final.pth"


def torch_pad(x: Tensor, pads: padding.Pads) -> Tensor:
    return F.pad(x, [cells for pair in reversed(pads) for cells in pair], mode="replicate")


def channels_last(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last_3d)


def is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("pads", PADS)
@pytest.mark.parametrize("size", [(3, 4, 5), (1, 2, 1)])
def test_the_path_of_a_gpu_is_torch_s_padding(pads: padding.Pads, size: tuple[int, int, int]) -> None:
    """Values, gradients and memory layouts."""
    torch.manual_seed(0)
    x = channels_last(torch.randn(2, 3, *size, dtype=torch.float64)).requires_grad_()
    padded, expected = ReplicateChannelsLast.apply(x, pads), torch_pad(x, pads)
    assert torch.equal(padded, expected)
    assert is_channels_last(padded)
    direction = torch.randn_like(expected)
    for gradient in (channels_last(direction), direction.contiguous()):
        before = gradient.clone()
        (own,) = torch.autograd.grad(padded, x, gradient, retain_graph=True)
        (theirs,) = torch.autograd.grad(expected, x, gradient, retain_graph=True)
        torch.testing.assert_close(own, theirs)
        assert is_channels_last(own)
        assert torch.equal(gradient, before), "another's gradient was changed"


def test_gradients_by_differences() -> None:
    torch.manual_seed(0)
    x = channels_last(torch.randn(1, 2, 2, 3, 2, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ReplicateChannelsLast.apply(x, ASYMMETRIC), x)
    assert torch.autograd.gradcheck(lambda x: replicate_pad(x, ASYMMETRIC), x)


@pytest.mark.parametrize("pads", PADS)
def test_on_a_cpu_the_layout_stays(pads: padding.Pads) -> None:
    x = torch.randn(2, 3, 3, 4, 5)
    for laid_out in (x, channels_last(x)):
        padded = replicate_pad(laid_out.requires_grad_(), pads)
        assert torch.equal(padded, torch_pad(x, pads))
        assert is_channels_last(padded) == is_channels_last(laid_out)
        (gradient,) = torch.autograd.grad(padded, laid_out, torch.ones_like(padded))
        assert is_channels_last(gradient) == is_channels_last(laid_out)
    assert replicate_pad(x, ((0, 0), (0, 0), (0, 0))) is x


def test_on_a_gpu_the_layout_stays() -> None:
    """Without one: shapes and strides only."""
    with FakeTensorMode():
        x = torch.empty(2, 3, 3, 4, 5, device="cuda")
        assert replicate_pad(x, ASYMMETRIC).is_contiguous()
        padded = replicate_pad(channels_last(x), ASYMMETRIC)
        assert is_channels_last(padded)
        assert padded.shape == (2, 3, 5, 6, 8)


def test_other_paddings_are_named() -> None:
    for name in get_args(PaddingName):
        assert require_padding(name) == name
    other: Any = "reflect"
    for network in (lambda: ResNet50Encoder(padding=other), lambda: PlannedEncoder(small_network(), 1, other)):
        with pytest.raises(ValueError, match="padding must be 'zeros' or 'replicate', got 'reflect'"):
            network()


@pytest.mark.parametrize("padding_name", get_args(PaddingName))
@pytest.mark.parametrize("size", [(16, 32, 32), (17, 31, 20)])
@pytest.mark.parametrize("stride", [(1, 2, 2), (2, 2, 2)])
def test_folded_is_numpy_s_padding_and_a_plain_convolution(
    padding_name: PaddingName, size: tuple[int, int, int], stride: tuple[int, int, int]
) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 1, *size))
    weight = torch.from_numpy(rng.normal(size=(5, 1, 7, 7, 7)))
    pads = ((3, 3), (2, 4), (2, 4))
    plain = F.conv3d(edge(x, pads, padding_name), weight, stride=stride)
    folded = F.conv3d(*fold_stride(torch.from_numpy(x), weight, stride, pads, padding_name))
    torch.testing.assert_close(folded, plain)


def edge(x: Any, pads: padding.Pads, name: PaddingName = "replicate") -> Tensor:
    """Padded by numpy."""
    mode: Any = "edge" if name == "replicate" else "constant"
    return torch.from_numpy(np.pad(np.asarray(x), ((0, 0), (0, 0), *pads), mode=mode))


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


@pytest.mark.parametrize("shifted", [(False, False, False), (True, False, True)])
def test_the_folded_stem_in_half_precision(shifted: tuple[bool, bool, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    conv = StridedConv(1, 8, 7, (2, 2, 2), shifted, "replicate")
    x = torch.randn(2, 1, 8, 21, 24)
    pads = [(3 - shift, 3 + shift) for shift in map(int, shifted)]
    exact = F.conv3d(edge(x, pads).double(), conv.weight.double(), stride=2)
    torch.testing.assert_close(conv(x).double(), exact, atol=1e-5, rtol=1e-5)
    folds = []

    def counted(*arguments: Any) -> tuple[Tensor, Tensor]:
        folds.append(arguments)
        return fold_stride(*arguments)

    monkeypatch.setattr(strided, "fold_stride", counted)
    with torch.autocast("cpu", torch.bfloat16):
        folded = conv(x)
    assert len(folds) == 1
    assert folded.dtype == torch.bfloat16
    torch.testing.assert_close(folded.double(), exact, atol=0.02, rtol=0.01)


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


def test_a_replicating_convolution_is_torch_s() -> None:
    torch.manual_seed(0)
    options: Any = {
        "stride": (1, 2, 2),
        "padding": (1, 0, 3),
        "dilation": (1, 1, 2),
        "groups": 2,
        "dtype": torch.float64,
    }
    expected = nn.Conv3d(4, 6, (3, 1, 5), padding_mode="replicate", **options)
    network = nn.Sequential(nn.Conv3d(4, 6, (3, 1, 5), **options), nn.Conv3d(6, 6, 1, dtype=torch.float64))
    network[0].load_state_dict(expected.state_dict())
    pad_by_replication(network)
    x = torch.randn(2, 4, 5, 6, 7, dtype=torch.float64)
    torch.testing.assert_close(network[0](x), expected(x))
    assert type(network[1]) is nn.Conv3d


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
