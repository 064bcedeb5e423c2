"""A gradient that is not finite: it shows in what a step returns, and stops the run before anything is saved."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.networks import ResNet50Encoder
from pretraining.objectives import PGL, local_contrastive_loss
from pretraining.settings.table import RunOptions
from pretraining.training.pretrain import pretrain
from pretraining.training.run_folder import RunFolder
from pretraining.training.state import initial_state
from pretraining.training.step import Stepper
from pretraining.views import (
    GeometryBatch,
    sample_view_pair,
)
from tests.golden import make
from tests.training.steps import CONFIG, STEPS, WARMUP, parts_of


def test_a_gradient_that_is_not_finite_shows_although_it_is_clipped() -> None:
    config = replace(CONFIG, method="mae", optimizer="nnunet")
    state = initial_state(config, torch.device("cpu"), None)
    weight = next(p for p in state.objective.parameters() if p.requires_grad)
    weight.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor(0), math.inf))
    values, _ = Stepper(config, STEPS, WARMUP, state, state.objective, 0)(0, iter(parts_of(config, 1)))
    assert values.isnan().all()


@pytest.mark.parametrize("which", [0, -1])
@pytest.mark.parametrize("value", [math.inf, math.nan, 1.0])
def test_a_gradient_that_is_not_finite_shows_in_all_values(value: float, which: int) -> None:
    state = initial_state(CONFIG, torch.device("cpu"), None)
    weight = [p for p in state.objective.parameters() if p.requires_grad][which]

    def spoil(gradient: Tensor) -> Tensor:
        return torch.where(torch.arange(gradient.numel()).view_as(gradient) == 3, value, gradient)

    weight.register_hook(spoil)
    values, _ = Stepper(CONFIG, STEPS, WARMUP, state, state.objective, 0)(0, iter(parts_of(CONFIG, 1)))
    assert torch.isfinite(values).tolist() == [math.isfinite(value)] * len(values)


def gradients_with_a_view_of_one_value(padding: Any, seed: int) -> Tensor:
    """Largest gradient of each weight of a ResNet as deep as the paper's, of few channels."""
    torch.manual_seed(seed)
    encoder = ResNet50Encoder(1, (4, 4, 4), "instance", padding=padding, widths=(8, 8, 8, 8))
    objective = PGL(encoder, (8, 8, 8), 16, 8, loss=local_contrastive_loss)
    rng = np.random.default_rng(seed)
    pairs = [sample_view_pair((16, 16, 16), (8, 8, 8), rng) for _ in range(2)]
    views = torch.randn(4, 1, 8, 8, 8)
    views[0] = -1.3
    output = objective(views, GeometryBatch.from_geometries([pair[half] for half in (0, 1) for pair in pairs]))
    assert torch.isfinite(output.loss)
    output.loss.backward()
    return torch.stack([p.grad.abs().max() for p in objective.parameters() if p.grad is not None])


def test_a_view_of_one_value_spoils_the_gradient_where_instance_norm_meets_replicated_cells() -> None:
    """Why such views are drawn again. Not with every weight and rounding, so several are tried."""
    assert not all(gradients_with_a_view_of_one_value("replicate", seed).isfinite().all() for seed in range(6))
    assert gradients_with_a_view_of_one_value("zeros", 0).isfinite().all()


@pytest.mark.parametrize(
    ("spoilt", "accumulate", "epochs_saved"),
    [(0, 1, 0), (1, 1, 0), (3, 1, 1), (6, 2, 1)],
    ids=["first step", "last step of the first epoch", "last step of all", "first part of a step"],
)
def test_it_stops_the_run_and_nothing_of_it_is_saved(
    folders: Path, monkeypatch: pytest.MonkeyPatch, spoilt: int, accumulate: int, epochs_saved: int
) -> None:
    """Two epochs of two steps; the gradient of one pass is infinite, its loss as finite as ever."""
    losses: list[float] = []
    forward = PGL.forward

    def spoiling(self: PGL, views: Tensor, geometries: GeometryBatch, generator: torch.Generator | None = None) -> Any:
        output = forward(self, views, geometries, generator)
        if generator is None:  # memory is counted, on tensors without values
            return output
        if len(losses) == spoilt:
            output.loss.register_hook(lambda gradient: gradient * math.inf)
        losses.append(float(output.loss.detach()))
        return output

    monkeypatch.setattr(PGL, "forward", spoiling)
    name = f"spoilt_{spoilt}_{accumulate}"
    config = replace(make.config(), method="pgl_nce", padding="replicate", accumulate=accumulate)
    with pytest.raises(PGLError) as stop:
        pretrain(config, RunOptions(name, False, "cpu", 1, 1))
    folder = RunFolder.from_name(name)
    assert f"gradient is not finite in epoch {epochs_saved} of {folder.path}" in str(stop.value)
    assert "\n" not in str(stop.value)
    assert all(map(math.isfinite, losses[: spoilt + 1]))
    assert not folder.final.exists()
    assert folder.latest.exists() == bool(epochs_saved)
    if epochs_saved:
        assert len((folder.path / "metrics.jsonl").read_text().splitlines()) == epochs_saved
        state = torch.load(folder.latest, weights_only=True)
        assert state["step"] == 2 * epochs_saved
        assert all(value.isfinite().all() for value in state["objective"].values())
