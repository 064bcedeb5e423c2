"""One training step: pairs of views through the networks, the optimiser, the target path."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_pgl.methods import METHODS
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
        rank: Number of this process.
    """

    def __init__(
        self, config: PretrainConfig, steps: int, warmup: int, state: TrainingState, model: nn.Module, rank: int
    ):
        self.config, self.steps, self.warmup = config, steps, warmup
        self.state, self.model, self.rank = state, model, rank
        self.device = next(model.parameters()).device
        self.changes_intensity = METHODS[config.method].changes_intensity
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
        config, state = self.config, self.state
        power = DECAY_POWERS.get(config.optimizer_name)
        rate = learning_rate_at(number, self.steps, self.warmup, config.peak_learning_rate, power)
        set_learning_rate(state.optimizer, rate)
        seed = int(np.random.SeedSequence((config.seed, number, self.rank)).generate_state(1)[0])
        generator = torch.Generator(self.device).manual_seed(seed)
        outputs = []
        waited = 0.0
        for part in range(1, config.accumulate + 1):
            started = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - started
            views = batch.render(config.views.size, generator, self.changes_intensity)
            with ExitStack() as stack:
                if isinstance(self.model, DistributedDataParallel) and part < config.accumulate:
                    stack.enter_context(self.model.no_sync())  # gradients are exchanged with the last part alone
                output = self.model(views, batch.geometries, generator, **batch.drawn)
                loss = output.loss / config.accumulate
                (loss if state.scaler is None else state.scaler.scale(loss)).backward()
            outputs.append(torch.stack([value.detach().float() for value in output]))
        stepped, nan_if_not_finite = self._optimizer_step()
        state.optimizer.zero_grad(set_to_none=True)
        if stepped:
            state.objective.update_target(target_decay(number, self.steps, config.target_decay))
        return torch.stack(outputs).mean(dim=0) + nan_if_not_finite, waited

    def _optimizer_step(self) -> tuple[bool, Tensor | float]:
        """Whether the weights have changed, and 0, or NaN if the run cannot continue.

        In float16 the scale is raised until a gradient overflows; then it is halved and the weights stay, as does the
        target path, which follows them. All processes have the same gradients and do the same. A gradient that
        overflows although nothing is scaled up will not become finite.
        """
        optimizer, scaler = self.state.optimizer, self.state.scaler
        if scaler is not None and self.clip_norm is not None:
            scaler.unscale_(optimizer)
        norm: Tensor | float = 0.0
        if self.clip_norm is not None:
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        elif scaler is None:  # not finite if one gradient is not; stays on the device, which is not waited for
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            norm = torch.stack([norm.float() for norm in torch._foreach_norm(gradients)]).sum()
        if scaler is None:
            optimizer.step()
            return True, 0.0 * norm
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        stepped = scaler.get_scale() >= scale
        return stepped, math.nan if not stepped and scale <= 1 else 0.0
