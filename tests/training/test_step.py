"""A step against one written out, and what becomes of gradients that are not finite."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_pgl.methods import METHODS
from pretraining.objectives import Objective
from pretraining.objectives.deformation_apply import DeformationBatch, deform
from pretraining.objectives.methods import OBJECTIVES
from pretraining.training.optimisation import GRADIENT_CLIP_NORMS
from pretraining.training.state import TrainingState, initial_state
from pretraining.training.step import Stepper
from pretraining.views import (
    IntensityRanges,
    ViewPairBatch,
    ViewPairDataset,
)
from tests.training.steps import CONFIG, STEPS, WARMUP, Scan, parts_of

DRAWN = IntensityRanges(noise_probability=1, blur_probability=0, brightness_probability=1, gamma_probability=0)
RATES = (0.5, 1.0, 1.0, 0.75)  # of the peak: two steps of warm-up, then a cosine over three
MOMENTUM, DECAY, RANK = 0.9, 0.2, 3


@dataclass
class StepsWrittenOut:
    """Steps of a method's networks: autograd for the gradient, all else by hand.

    Attributes:
        method: Its name.
        objective: Its networks, changed by every step.
        momentum: Of each trained weight.
    """

    method: str
    objective: Objective
    momentum: dict[str, Tensor] = field(default_factory=dict)

    def step(self, number: int, parts: Sequence[ViewPairBatch]) -> Tensor:
        """Gradient of the mean over the parts, momentum SGD with decay of weights, then the target path."""
        draws = np.random.SeedSequence((CONFIG.seed, number, RANK)).generate_state(1)
        generator = torch.Generator().manual_seed(int(draws[0]))
        outputs = []
        for part in parts:
            views = part.render(CONFIG.views.size, generator, METHODS[self.method].changes_intensity)
            outputs.append(torch.stack(list(self.objective(views, part.geometries, generator, **part.drawn))))
        values = torch.stack(outputs).mean(dim=0)
        trained = {name: p for name, p in self.objective.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(values[0], list(trained.values()))
        with torch.no_grad():
            for (name, weight), gradient in zip(trained.items(), gradients, strict=True):
                change = gradient + (DECAY * weight if weight.ndim > 1 else 0)
                self.momentum[name] = change + MOMENTUM * self.momentum.get(name, 0)
                weight -= 1e-2 * RATES[number] * self.momentum[name]
            tau = 1 - (1 - 0.9) * (math.cos(math.pi * number / STEPS) + 1) / 2
            weights = dict(self.objective.named_parameters())
            for name, weight in weights.items():
                if name.startswith("target_"):
                    weight.copy_(tau * weight + (1 - tau) * weights[name.removeprefix("target_")])
        return values.detach()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_are_those_written_out(method: str, accumulate: int) -> None:
    """Four steps: seed, rate, scale of the gradient, decay, order, tau of the step; and gradients are gone."""
    config = replace(CONFIG, method=method, accumulate=accumulate, optimizer="sgd", weight_decay=DECAY)
    config = replace(config, views=replace(config.views, intensity=DRAWN))
    state = initial_state(config, torch.device("cpu"), None)
    reference = StepsWrittenOut(method, copy.deepcopy(state.objective))
    stepper, batches = Stepper(config, STEPS, WARMUP, state, state.objective, RANK), parts_of(config, len(RATES))
    given = iter(batches)
    for number in range(len(RATES)):
        reference.objective.load_state_dict(state.objective.state_dict())  # so that rounding does not grow
        values, _ = stepper(number, given)
        assert all(p.grad is None for p in state.objective.parameters())
        expected = reference.step(number, batches[number * accumulate : (number + 1) * accumulate])
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)
        assert not values.requires_grad
        theirs = reference.objective.state_dict()
        for name, own in state.objective.state_dict().items():
            torch.testing.assert_close(own, theirs[name], rtol=1e-5, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")
    assert next(given, None) is None


@pytest.mark.parametrize("largest", [1e-2, 1e2])
def test_nnunets_steps_have_its_rates_and_clipped_gradients(monkeypatch: pytest.MonkeyPatch, largest: float) -> None:
    """All gradients together, whose norm here is between the two: one of them clips, the other does not."""
    monkeypatch.setitem(GRADIENT_CLIP_NORMS, "nnunet", largest)
    config = replace(CONFIG, method="mae", optimizer="nnunet")
    state = initial_state(config, torch.device("cpu"), None)
    free = initial_state(replace(config, optimizer="sgd"), torch.device("cpu"), None)
    given: list[Tensor] = []

    def gradients(state: TrainingState) -> Any:
        trained = [p for p in state.objective.parameters() if p.requires_grad]
        return lambda *_: given.append(torch.cat([p.grad.flatten() for p in trained if p.grad is not None]))

    for each, settings in ((state, config), (free, replace(config, optimizer="sgd"))):
        each.optimizer.register_step_pre_hook(gradients(each))
        Stepper(settings, STEPS, WARMUP, each, each.objective, 0)(3, iter(parts_of(config, 1)))
    clipped, whole = given
    assert 2e-2 < whole.norm() < 1e2
    torch.testing.assert_close(clipped, whole * min(1.0, largest / float(whole.norm())), rtol=1e-4, atol=1e-8)
    assert state.optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * (1 - 1 / 3) ** 0.9)
    assert GRADIENT_CLIP_NORMS.keys() == {"nnunet"}


def test_nnunets_gradients_are_clipped_to_12() -> None:
    """As its trainers do."""
    assert GRADIENT_CLIP_NORMS["nnunet"] == 12


def test_a_step_in_parts_is_the_step_at_once() -> None:
    """The same pairs; with running statistics, as norms see each part alone."""
    losses, weights = [], []
    for accumulate in (1, 2, 4):
        config = replace(CONFIG, accumulate=accumulate, optimizer="sgd")
        state = initial_state(config, torch.device("cpu"), None)
        state.objective.eval()
        values, _ = Stepper(config, STEPS, WARMUP, state, state.objective, 0)(0, iter(parts_of(config, 1)))
        losses.append(values[0])
        weights.append(torch.cat([p.detach().flatten() for p in state.objective.parameters()]))
    for loss, weight in zip(losses[1:], weights[1:], strict=True):
        torch.testing.assert_close(loss, losses[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(weight, weights[0], rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Grad strides do not match bucket view")
@pytest.mark.parametrize("accumulate", [1, 3])
def test_processes_exchange_the_gradient_of_all_parts_once(accumulate: int) -> None:
    """Asked of torch: a hook in the place of the exchange, which sees what would be sent."""
    config = replace(CONFIG, accumulate=accumulate, batch_size=6)
    state = initial_state(config, torch.device("cpu"), None)
    alone = initial_state(config, torch.device("cpu"), None)
    taken: list[int] = []
    sent: list[tuple[int, Tensor]] = []

    def given() -> Iterator[ViewPairBatch]:
        for number, part in enumerate(parts_of(config, 1)):
            taken.append(number)
            yield part

    def exchange(_: None, bucket):  # type: ignore[no-untyped-def]  # torch checks the annotations
        sent.append((taken[-1], bucket.buffer().clone()))
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        joined = DistributedDataParallel(state.objective)
        joined.register_comm_hook(None, exchange)
        Stepper(config, STEPS, WARMUP, state, joined, 0)(0, given())
    finally:
        torch.distributed.destroy_process_group()
    assert [part for part, _ in sent] == [accumulate - 1]
    gradients: list[Tensor] = []
    alone.optimizer.register_step_pre_hook(
        lambda *_: gradients.extend(p.grad.flatten() for p in alone.objective.parameters() if p.grad is not None)
    )
    Stepper(config, STEPS, WARMUP, alone, alone.objective, 0)(0, iter(parts_of(config, 1)))
    torch.testing.assert_close(sent[0][1].sort()[0], torch.cat(gradients).sort()[0])  # a bucket has an order of its own


def test_waiting_is_that_for_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only batches, 2 s each, and the networks, 5 s, move on."""
    clock = [100.0]
    monkeypatch.setattr("pretraining.training.step.time.perf_counter", lambda: clock[0])
    config = replace(CONFIG, accumulate=2)
    state = initial_state(config, torch.device("cpu"), None)

    def wait(seconds: float) -> None:
        clock[0] += seconds

    state.objective.register_forward_hook(lambda *_: wait(5))
    parts = ((wait(2), part)[1] for part in parts_of(config, 1))
    _, waited = Stepper(config, STEPS, WARMUP, state, state.objective, 0)(0, parts)
    assert waited == 4


def test_what_loading_processes_drew_reaches_the_method() -> None:
    config = replace(CONFIG, method="models_genesis")
    dataset = ViewPairDataset([Scan()], config.views, 0, OBJECTIVES["models_genesis"].objective.draw)
    batch = ViewPairBatch.collate([dataset[draw, 0] for draw in range(4)])
    state = initial_state(config, torch.device("cpu"), None)
    stepper = Stepper(config, STEPS, WARMUP, state, state.objective, 0)
    values, _ = stepper(2, iter([batch]))
    views = batch.render(config.views.size, changes_intensity=False)
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence((config.seed, 2, 0)).generate_state(1)[0]))
    deformed = deform(views, DeformationBatch(**batch.drawn), generator)
    assert float(values[1]) == pytest.approx(float((deformed - views).square().mean()), rel=1e-5)
    drawing = [method for method in METHODS if OBJECTIVES[method].objective.draw((2, 2, 2), np.random.default_rng(0))]
    assert drawing == ["models_genesis"]
