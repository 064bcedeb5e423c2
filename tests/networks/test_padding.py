"""Replicate padding against torch's and numpy's own."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunetv2_pgl.networks import (
    PlannedEncoder,
    ResNet50Encoder,
    padding,
    strided,
)
from nnunetv2_pgl.networks.padding import (
    PaddingName,
    ReplicateChannelsLast,
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
