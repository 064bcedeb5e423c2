"""bfloat16 is used by the networks alone, and training in it follows training in float32."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from nnunetv2_pgl.methods import METHODS
from nnunetv2_pgl.networks import PGLSegmenter, ResNet50Encoder
from pretraining.demo.phantoms import make_phantom
from pretraining.objectives import PGL, target_decay
from pretraining.settings.config import PretrainConfig
from pretraining.training import networks
from pretraining.training.networks import make_objective
from pretraining.training.optimisation import learning_rate_at, make_optimizer, set_learning_rate
from pretraining.views import GeometryBatch, ViewSettings, render_views, sample_view_pair
from tests.drawn import drawn_for
from tests.precision import needs_bfloat16, note_types

NARROW = (8, 16, 32, 64)  # the encoder's layers at an eighth of their width
_STEPS, _PAIRS, _VIEW, _RATE = 200, 4, (8, 32, 32), 0.2


@pytest.fixture
def narrow_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoders that runs start from."""
    for network in (ResNet50Encoder, PGLSegmenter):
        monkeypatch.setattr(networks, network.__name__, partial(network, widths=NARROW))


def draw_batches(count: int) -> list[tuple[torch.Tensor, GeometryBatch]]:
    volumes = [torch.from_numpy(make_phantom(seed).image.astype(np.float32))[None] for seed in range(6)]
    volumes = [(volume - volume.mean()) / volume.std() for volume in volumes]
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(count):
        chosen = [volumes[i] for i in rng.integers(len(volumes), size=_PAIRS)]
        pairs = [sample_view_pair(volume.shape[1:], _VIEW, rng) for volume in chosen]
        views = [
            render_views(volume, [pair[half]], _VIEW)
            for half in (0, 1)
            for volume, pair in zip(chosen, pairs, strict=True)
        ]
        geometries = [pair[half] for half in (0, 1) for pair in pairs]
        batches.append((torch.cat(views), GeometryBatch.from_geometries(geometries)))
    return batches


@pytest.mark.usefixtures("narrow_encoder")
@pytest.mark.parametrize("method", METHODS)
def test_convolutions_are_in_bfloat16_and_the_loss_in_float32(method: str) -> None:
    config = PretrainConfig((), views=ViewSettings(_VIEW), hidden_channels=64, out_channels=32, method=method)
    objective = make_objective(config, torch.bfloat16)
    types = note_types(objective)
    rng = np.random.default_rng(0)
    pairs = [sample_view_pair((20, 60, 60), _VIEW, rng) for _ in range(2)]
    geometries = GeometryBatch.from_geometries([pair[half] for half in (0, 1) for pair in pairs])
    views = torch.randn(4, 1, *_VIEW)
    with torch.no_grad():
        loss = objective(views, geometries, torch.Generator().manual_seed(0), **drawn_for(objective, views)).loss
    assert types == {torch.bfloat16}
    assert loss.dtype == torch.float32


def losses(batches: list[tuple[torch.Tensor, GeometryBatch]], precision: torch.dtype | None) -> np.ndarray:
    torch.manual_seed(0)
    encoder = ResNet50Encoder(strides=(4, 16, 16), widths=NARROW)
    pgl = PGL(encoder, _VIEW, hidden_channels=64, out_channels=32, precision=precision)
    optimizer = make_optimizer("lars", pgl, _RATE, 1.5e-6)
    curve = []
    for step, (views, geometries) in enumerate(batches):
        set_learning_rate(optimizer, learning_rate_at(step, _STEPS, 10, _RATE))
        loss = pgl(views, geometries).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        pgl.update_target(target_decay(step, _STEPS))
        curve.append(loss.item())
    return np.array(curve)


@needs_bfloat16
def test_200_steps_in_bfloat16_follow_those_in_float32() -> None:
    """Within 0.1, of a loss that falls from 3.7 to 1.2, once averaged over 20 steps; 0.15 from the first step on."""
    batches = draw_batches(_STEPS)
    exact, half = losses(batches, None), losses(batches, torch.bfloat16)
    assert exact[0] > 3
    assert exact[-20:].mean() < 1.5
    assert abs(exact[0] - half[0]) < 0.15
    window = np.ones(20) / 20
    apart = np.abs(np.convolve(exact, window, "valid") - np.convolve(half, window, "valid"))
    assert apart.max() < 0.1
