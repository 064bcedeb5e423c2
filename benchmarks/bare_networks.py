"""Encoder and heads alone: the arithmetic that a training step cannot do without."""

from __future__ import annotations

import copy
import time
from statistics import median

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.report import synchronise
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
        calls: list[tuple[nn.Module, torch.Size]] = []
        convolutions = [module for module in self.objective.modules() if isinstance(module, nn.Conv3d)]
        hooks = [
            conv.register_forward_hook(lambda m, args, out: calls.append((m, args[0].shape))) for conv in convolutions
        ]
        with torch.no_grad():
            self._forward(self.objective, self.views)
        for hook in hooks:
            hook.remove()
        return sum(self._seconds(module, shape, rounds) for module, shape in calls)

    def _seconds(self, module: nn.Module, shape: torch.Size, rounds: int) -> float:
        trains = next(module.parameters()).requires_grad
        dtype = self.precision or torch.float32
        x = self.objective.laid_out(torch.randn(shape, device=self.device, dtype=dtype))
        x.requires_grad_(trains and shape[1] > 1)  # nobody asks for the image's gradient
        seconds = []
        for _ in range(rounds + 1):
            synchronise(self.device)
            started = time.perf_counter()
            with torch.set_grad_enabled(trains), self._autocast():
                out = module(x)
            if trains:
                out.backward(out.detach())
            synchronise(self.device)
            seconds.append(time.perf_counter() - started)
            module.zero_grad(set_to_none=True)
        return median(seconds[1:])

    def _forward(self, objective: PGL, views: Tensor, counting: bool = False) -> Tensor:
        with self._autocast(not counting):
            prediction: Tensor = objective.predictors[0](objective.projectors[0](objective.encoder(views)[-1]))
            with torch.no_grad():
                objective.target_projectors[0](objective.target_encoder(views)[-1])
        return prediction

    def _autocast(self, enabled: bool = True) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.precision, enabled=enabled and self.precision is not None)
