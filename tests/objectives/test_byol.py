from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nnunetv2_pgl.networks import ResNet50Encoder
from pretraining.objectives import ConvHead
from pretraining.objectives.byol import BYOL
from pretraining.views import GeometryBatch, sample_view_pair
from tests.precision import needs_bfloat16

VIEW, PAIRS = (8, 32, 32), 3
NARROW = (8, 16, 32, 64)  # the encoder's layers at an eighth of their width


def make_byol(precision: torch.dtype | None = None) -> BYOL:
    """With a target path that is not the online path."""
    torch.manual_seed(0)
    encoder = ResNet50Encoder(strides=(2, 8, 8), widths=NARROW)
    byol = BYOL(encoder, hidden_channels=48, out_channels=24, precision=precision)
    for module in (byol.target_encoder, byol.target_projector):
        for p in module.parameters():
            p.add_(0.1 * p.std().nan_to_num() * torch.randn_like(p))
    return byol


def draw_geometries(seed: int, pairs: int = PAIRS) -> GeometryBatch:
    rng = np.random.default_rng(seed)
    drawn = [sample_view_pair((20, 60, 60), VIEW, rng) for _ in range(pairs)]
    return GeometryBatch.from_geometries([pair[half] for half in (0, 1) for pair in drawn])


def draw_views(pairs: int = PAIRS) -> Tensor:
    """White noise of different strength and mean, so that the views differ as a whole."""
    generator = torch.Generator().manual_seed(0)
    mean, strength = torch.rand(2, 2 * pairs, 1, 1, 1, 1, generator=generator)
    return mean + strength * torch.randn(2 * pairs, 1, *VIEW, generator=generator)


def mlp(head: ConvHead, x: Tensor) -> Tensor:
    """Linear, batch norm, ReLU, linear, as matrix products: (N, C) -> (N, C')."""
    first, norm, _, second = head
    h = x @ first.weight.flatten(1).T
    h = (h - h.mean(0)) / (h.var(0, unbiased=False) + norm.eps).sqrt() * norm.weight + norm.bias
    return h.clamp(min=0) @ second.weight.flatten(1).T + second.bias


def plain_loss(byol: BYOL, views: Tensor) -> Tensor:
    """BYOL as its paper writes it: pair by pair, one direction after the other, squared distances of unit vectors."""
    pooled, pooled_target = (encoder(views)[-1].flatten(2).mean(2) for encoder in (byol.encoder, byol.target_encoder))
    prediction = mlp(byol.predictor, mlp(byol.projector, pooled))
    target = mlp(byol.target_projector, pooled_target).detach()
    total = torch.zeros((), dtype=views.dtype)
    pairs = len(views) // 2
    for pair in range(pairs):
        for own, other in ((pair, pair + pairs), (pair + pairs, pair)):
            p, t = prediction[own], target[other]
            total = total + (p / p.norm() - t / t.norm()).square().sum() / pairs
    return total


def test_loss_and_gradients_are_those_of_a_plain_implementation() -> None:
    byol, views = make_byol().double(), draw_views().double()
    gradients = []
    losses = []
    for loss in (byol(views, draw_geometries(0)).loss, plain_loss(byol, views)):
        byol.zero_grad()
        loss.backward()
        losses.append(loss.item())
        gradients.append({name: p.grad.clone() for name, p in byol.named_parameters() if p.grad is not None})
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert 0.5 < losses[0] < 7.5
    ours, plain = gradients
    assert ours.keys() == plain.keys()
    for name, gradient in ours.items():
        scale = float(plain[name].abs().max())
        torch.testing.assert_close(gradient, plain[name], rtol=1e-3, atol=1e-4 * scale + 1e-9, msg=name)
    assert max(float(g.abs().max()) for g in plain.values()) > 1e-3


def test_gradients_reach_the_whole_online_path_and_nothing_else() -> None:
    byol = make_byol()
    byol(draw_views(), draw_geometries(0)).loss.backward()
    for part in (byol.encoder, byol.projector, byol.predictor):
        assert all(p.grad is not None for p in part.parameters())
    for part in (byol.target_encoder, byol.target_projector):
        assert all(p.grad is None for p in part.parameters())


def test_places_do_not_matter() -> None:
    byol, views = make_byol(), draw_views()
    with torch.no_grad():
        one, other = (byol(views, draw_geometries(seed)).loss for seed in (0, 1))
    assert torch.equal(one, other)


def test_partners_matter() -> None:
    byol, views = make_byol(), draw_views()
    with torch.no_grad():
        paired = byol(views, draw_geometries(0)).loss
        crossed = byol(views[[0, 1, 2, 4, 5, 3]], draw_geometries(0)).loss
    assert abs(float(paired - crossed)) > 1e-4


def test_one_pair_is_enough() -> None:
    byol = make_byol()
    output = byol(draw_views(1), draw_geometries(0, 1))
    output.loss.backward()
    assert all(torch.isfinite(value) for value in output)
    assert all(torch.isfinite(p.grad).all() for p in byol.parameters() if p.grad is not None)


def test_target_after_several_steps_is_the_closed_form() -> None:
    byol = make_byol()
    pairs = ((byol.target_encoder, byol.encoder), (byol.target_projector, byol.projector))
    before = [[p.clone() for p in target.parameters()] for target, _ in pairs]
    predictor = [p.clone() for p in byol.predictor.parameters()]
    for _ in range(3):
        byol.update_target(0.9)
    for (target, online), starts in zip(pairs, before, strict=True):
        for new, old, goal in zip(target.parameters(), starts, online.parameters(), strict=True):
            torch.testing.assert_close(new, goal + 0.9**3 * (old - goal))
    assert all(torch.equal(a, b) for a, b in zip(byol.predictor.parameters(), predictor, strict=True))


@needs_bfloat16
def test_bfloat16_tracks_float32() -> None:
    """With enough pairs for the heads' norms, which make 0.15 of the rounding over six vectors, and 0.02 over 64."""
    views, geometries = draw_views(32), draw_geometries(0, 32)
    with torch.no_grad():
        exact, fast = (make_byol(precision)(views, geometries) for precision in (None, torch.bfloat16))
    assert float(fast.loss) == pytest.approx(float(exact.loss), abs=0.1)


def test_spread_tells_collapse() -> None:
    byol = make_byol()
    with torch.no_grad():
        spread = float(byol(draw_views(), draw_geometries(0)).feature_std)
        nn.init.zeros_(byol.projector[3].weight)
        nn.init.ones_(byol.projector[3].bias)
        collapsed = float(byol(draw_views(), draw_geometries(0)).feature_std)
    assert spread > 0.1
    assert collapsed == pytest.approx(0, abs=1e-5)


def test_a_dry_pass_runs_both_paths() -> None:
    byol = make_byol()
    before = byol.target_projector[1].num_batches_tracked.item()
    byol.dry_forward(draw_views()).backward()
    assert byol.target_projector[1].num_batches_tracked.item() == before + 1
    for part in (byol.encoder, byol.projector, byol.predictor):
        assert all(p.grad is not None for p in part.parameters())


def test_a_few_steps_lower_the_loss() -> None:
    byol, views, geometries = make_byol(), draw_views(), draw_geometries(0)
    optimizer = torch.optim.AdamW(byol.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        loss = byol(views, geometries).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        byol.update_target(0.9)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
