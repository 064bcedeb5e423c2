"""Memory formats of networks and of their inputs, and our instance norm against torch's; precision has its own file."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnunetv2_pgl.networks import Encoder, PGLSegmenter, PlannedEncoder, PlannedSegmenter, ResNet50Encoder
from nnunetv2_pgl.networks.hardware import InstanceNorm3d, lay_out, use_own_instance_norm
from tests.planned_networks import small_network

FIRST, LAST = torch.contiguous_format, torch.channels_last_3d
BATCH_NORM: Any = {"norm_op": "torch.nn.modules.batchnorm.BatchNorm3d"}


def encoder(kind: str, norm: Any) -> Encoder:
    if kind == "resnet":
        return ResNet50Encoder(norm=norm, blocks=(1, 1, 1, 1), widths=(4, 4, 4, 4))
    return PlannedEncoder(small_network(kind, **(BATCH_NORM if norm == "batch" else {})))


@pytest.mark.parametrize("kind", ["resnet", "plain", "resenc"])
@pytest.mark.parametrize(("norm", "expected"), [("batch", LAST), ("instance", FIRST)])
def test_the_norm_decides_where_nothing_is_averaged(kind: str, norm: str, expected: torch.memory_format) -> None:
    assert encoder(kind, norm).memory_format == (FIRST if kind == "resenc" else expected)


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_segmenters_have_the_format_of_their_encoder(norm: Any) -> None:
    planned = small_network(**(BATCH_NORM if norm == "batch" else {}))
    for network in (PGLSegmenter(1, 2, norm=norm), PlannedSegmenter(planned, 1, 2)):
        kernels = [p for p in network.parameters() if p.ndim == 5 and p.shape[1] > 1 and max(p.shape[2:]) > 1]
        assert {p.is_contiguous(memory_format=network.encoder.memory_format) for p in kernels} == {True}
        seen: list[Tensor] = []
        network.encoder.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0]))
        network(as_channels_last(torch.randn(2, 1, 16, 32, 32)))
        assert seen[0].stride(1) == (1 if norm == "batch" else 16 * 32 * 32)


def as_channels_last(x: Tensor) -> Tensor:
    """The same with the strides of channels last, which images of one channel may have too."""
    return x.permute(0, 2, 3, 4, 1).clone(memory_format=FIRST).permute(0, 4, 1, 2, 3)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("memory_format", [FIRST, LAST])
def test_laying_out_changes_memory_alone(channels: int, memory_format: torch.memory_format) -> None:
    x = torch.randn(2, channels, 3, 4, 5)
    for given in (x, as_channels_last(x)):
        laid_out = lay_out(given, memory_format)
        assert torch.equal(laid_out, x)
        assert laid_out.is_contiguous(memory_format=memory_format)
        if memory_format == FIRST:
            assert laid_out.stride() == x.stride()
        if channels == 1:
            assert laid_out.data_ptr() == given.data_ptr()


def copies_behind(output: Tensor) -> bool:
    """Whether its backward pass copies what was changed in place."""
    found, left = set(), [output.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in found:
            found.add(node)
            left += [following for following, _ in node.next_functions]
    return any("CopySlices" in node.name() for node in found)


@pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), nn.LeakyReLU(inplace=True)])
def test_it_is_torch_s_and_leaves_no_view_behind(activation: nn.Module) -> None:
    torch.manual_seed(0)
    plain = nn.InstanceNorm3d(3, affine=True, dtype=torch.float64)
    nn.init.normal_(plain.weight)
    nn.init.normal_(plain.bias)
    own = nn.Sequential(copy.deepcopy(plain), activation)
    use_own_instance_norm(own)
    views = [torch.randn(2, 3, 4, 5, 6, dtype=torch.float64, requires_grad=True)]
    views.append(views[0].detach().clone().requires_grad_())
    expected, got = activation(plain(views[0])), own(views[1])
    torch.testing.assert_close(got, expected)
    direction = torch.randn_like(got)
    of_plain = torch.autograd.grad(expected, (views[0], *plain.parameters()), direction, retain_graph=True)
    of_own = torch.autograd.grad(got, (views[1], *own.parameters()), direction, retain_graph=True)
    torch.testing.assert_close(of_own, of_plain)
    assert copies_behind(expected), "torch needs no help any more"
    assert not copies_behind(got)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ResNet50Encoder(norm="instance", blocks=(1, 1, 1, 1), widths=(4, 4, 4, 4)),
        lambda: PlannedEncoder(small_network("plain")),
        lambda: PlannedEncoder(small_network("resenc"), padding="replicate"),
        lambda: PlannedSegmenter(small_network("resenc"), 1, 1),
        lambda: PGLSegmenter(1, 1, norm="instance"),
    ],
)
def test_networks_use_it_under_the_same_names(make: Any) -> None:
    with torch.device("meta"):
        network = make()
    norms = {name for name, module in network.named_modules() if isinstance(module, nn.InstanceNorm3d)}
    assert norms == {name for name, module in network.named_modules() if type(module) is InstanceNorm3d}
    assert {f"{name}.{tensor}" for name in norms for tensor in ("weight", "bias")} <= set(network.state_dict())
    assert len(norms) > 2
