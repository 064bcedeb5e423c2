"""Training in float16: the loss is scaled, and a gradient that overflows costs a step, not the run."""

from __future__ import annotations

import copy
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pretraining.objectives import PGL
from pretraining.settings.config import PretrainConfig
from pretraining.settings.table import RunOptions
from pretraining.training.optimisation import GRADIENT_CLIP_NORMS
from pretraining.training.pretrain import pretrain
from pretraining.training.run_folder import RunFolder
from pretraining.training.state import TrainingState, initial_state
from pretraining.training.step import Stepper
from pretraining.views import GeometryBatch
from tests.golden import make
from tests.training.test_step import CONFIG, parts_of

CPU = torch.device("cpu")
SGD = replace(CONFIG, optimizer="sgd", learning_rate=1e-3)
STEPS, WARMUP = 5, 1


def in_float16(config: PretrainConfig, scale: float) -> TrainingState:
    state = initial_state(config, CPU, torch.float16)
    assert state.scaler is not None
    state.scaler.load_state_dict({**state.scaler.state_dict(), "scale": scale})
    return state


def overflowing(state: TrainingState, value: float = math.inf) -> Any:
    """Every gradient of one weight has this value somewhere, until the hook is removed."""
    weight = next(p for p in state.objective.parameters() if p.requires_grad)
    return weight.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor(0), value))


def weights_of(state: TrainingState) -> list[Tensor]:
    """Of both paths."""
    return [parameter.detach().clone() for parameter in state.objective.parameters()]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_is_that_of_float32_whatever_the_scale(accumulate: int) -> None:
    config = replace(SGD, accumulate=accumulate)
    half, exact = in_float16(config, 64.0), initial_state(config, CPU, None)
    start = torch.cat([weight.flatten() for weight in weights_of(exact)])
    values, expected_values = (
        Stepper(config, STEPS, WARMUP, state, state.objective, 0)(0, iter(parts_of(config, 1)))[0]
        for state in (half, exact)
    )
    assert values.tolist() == pytest.approx(expected_values.tolist(), rel=0.02)
    moved, expected = (torch.cat([weight.flatten() for weight in weights_of(s)]) - start for s in (half, exact))
    assert 0 < (moved - expected).norm() < 0.05 * expected.norm()  # float16 has 11 bits
    assert half.scaler is not None
    assert half.scaler.get_scale() == 64


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars", "nnunet"])
def test_a_step_that_overflows_changes_nothing_but_the_scale(optimizer: str) -> None:
    config = replace(SGD, optimizer=optimizer)
    state = in_float16(config, 64.0)
    stepper, parts = Stepper(config, STEPS, WARMUP, state, state.objective, 0), iter(parts_of(config, 3))
    stepper(0, parts)
    before, momenta = weights_of(state), copy.deepcopy(state.optimizer.state_dict()["state"])
    hook = overflowing(state)
    values, _ = stepper(1, parts)
    assert values.isfinite().all()
    assert all(map(torch.equal, weights_of(state), before))
    for number, kept in momenta.items():
        now = state.optimizer.state_dict()["state"][number]
        assert all(torch.equal(now[name], value) for name, value in kept.items())
    assert state.scaler is not None
    assert state.scaler.get_scale() == 32
    assert all(parameter.grad is None for parameter in state.objective.parameters())

    hook.remove()
    stepper(2, parts)
    moved = [not torch.equal(one, other) for one, other in zip(weights_of(state), before, strict=True)]
    trained = [parameter.requires_grad for parameter in state.objective.parameters()]
    assert any(moved_ and not trains for moved_, trains in zip(moved, trained, strict=True)), "the target path"
    assert all(moved_ for moved_, trains in zip(moved, trained, strict=True) if trains)
    assert state.scaler.get_scale() == 32


