"""Rendering, intensity changes and alignment: on the device what they are on the CPU in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nnunetv2_pgl.networks import FeatureGrid
from pretraining.alignment import align
from pretraining.data import Volume
from pretraining.views import (
    GeometryBatch,
    IntensityRanges,
    ViewPairBatch,
    ViewPairDataset,
    ViewSettings,
    sample_view_pair,
)
from tests.devices import DEVICE, needs_device

pytestmark = [pytest.mark.gpu, needs_device]

# Every change in most views; noise is drawn on the device.
CHANGED = IntensityRanges(noise_probability=0, blur_probability=0.7, brightness_probability=0.7, gamma_probability=0.7)


@pytest.mark.parametrize("changes_intensity", [False, True])
def test_views(scans: list[Volume], changes_intensity: bool) -> None:
    size = (8, 32, 32)
    dataset = ViewPairDataset(scans, ViewSettings(size, intensity=CHANGED), seed=0)
    batch = ViewPairBatch.collate([dataset[draw, draw % len(scans)] for draw in range(12)])
    views = batch.to(DEVICE).render(size, None, changes_intensity)
    exact = replace(batch, crops=batch.crops.double()).render(size, None, changes_intensity)
    assert views.device == DEVICE
    assert views.dtype == torch.float32
    torch.testing.assert_close(views.cpu().double(), exact, rtol=1e-4, atol=1e-4)


def test_aligned_maps_of_the_paper_s_batch() -> None:
    """128 pairs of 256 channels: as products of small matrices they would be more than some kernels can count."""
    rng = np.random.default_rng(0)
    pairs = [sample_view_pair((60, 300, 260), (16, 96, 96), rng) for _ in range(128)]
    features = torch.randn(256, 256, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    grid = FeatureGrid((16, 96, 96), (8, 16, 16), (4.5, 8.5, 8.5))

    def aligned(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        own, partners = (
            GeometryBatch.from_geometries([pair[half] for half in order for pair in pairs], features.device)
            for order in ((0, 1), (1, 0))
        )
        return align(features, own, partners, grid)

    maps, inside = aligned(features.to(DEVICE))
    exact, exactly_inside = aligned(features.double())
    assert maps.device == DEVICE
    torch.testing.assert_close(maps.cpu().double(), exact, rtol=1e-4, atol=1e-4)
    assert torch.equal(inside.cpu(), exactly_inside)
    assert 0.1 < inside.float().mean() < 1
