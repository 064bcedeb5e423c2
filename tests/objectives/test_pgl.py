from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nnunetv2_pgl.networks import ResNet50Encoder
from pretraining.objectives import (
    PGL,
    ConvHead,
    feature_spread,
    local_consistency_loss,
    make_target,
    target_decay,
    update_target,
    within_view_share,
)
from pretraining.views import GeometryBatch, sample_view_pair
from tests.precision import needs_bfloat16

VIEW = (8, 32, 32)


def test_loss_by_hand() -> None:
    prediction = torch.tensor([[1.0, 0.0], [0.0, 3.0]]).reshape(1, 2, 2)  # columns (1, 0) and (0, 3)
    assert float(local_consistency_loss(prediction, 5 * prediction)) == pytest.approx(0, abs=1e-6)
    assert float(local_consistency_loss(prediction, -prediction)) == pytest.approx(4)
    other = torch.tensor([[0.0, 1.0], [2.0, 1.0]]).reshape(1, 2, 2)  # orthogonal; at 45 degrees
    assert float(local_consistency_loss(prediction, other)) == pytest.approx((2 + 2 - math.sqrt(2)) / 2, rel=1e-6)
    only_second = torch.tensor([[False, True]])
    assert float(local_consistency_loss(prediction, other, only_second)) == pytest.approx(2 - math.sqrt(2), rel=1e-6)
    assert float(local_consistency_loss(prediction, other, torch.zeros(1, 2, dtype=torch.bool))) == 0


def test_loss_is_the_squared_distance_of_normalised_features() -> None:
    rng = np.random.default_rng(0)
    p, t = rng.normal(size=(2, 3, 5, 2, 4, 4))
    unit_p, unit_t = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (p, t))
    expected = ((unit_p - unit_t) ** 2).sum(axis=1).mean()
    assert float(local_consistency_loss(torch.tensor(p), torch.tensor(t))) == pytest.approx(expected, rel=1e-5)


def test_loss_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        local_consistency_loss(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match="valid is"):
        local_consistency_loss(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), torch.zeros(1, 2, 3, dtype=torch.bool))


def test_feature_spread_of_even_and_of_collapsed_features() -> None:
    even = torch.randn(8, 64, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    assert float(feature_spread(even)) == pytest.approx(1, abs=0.02)
    assert float(feature_spread(even[:1, :, :1, :1, :1].expand(8, -1, 4, 6, 6))) == pytest.approx(0, abs=1e-5)


def test_within_view_share_sees_features_that_only_tell_scans_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    of_scans = torch.randn(8, 64, 1, 1, 1, generator=generator).expand(-1, -1, 4, 6, 6)
    of_places = torch.randn(1, 64, 4, 6, 6, generator=generator).expand(8, -1, -1, -1, -1)
    assert float(within_view_share(of_scans)) == pytest.approx(0, abs=1e-6)
    assert float(within_view_share(of_places)) == pytest.approx(1, abs=1e-6)
    assert float(feature_spread(of_scans)) > 0.8  # which the spread alone does not see


def test_spread_and_share_by_numpy() -> None:
    """Features of unlike lengths, so that normalising counts."""
    features = np.random.default_rng(0).normal(size=(4, 5, 2, 3, 2)) + np.arange(5).reshape(1, 5, 1, 1, 1)
    units = (features / np.linalg.norm(features, axis=1, keepdims=True)).reshape(4, 5, 12)
    spread = units.transpose(1, 0, 2).reshape(5, 48).std(axis=1, ddof=1).mean() * math.sqrt(5)
    total = ((units - units.mean(axis=(0, 2), keepdims=True)) ** 2).sum()
    within = ((units - units.mean(axis=2, keepdims=True)) ** 2).sum()
    assert float(feature_spread(torch.from_numpy(features))) == pytest.approx(spread, rel=1e-5)
    assert float(within_view_share(torch.from_numpy(features))) == pytest.approx(within / total, rel=1e-5)


@pytest.mark.parametrize(("step", "expected"), [(0, 0.996), (50, 0.998), (100, 1.0), (130, 1.0)])
def test_target_decay(step: int, expected: float) -> None:
    assert target_decay(step, 100) == pytest.approx(expected, abs=1e-9)


def test_target_decay_of_runs_of_one_step_and_of_none() -> None:
    assert target_decay(0, 1, 0.9) == pytest.approx(0.9)
    assert target_decay(1, 1, 0.9) == target_decay(7, 1, 0.9) == 1
    assert target_decay(0, 0, 0.9) == pytest.approx(0.9)


def test_target_follows_the_online_weights() -> None:
    online = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2))
    target = make_target(online)
    assert not any(p.requires_grad for p in target.parameters())
    before = [p.clone() for p in target.parameters()]
    for p in online.parameters():
        p.data.add_(1.0)
    online[1].running_mean.fill_(3.0)
    update_target(target, online, 0.9)
    for old, new in zip(before, target.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.1)
    assert not target[1].running_mean.any(), "they serve no one"


