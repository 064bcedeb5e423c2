"""The GPU that is not there: it computes what torch does, and sees what it is there to see."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.fake_backward import BackwardEngine
from benchmarks.fake_gpu import GPU, HALF, Watch, fake_gpu
from nnunetv2_pgl.networks.aspp import DepthwiseConv
from pretraining.training.footprint import MemoryCounter


class Everything(nn.Module):
    """What makes a backward pass difficult: branches, changes in place, own functions, types, sums over what spread."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(2, 4, 3, padding=1)
        self.norm = nn.InstanceNorm3d(4, affine=True)
        self.own = DepthwiseConv(4)
        self.scale = nn.Parameter(torch.randn(4, 1, 1, 1))
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.conv(x)), inplace=True)
        first, second = self.own(y).chunk(2)
        y = torch.cat((first.double().roll(1, 0), second * self.scale)) + y[:, :, :1]
        return y.std() + (y @ y.transpose(3, 4)).mean()


def test_gradients_are_torch_s_own() -> None:
    torch.manual_seed(0)
    network, x, graph = Everything(), torch.randn(4, 2, 4, 5, 6), BackwardEngine()
    network(x).backward()
    expected = [p.grad for p in network.parameters()]
    network.zero_grad(set_to_none=True)
    for times in (1, 2):  # they add up
        with saved_tensors_hooks(graph.keep, graph.give):
            graph.backward(network(x))
        for parameter, gradient in zip(network.parameters(), expected, strict=True):
            if gradient is None:
                assert parameter.grad is None
            else:
                torch.testing.assert_close(parameter.grad, times * gradient)


def peak(graph: BackwardEngine | None) -> int:
    """Most bytes of a forward and backward pass of a chain that keeps much, by torch's engine or by our own."""
    chain: Any = nn.Sequential(*(nn.Sequential(nn.Conv3d(8, 8, 3, padding=1), nn.BatchNorm3d(8)) for _ in range(6)))
    hooks: AbstractContextManager[Any] = saved_tensors_hooks(graph.keep, graph.give) if graph else nullcontext()
    with FakeTensorMode(allow_non_fake_inputs=True), hooks, MemoryCounter() as counter:
        y = x = torch.empty(4, 8, 16, 16, 16)
        for layer in chain:
            y = y + F.relu(layer(y), inplace=True)
        loss = (y * x).sum()
        del y, x
        graph.backward(loss) if graph else loss.backward()
    return counter.peak


def test_memory_is_that_of_torch_s_engine() -> None:
    assert peak(BackwardEngine()) == pytest.approx(peak(None), rel=0.01)


@pytest.mark.parametrize(
    ("wait", "error"),
    [
        (lambda x: x.sum().item(), DataDependentOutputException),
        (lambda x: bool((x > 0).any()), DataDependentOutputException),
        (lambda x: x[x > 0], DynamicOutputShapeException),
        (lambda x: x.nonzero(), DynamicOutputShapeException),
    ],
)
def test_what_depends_on_values_fails(wait: Callable[[Tensor], Any], error: type[Exception]) -> None:
    with fake_gpu(), pytest.raises(error):
        wait(torch.empty(3, 4, device=GPU))


@pytest.mark.parametrize(
    ("move", "waits"),
    [
        (lambda x: x.cpu(), ["cuda to cpu, (3, 4)"]),
        (lambda x: x.to("cpu", non_blocking=True), ["cuda to cpu, (3, 4)"]),
        (lambda x: torch.zeros(3, 4).copy_(x, True), ["cuda to cpu, (3, 4)"]),
        (lambda x: torch.zeros(2).to(GPU), ["cpu to cuda, (2,)"]),
        (lambda x: x[0].copy_(torch.zeros(4)), ["cpu to cuda, (4,)"]),
        (lambda x: torch.tensor([1.0, 2.0], device=GPU), ["cpu to cuda, (2,)"]),
        (lambda x: torch.zeros(2).to(GPU, non_blocking=True), []),
        (lambda x: x[0].copy_(torch.zeros(4), True), []),
        (lambda x: x.double().to(GPU), []),
    ],
)
def test_moves_are_seen(move: Callable[[Tensor], Any], waits: list[str]) -> None:
    with fake_gpu() as watch:
        move(torch.empty(3, 4, device=GPU))
    assert watch.waits == waits


def seen(function: Callable[[Tensor], Any], channels_last: bool) -> Watch:
    with fake_gpu() as watch:
        x = torch.empty(2, 8, 4, 5, 6, device=GPU, dtype=HALF)
        x = x.to(memory_format=torch.channels_last_3d) if channels_last else x
        watch.forget()
        function(x)
    return watch


@pytest.mark.parametrize(
    ("function", "channels_last", "count"),
    [
        (lambda x: F.instance_norm(x), True, 1),
        (lambda x: F.instance_norm(x), False, 0),
        (lambda x: F.conv3d(x, torch.empty(8, 8, 3, 3, 3, device=GPU, dtype=HALF)), True, 0),
        (lambda x: F.conv3d(x, torch.empty(8, 8, 3, 3, 3, device=GPU, dtype=HALF)), False, 0),
        (lambda x: F.conv3d(x, torch.empty(8, 3, 3, 3, 8, device=GPU, dtype=HALF).permute(0, 4, 1, 2, 3)), False, 1),
        (lambda x: F.pad(x, [1] * 6, mode="replicate"), True, 1),
        (lambda x: x.permute(0, 1, 4, 3, 2), False, 0),
        (lambda x: x.clone(), True, 0),
    ],
)
def test_layout_copies_are_seen(function: Callable[[Tensor], Any], channels_last: bool, count: int) -> None:
    assert len(seen(function, channels_last).layout_copies) == count


def test_products_and_operations_are_counted() -> None:
    watch = seen(lambda x: x.view(16, 20, 6) @ x.view(16, 6, 20), channels_last=False)
    assert watch.products == [16]
    assert watch.operations == ["bmm"]  # views are none
