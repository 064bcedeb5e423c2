"""Encoder and heads alone: the arithmetic that a training step cannot do without."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.report import synchronise
from nnunetv2_pgl.networks.hardware import lay_out
from pretraining.objectives import PGL


class BareNetworks:
    """Both paths of an objective on views that are already in place.

    Args:
        objective: Whose networks are used, as they are.
        pairs: Pairs per step.
        view_size: (z, y, x).
        precision: Autocast type, None for float32.
    """

    def __init__(self, objective: PGL, pairs: int, view_size: tuple[int, int, int], precision: torch.dtype | None):
        self.objective, self.precision = objective, precision
        self.device = next(objective.parameters()).device
        views = torch.randn(2 * pairs, 1, *view_size, device=self.device)
        self.views = objective.laid_out(views)

    def step(self) -> None:
        """Online path forward and backward, target path forward."""
        prediction = self._forward(self.objective, self.views)
        prediction.backward(torch.ones_like(prediction))
        self.objective.zero_grad(set_to_none=True)

    def flop(self) -> int:
        """Multiplications and additions of `step`, counted in float32 (where the stem is the plain convolution)."""
        objective = copy.deepcopy(self.objective).to("meta")
        with FlopCounterMode(display=False) as counter:
            prediction = self._forward(objective, self.views[:2].to("meta"), counting=True)
            prediction.backward(torch.ones_like(prediction))
        return counter.get_total_flops() * len(self.views) // 2

    def seconds_of_convolutions(self, rounds: int = 3) -> float:
        """Each convolution alone, as often and in the passes in which `step` needs it, added up."""
        with torch.no_grad(), calls_of(self.objective, nn.Conv3d) as calls:
            self._forward(self.objective, self.views)
        dtype = self.precision or torch.float32
        layout = self.objective.encoder.memory_format
        return sum(layer_seconds(layer, shape, dtype, layout, rounds) for layer, shape in calls)

    def _forward(self, objective: PGL, views: Tensor, counting: bool = False) -> Tensor:
        with self._autocast(not counting):
            prediction: Tensor = objective.predictors[0](objective.projectors[0](objective.encoder(views)[-1]))
            with torch.no_grad():
                objective.target_projectors[0](objective.target_encoder(views)[-1])
        return prediction

    def _autocast(self, enabled: bool = True) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.precision, enabled=enabled and self.precision is not None)


@contextmanager
def calls_of(network: nn.Module, kind: type[nn.Module]) -> Iterator[list[tuple[nn.Module, torch.Size]]]:
    """Layers of a kind and the shape of their input, in the order in which they are called meanwhile."""
    calls: list[tuple[nn.Module, torch.Size]] = []
    layers = [module for module in network.modules() if isinstance(module, kind)]
    hooks = [layer.register_forward_hook(lambda m, args, out: calls.append((m, args[0].shape))) for layer in layers]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def layer_seconds(
    layer: nn.Module,
    shape: torch.Size,
    dtype: torch.dtype,
    layout: torch.memory_format,
    rounds: int = 3,
) -> float:
    """Seconds of a convolution on its own: forward, and backward if it trains.

    Args:
        layer: A convolution.
        shape: Of its input, (B, C, D, H, W).
        dtype: Of its input; weights are cast to it by autocast.
        layout: Memory format of its input; that of the weights is the layer's.
        rounds: Measured, after one that is not; the median counts.
    """
    device = next(layer.parameters()).device
    trains = next(layer.parameters()).requires_grad
    x = lay_out(torch.randn(shape, device=device, dtype=dtype), layout)
    x.requires_grad_(trains and shape[1] > 1)  # nobody asks for the image's gradient
    autocast = torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
    seconds = []
    for _ in range(rounds + 1):
        synchronise(device)
        started = time.perf_counter()
        with torch.set_grad_enabled(trains), autocast:
            out = layer(x)
        if trains:
            out.backward(out.detach())
        synchronise(device)
        seconds.append(time.perf_counter() - started)
        layer.zero_grad(set_to_none=True)
    return median(seconds[1:])