@pytest.mark.parametrize(("channels", "parameters"), [(2048, 2048 * 4096 + 2 * 4096 + 4096 * 256 + 256)])
def test_projector_is_conv_bn_relu_conv(channels: int, parameters: int) -> None:
    head = ConvHead(channels)
    assert [type(m) for m in head] == [nn.Conv3d, nn.BatchNorm3d, nn.ReLU, nn.Conv3d]
    assert sum(p.numel() for p in head.parameters()) == parameters


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, GeometryBatch]:
    rng = np.random.default_rng(0)
    pairs = [sample_view_pair((20, 60, 60), VIEW, rng) for _ in range(3)]
    geometries = [pair[half] for half in (0, 1) for pair in pairs]
    views = torch.randn(6, 1, *VIEW, generator=torch.Generator().manual_seed(0))
    return views, GeometryBatch.from_geometries(geometries)


def make_pgl(**options: object) -> PGL:
    torch.manual_seed(0)
    encoder = ResNet50Encoder(strides=(2, 8, 8), widths=(8, 16, 32, 64))
    return PGL(encoder, VIEW, hidden_channels=64, out_channels=32, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("interpolated_only", [False, True])
def test_loss_of_a_batch_is_both_directions_added(batch: tuple[Tensor, GeometryBatch], interpolated_only: bool) -> None:
    """Recomputed view by view: the prediction of one view against the target of the other, and the reverse."""
    from pretraining.alignment import align

    views, geometries = batch
    pgl = make_pgl(interpolated_only=interpolated_only).eval()  # running statistics: views do not influence each other
    with torch.no_grad():
        output = pgl(views, geometries)
        expected, inside = 0.0, []
        for others in ((3, 4, 5), (0, 1, 2)):
            distances, counts = [], []
            for other in others:
                own = (other + 3) % 6
                g, h = (
                    GeometryBatch(
                        geometries.starts[i : i + 1], geometries.sizes[i : i + 1], geometries.flips[i : i + 1]
                    )
                    for i in (own, other)
                )
                z, z_inside = align(pgl.projectors[0](pgl.encoder(views[own : own + 1])[-1]), g, h, pgl.grids[0])
                t, t_inside = align(
                    pgl.target_projectors[0](pgl.target_encoder(views[other : other + 1])[-1]), h, g, pgl.grids[0]
                )
                distances.append(2 - 2 * nn.functional.cosine_similarity(pgl.predictors[0](z), t, dim=1))
                inside.append(z_inside.logical_and(t_inside))
                counts.append(inside[-1] if interpolated_only else torch.ones_like(inside[-1]))
            expected += float(torch.cat(distances)[torch.cat(counts)].mean())
    assert float(output.loss) == pytest.approx(expected, rel=1e-4)
    assert float(output.interpolated) == pytest.approx(float(torch.cat(inside).float().mean()), rel=1e-5)


def test_gradients_reach_the_online_path_only(batch: tuple[Tensor, GeometryBatch]) -> None:
    pgl = make_pgl()
    pgl(*batch).loss.backward()
    for part in (pgl.encoder, pgl.projectors, pgl.predictors):
        assert all(p.grad is not None for p in part.parameters())
    for part in (pgl.target_encoder, pgl.target_projectors):
        assert all(p.grad is None for p in part.parameters())


@needs_bfloat16
def test_bfloat16_tracks_float32(batch: tuple[Tensor, GeometryBatch]) -> None:
    exact, fast = make_pgl(), make_pgl(precision=torch.bfloat16)
    with torch.no_grad():
        assert float(fast(*batch).loss) == pytest.approx(float(exact(*batch).loss), abs=0.1)


def test_a_few_steps_lower_the_loss(batch: tuple[Tensor, GeometryBatch]) -> None:
    pgl = make_pgl()
    optimizer = torch.optim.AdamW(pgl.parameters(), lr=2e-3)
    losses = []
    for _ in range(6):
        loss = pgl(*batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pgl.update_target(0.9)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
