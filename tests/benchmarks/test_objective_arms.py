"""The variants of the objective against plain loops."""

import math

import pytest
import torch

from benchmarks.objective_arms import Arm, Variant
from nnunetv2_pgl.networks import ResNet50Encoder
from pretraining.objectives import local_contrastive_loss
from pretraining.views import GeometryBatch, ViewGeometry

_SIZE = (16, 24, 16)
_CELLS = (2, 3, 2)
_BOXES = [
    ViewGeometry((2.0, 3.0, 0.0), (16.0, 24.0, 16.0), (False,) * 3),
    ViewGeometry((2.0, 9.0, 4.0), (14.0, 24.0, 12.0), (False, True, False)),
]


def _variant(arm: Arm) -> Variant:
    encoder = ResNet50Encoder(1, (8, 8, 8), "instance", blocks=(1, 1, 1, 1), widths=(4, 4, 4, 4))
    return Variant(encoder, arm, _SIZE, 8)


def _maps() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    first, second = (torch.randn(1, 5, *_CELLS, generator=generator) for _ in range(2))
    return first, second


def _compare(variant: Variant, views: torch.Tensor | None = None) -> float:
    """The loss of one direction, after a step whose boxes are `_BOXES`."""
    views = torch.randn(2, 1, *_SIZE) if views is None else views
    variant(views, GeometryBatch.from_geometries(_BOXES, torch.device("cpu")))
    return float(variant.compare(*_maps(), torch.ones(1, *_CELLS, dtype=torch.bool)))


def _cosines(first: torch.Tensor, second: torch.Tensor) -> list[list[float]]:
    places = [(z, y, x) for z in range(2) for y in range(3) for x in range(2)]
    rows, columns = ([x[0, :, z, y, x_] for z, y, x_ in places] for x in (first, second))
    return [[float(torch.cosine_similarity(a, b, dim=0)) for b in columns] for a in rows]


def _loss(rows: list[list[float]], right: list[set[int]], left_out: list[set[int]]) -> float:
    losses = []
    for row, wanted, gone in zip(rows, right, left_out, strict=True):
        weights = [0.0 if k in gone else math.exp(c / 0.1) for k, c in enumerate(row)]
        losses.append(-math.log(sum(weights[k] for k in wanted) / sum(weights)))
    return sum(losses) / len(losses)


def test_the_plain_arm_is_the_objective_of_pgl_nce():
    first, second = _maps()
    variant = _variant(Arm())

    loss = _compare(variant)

    assert loss == pytest.approx(float(local_contrastive_loss(first, second)), rel=1e-5)


def test_the_place_across_the_body_is_right_as_well():
    # The overlap is [9, 27) along y, bins of 6 voxels, centres 12, 18, 24. In a scan of 34 voxels the places across are
    # 22, 16 and 10: bins 2, 1 (its own) and 0.
    first, second = _maps()
    variant = _variant(Arm(mirror=True))
    variant.lateral = [(1, 34)]

    loss = _compare(variant)

    across = {0: 2, 1: 1, 2: 0}
    places = [(z, y, x) for z in range(2) for y in range(3) for x in range(2)]
    right = [{n, places.index((z, across[y], x))} for n, (z, y, x) in enumerate(places)]
    assert loss == pytest.approx(_loss(_cosines(first, second), right, [set()] * 12), rel=1e-4)


def test_a_place_across_that_no_view_shows_changes_nothing():
    first, second = _maps()
    variant = _variant(Arm(mirror=True))
    variant.lateral = [(1, 100)]

    loss = _compare(variant)

    assert loss == pytest.approx(float(local_contrastive_loss(first, second)), rel=1e-5)


def test_near_places_are_no_negatives():
    # Bins in cells of the first view (8 voxels): the overlap is 14, 18 and 12 voxels long in 2, 3 and 2 bins.
    first, second = _maps()
    variant = _variant(Arm(ignored=0.87))

    loss = _compare(variant)

    places = [(z * 7 / 8, y * 6 / 8, x * 6 / 8) for z in range(2) for y in range(3) for x in range(2)]
    near = [{k for k, b in enumerate(places) if k != n and math.dist(a, b) < 0.87} for n, a in enumerate(places)]
    assert 0 < max(map(len, near)) < 11
    assert loss == pytest.approx(_loss(_cosines(first, second), [{n} for n in range(12)], near), rel=1e-4)


def test_only_bright_places_ask():
    # Bright where y < 18 in the scan: the first bin of three (the second's centre lies on the edge, half of either).
    scan = torch.where(torch.arange(40) < 17, 1.0, -1.0)
    views = torch.stack([scan[3:27], scan[9:33].flip(0)])[:, None, None, :, None].expand(2, 1, 16, 24, 16)
    first, second = _maps()
    variant = _variant(Arm(inside=True))

    loss = _compare(variant, views.contiguous())

    rows = _cosines(first, second)
    asked = [n for n in range(12) if n // 2 % 3 == 0]
    expected = _loss([rows[n] for n in asked], [{n} for n in asked], [set()] * len(asked))
    assert loss == pytest.approx(expected, rel=1e-4)
