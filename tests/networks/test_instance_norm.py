"""Our instance norm against torch's, alone and inside networks, and that an activation in place costs no copies."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnunetv2_pgl.networks import PGLSegmenter, PlannedEncoder, PlannedSegmenter, ResNet50Encoder
from nnunetv2_pgl.networks.hardware import InstanceNorm3d, use_own_instance_norm
from tests.planned_networks import small_network


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