@pytest.mark.parametrize("largest", [1e-3, 1e3])
def test_what_is_clipped_is_the_gradient_without_the_scale(monkeypatch: pytest.MonkeyPatch, largest: float) -> None:
    """The step of a scale of 64 is that of a scale of 1, whether or not something is clipped."""
    monkeypatch.setitem(GRADIENT_CLIP_NORMS, "nnunet", largest)
    config = replace(SGD, optimizer="nnunet", weight_decay=0.0)
    moves = []
    for scale in (1.0, 64.0):
        state = in_float16(config, scale)
        start = torch.cat([weight.flatten() for weight in weights_of(state)])
        Stepper(config, STEPS, 0, state, state.objective, 0)(0, iter(parts_of(config, 1)))
        moves.append(torch.cat([weight.flatten() for weight in weights_of(state)]) - start)
    assert 0 < (moves[1] - moves[0]).norm() < 0.05 * moves[0].norm()


@pytest.mark.parametrize(("scale", "ends"), [(2.0, False), (1.0, True)])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_gradient_that_no_scale_makes_finite_shows_in_all_values(value: float, scale: float, ends: bool) -> None:
    state = in_float16(SGD, scale)
    overflowing(state, value)
    values, _ = Stepper(SGD, STEPS, WARMUP, state, state.objective, 0)(0, iter(parts_of(SGD, 1)))
    assert values.isnan().tolist() == [ends] * len(values)


def test_a_loss_that_is_not_finite_shows_whatever_the_scale() -> None:
    state = in_float16(SGD, 2.0**16)
    state.objective.loss = lambda prediction, target, valid: (prediction * math.nan).sum()
    before = weights_of(state)
    values, _ = Stepper(SGD, STEPS, WARMUP, state, state.objective, 0)(0, iter(parts_of(SGD, 1)))
    assert values[0].isnan()
    assert all(map(torch.equal, weights_of(state), before))


def test_the_scale_is_part_of_the_state(tmp_path: Path) -> None:
    state = in_float16(SGD, 64.0)
    hook = overflowing(state)
    stepper, parts = Stepper(SGD, STEPS, WARMUP, state, state.objective, 0), iter(parts_of(SGD, 2))
    stepper(0, parts)
    hook.remove()
    stepper(1, parts)
    assert state.scaler is not None
    at_rest = state.scaler.state_dict()
    assert (at_rest["scale"], at_rest["_growth_tracker"]) == (32, 1)
    path = tmp_path / "checkpoint_latest.pth"
    torch.save(state.on_host(), path)
    again = initial_state(SGD, CPU, torch.float16)
    again.restore(path)
    assert again.scaler is not None
    assert again.scaler.state_dict() == at_rest

    content = torch.load(path, weights_only=True)
    del content["scaler"]  # as versions without float16 wrote it
    torch.save(content, path)
    older = initial_state(SGD, CPU, torch.float16)
    older.restore(path)
    assert older.scaler is not None
    assert older.scaler.get_scale() == 2.0**16
    assert all(map(torch.equal, weights_of(older), weights_of(state)))


def test_a_run_outlives_overflows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs of two steps, of which the second and the last overflow."""
    shutil.copytree(make.GOLDEN / "nnUNet_raw", tmp_path / "nnUNet_raw")
    calls: list[float] = []
    forward = PGL.forward

    def spoiling(self: PGL, views: Tensor, geometries: GeometryBatch, generator: torch.Generator | None = None) -> Any:
        output = forward(self, views, geometries, generator)
        if generator is None:  # memory is counted, on tensors without values
            return output
        if len(calls) % 2:
            output.loss.register_hook(lambda gradient: gradient * math.inf)
        calls.append(float(output.loss.detach()))
        return output

    monkeypatch.setattr(PGL, "forward", spoiling)
    config = replace(make.config(), method="pgl_nce", padding="replicate")
    with make.machine(tmp_path):
        monkeypatch.setattr("pretraining.training.loop.autocast_type", lambda device: torch.float16)
        pretrain(config, RunOptions("half", False, "cpu", 1, 1))
        folder = RunFolder.from_name("half")
    assert len(calls) == 4
    assert all(map(math.isfinite, calls))
    assert folder.final.exists()
    assert torch.load(folder.latest, weights_only=True)["scaler"]["scale"] <= 2.0**14
