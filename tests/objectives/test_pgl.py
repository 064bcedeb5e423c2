from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nnunetv2_pgl.networks import ResNet50Encoder
from pretraining.objectives import PGL, feature_spread, within_view_share
from pretraining.views import GeometryBatch, sample_view_pair
from tests.precision import needs_bfloat16

VIEW = (8, 32, 32)


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


def test_health_is_that_of_the_online_projections(batch: tuple[Tensor, GeometryBatch]) -> None:
    views, geometries = batch
    pgl = make_pgl().eval()
    with torch.no_grad():
        output, projection = pgl(views, geometries), pgl.projectors[0](pgl.encoder(views)[-1])
    assert float(output.feature_std) == pytest.approx(float(feature_spread(projection)), rel=1e-5)
    assert float(output.within_views) == pytest.approx(float(within_view_share(projection)), rel=1e-5)


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
