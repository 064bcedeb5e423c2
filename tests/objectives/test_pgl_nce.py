"""PGL with negatives: what lowers its loss (the loss itself: test_losses.py)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from nnunetv2_pgl.networks import FeatureGrid, PlannedEncoder
from pretraining.objectives import PGL, local_contrastive_loss
from pretraining.settings.config import PretrainConfig
from pretraining.training.networks import make_objective
from pretraining.views import GeometryBatch, ViewGeometry, ViewSettings, render_views, sample_view_pair
from tests.planned_networks import small_network
from tests.precision import needs_bfloat16

VIEW = (8, 16, 16)


class Seeing(nn.Module):
    """An encoder that knows what is there: the means of cells of 2 x 4 x 4 voxels, of views of 8 channels."""

    stage_channels, stage_strides, strides = (8,), ((2, 4, 4),), (2, 4, 4)
    memory_format = torch.contiguous_format

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, deepest: int = -1) -> list[Tensor]:
        return [F.avg_pool3d(x, self.strides) * self.weight]

    def modules_after(self, stage: int) -> list[nn.Module]:
        return []

    def feature_grid(self, view_size: Any, stage: int = -1) -> FeatureGrid:
        return FeatureGrid(view_size, self.strides, (1.0, 2.0, 2.0))


def smooth_scan(rng: np.random.Generator) -> Tensor:
    noise = torch.from_numpy(rng.normal(size=(1, 8, 6, 8, 8)))
    return F.interpolate(noise, size=(24, 48, 48), mode="trilinear")[0].float()


def pairs(rng: np.random.Generator, count: int) -> list[tuple[ViewGeometry, ViewGeometry]]:
    return [sample_view_pair((24, 48, 48), VIEW, rng, min_overlap=0.3) for _ in range(count)]


def batch_of(
    scans: Sequence[Tensor], drawn: Sequence[tuple[ViewGeometry, ViewGeometry]]
) -> tuple[Tensor, GeometryBatch]:
    shown = [(scan, pair[half]) for half in (0, 1) for scan, pair in zip(scans, drawn, strict=True)]
    views = torch.cat([render_views(scan, [geometry], VIEW) for scan, geometry in shown])
    return views, GeometryBatch.from_geometries([geometry for _, geometry in shown])


def test_who_knows_what_is_there_finds_it_and_only_with_the_right_alignment() -> None:
    rng = np.random.default_rng(0)
    encoder: Any = Seeing()
    objective = PGL(encoder, VIEW, loss=local_contrastive_loss)
    for heads in (objective.projectors, objective.predictors, objective.target_projectors):
        heads[0] = nn.Identity()
    drawn = pairs(rng, 6)
    views, geometries = batch_of([smooth_scan(rng) for _ in drawn], drawn)
    by_chance = 2 * math.log(4 * 4 * 4)
    right = float(objective(views, geometries).loss.detach())
    unflipped = replace(geometries, flips=torch.zeros_like(geometries.flips))
    of_others = GeometryBatch(*(getattr(geometries, name).roll(1, dims=0) for name in ("starts", "sizes", "flips")))
    assert right < 0.5 * by_chance
    assert right < 0.6 * float(objective(views, unflipped).loss.detach())
    assert right < 0.6 * float(objective(views, of_others).loss.detach())


def made(loss: Callable[..., Tensor] = local_contrastive_loss, **options: Any) -> PGL:
    torch.manual_seed(0)
    network = small_network("resenc", features=(4, 8, 8), n_blocks_per_stage=[1, 2, 2])
    heads = {"hidden_channels": 16, "out_channels": 8}
    return PGL(PlannedEncoder(network, 1, "replicate"), VIEW, **heads, loss=loss, **options)


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, GeometryBatch]:
    rng = np.random.default_rng(0)
    return batch_of([smooth_scan(rng)[:1] for _ in range(4)], pairs(rng, 4))


@pytest.mark.parametrize("interpolated_only", [False, True])
def test_the_loss_is_the_only_difference_to_pgl(batch: tuple[Tensor, GeometryBatch], interpolated_only: bool) -> None:
    """The method as runs make it, at their temperature."""
    calls = []

    def contrastive(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        calls.append(valid)
        return local_contrastive_loss(prediction, target, valid, 0.2)

    pgl = made(contrastive, stages=(1, 2), interpolated_only=interpolated_only)
    config = PretrainConfig(
        datasets=(),
        method="pgl_nce",
        architecture="resenc_m",
        network=small_network("resenc", features=(4, 8, 8), n_blocks_per_stage=[1, 2, 2]).to_dict(),
        padding="replicate",
        align_stages=(1, 2),
        views=ViewSettings(VIEW),
        hidden_channels=16,
        out_channels=8,
        temperature=0.2,
        interpolated_only=interpolated_only,
    )
    ours = make_objective(config, None)
    ours.load_state_dict(pgl.state_dict(), strict=True)
    for own, theirs in zip(ours(*batch), pgl(*batch), strict=True):
        assert torch.equal(own, theirs)
    assert len(calls) == 4  # two stages, both directions
    assert all(bool(valid.all()) != interpolated_only for valid in calls)


def test_the_parts_of_a_step_add_up(batch: tuple[Tensor, GeometryBatch]) -> None:
    """-accumulate changes nothing but what batch norms see: negatives are from the pair alone."""
    objective = made().eval()
    views, geometries = batch
    loss = objective(views, geometries).loss
    loss.backward()
    whole = {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
    objective.zero_grad()
    for part in (slice(0, 2), slice(2, 4)):
        chosen = [*range(8)[part], *range(4, 8)[part]]
        own = GeometryBatch(*(getattr(geometries, name)[chosen] for name in ("starts", "sizes", "flips")))
        (objective(views[chosen], own).loss / 2).backward()
    for name, parameter in objective.named_parameters():
        assert (parameter.grad is not None) == (name in whole)
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, whole[name], rtol=1e-3, atol=1e-6)


def test_a_few_steps_lower_the_loss(batch: tuple[Tensor, GeometryBatch]) -> None:
    objective = made()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        loss = objective(*batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.update_target(0.9)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


@needs_bfloat16
def test_bfloat16_tracks_float32(batch: tuple[Tensor, GeometryBatch]) -> None:
    exact, fast = made(), made(precision=torch.bfloat16)
    with torch.no_grad():
        loss = fast(*batch).loss
        assert loss.dtype == torch.float32
        assert float(loss) == pytest.approx(float(exact(*batch).loss), rel=0.1)
