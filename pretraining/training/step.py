"""One training step: pairs of views through both paths, the optimiser, the target path."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pretraining.objectives import target_decay
from pretraining.settings.config import PretrainConfig
from pretraining.training.optimisation import (
    DECAY_POWERS,
    GRADIENT_CLIP_NORMS,
    learning_rate_at,
    set_learning_rate,
)
from pretraining.training.state import TrainingState
from pretraining.views import ViewPairBatch


class Stepper:
    """Makes the steps of a run.

    Args:
        config: Settings of the run.
        steps: Steps of the whole run, which the schedules span.
        warmup: Steps of the learning rate's warm-up.
        state: Networks and optimiser, changed by every step.
        model: The objective, or its DistributedDataParallel.
        rank: This process.
    """

    def __init__(
        self, config: PretrainConfig, steps: int, warmup: int, state: TrainingState, model: nn.Module, rank: int
    ):
        self.config, self.steps, self.warmup = config, steps, warmup
        self.state, self.model, self.rank = state, model, rank
        self.device = next(model.parameters()).device
        self.clip_norm = GRADIENT_CLIP_NORMS.get(config.optimizer_name)

    def __call__(self, number: int, batches: Iterator[ViewPairBatch]) -> tuple[Tensor, float]:
        """Step ``number`` of the run.

        Args:
            number: From 0; schedules and random numbers follow from it.
            batches: Gives one for each part of the step, on the device.

        Returns:
            The values of the method's `Objective.output`, on the device, which is not waited for except in float16; all
            of them are NaN if a gradient was not finite (in float16, if no scale makes it finite). And the seconds
            waited for batches.
        """
        config, optimizer, objective = self.config, self.state.optimizer, self.state.objective
        power = DECAY_POWERS.get(config.optimizer_name)
        rate = learning_rate_at(number, self.steps, self.warmup, config.peak_learning_rate, power)
        set_learning_rate(optimizer, rate)
        generator = torch.Generator(self.device).manual_seed(self._seed(number))
        outputs = []
        waited = 0.0
        for part in range(config.accumulate):
            started = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - started
            views = batch.render(config.views.size, generator, objective.changes_intensity)
            with self._synchronised(last=part == config.accumulate - 1):
                output = self.model(views, batch.geometries, generator, **batch.drawn)
                loss = output.loss / config.accumulate
                (loss if self.state.scaler is None else self.state.scaler.scale(loss)).backward()
            outputs.append(torch.stack([value.detach().float() for value in output]))
        moved, spoilt = self._move()
        optimizer.zero_grad(set_to_none=True)
        if moved:
            objective.update_target(target_decay(number, self.steps, config.target_decay))
        return torch.stack(outputs).mean(dim=0) + spoilt, waited

    def _move(self) -> tuple[bool, Tensor | float]:
        """The optimiser's step; whether the weights have moved, and 0, or NaN if the run cannot go on.

        In float16 the scale is raised until a gradient overflows; then it is halved and the weights stay, as does the
        target path, which follows them. All processes have the same gradients and do the same. A gradient that
        overflows although nothing is scaled up will not become finite.
        """
        optimizer, scaler, largest = self.state.optimizer, self.state.scaler, self.clip_norm
        if scaler is None:
            norm = self._norm() if largest is None else nn.utils.clip_grad_norm_(self.model.parameters(), largest)
            optimizer.step()
            return True, 0.0 * norm
        scale = scaler.get_scale()
        if largest is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), largest)
        scaler.step(optimizer)
        scaler.update()
        moved = scaler.get_scale() >= scale
        return moved, math.nan if not moved and scale <= 1 else 0.0

    def _norm(self) -> Tensor:
        """Sum of the gradients' norms: not finite if one is not; on the device, which is not waited for."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return torch.stack([norm.float() for norm in torch._foreach_norm(gradients)]).sum()

    def _synchronised(self, last: bool) -> Any:
        """Gradients are exchanged only with the last part of a step."""
        if isinstance(self.model, DistributedDataParallel) and not last:
            return self.model.no_sync()
        return nullcontext()

    def _seed(self, number: int) -> int:
        return int(np.random.SeedSequence((self.config.seed, number, self.rank)).generate_state(1)[0])
