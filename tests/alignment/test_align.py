from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import torchvision
from torch import Tensor

from nnunetv2_pgl.networks import ResNet50Encoder
from pretraining.alignment import FeatureGrid, align
from pretraining.views import ViewGeometry, overlap_box, render_views, sample_view_pair

VIEW = (16, 96, 96)
STRIDE = (8, 16, 16)
POOLED = FeatureGrid(VIEW, STRIDE, (4, 8, 8))


def coordinates(shape: tuple[int, int, int]) -> Tensor:
    """A volume that holds its own coordinates: the centre of voxel i is i + 0.5."""
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) + 0.5 for n in shape), indexing="ij")
    return torch.stack(axes)


def places(a: ViewGeometry, b: ViewGeometry, bins: tuple[int, int, int]) -> Tensor:
    start, size = overlap_box(a, b)
    axes = [start[k] + (np.arange(n) + 0.5) / n * size[k] for k, n in enumerate(bins)]
    return torch.tensor(np.stack(np.meshgrid(*axes, indexing="ij")))


@pytest.mark.parametrize("shape", [(18, 107, 110), (23, 135, 140), (60, 300, 260)])
@pytest.mark.parametrize("output_size", [None, (3, 7, 5)])
def test_both_views_name_the_right_places(
    shape: tuple[int, int, int], output_size: tuple[int, int, int] | None
) -> None:
    """Crop, scale and flip of every kind, cells by average pooling: valid points are exact in both views."""
    volume = coordinates(shape)
    rng = np.random.default_rng(0)
    errors, count = 0.0, 0
    for flips in itertools.product((False, True), repeat=6):
        pair = sample_view_pair(shape, VIEW, rng)
        one, two = (ViewGeometry(g.start, g.size, flip) for g, flip in zip(pair, (flips[:3], flips[3:]), strict=True))
        features = F.avg_pool3d(render_views(volume, (one, two), VIEW), STRIDE)
        truth = places(one, two, output_size or (2, 6, 6))
        for index, (own, other) in enumerate(((one, two), (two, one))):
            aligned, valid = align(features[index : index + 1], [own], [other], POOLED, output_size)
            error = (aligned[0] - truth).abs()[:, valid[0]]
            errors, count = errors + float(error.sum()), count + error.numel()
    assert count > 1000
    assert errors / count < 0.01


def test_smallest_overlap_is_still_exact() -> None:
    volume = coordinates((60, 300, 300))
    one = ViewGeometry((1.3, 10.2, 5.0), (20, 120, 130), (False, True, False))
    two = ViewGeometry((3.0, 90.0, 95.0), (19, 131, 108), (True, True, False))
    assert np.prod(overlap_box(one, two)[1]) / two.volume == pytest.approx(0.11, abs=0.01)
    features = F.avg_pool3d(render_views(volume, (one, two), VIEW), STRIDE)
    grid_points = places(one, two, (4, 6, 6))
    a, valid_a = align(features[:1], [one], [two], POOLED, (4, 6, 6))
    b, valid_b = align(features[1:], [two], [one], POOLED, (4, 6, 6))
    both = valid_a[0] & valid_b[0]
    assert both.any()
    torch.testing.assert_close(a[0][:, both], grid_points[:, both], rtol=0, atol=1e-6)
    torch.testing.assert_close(b[0][:, both], grid_points[:, both], rtol=0, atol=1e-6)


def test_agrees_with_grid_sample() -> None:
    features = torch.randn(2, 3, 2, 6, 6, dtype=torch.float64)
    rng = np.random.default_rng(1)
    for _ in range(20):
        pair = sample_view_pair((60, 300, 300), VIEW, rng)
        aligned, _ = align(features, pair, pair[::-1], POOLED, (3, 4, 5))
        points = places(*pair, (3, 4, 5))
        for index, own in enumerate(pair):
            axes = []
            for axis, cells in enumerate((2, 6, 6)):
                in_view = (points[axis] - own.start[axis]) / own.size[axis] * VIEW[axis]
                in_view = VIEW[axis] - in_view if own.flip[axis] else in_view
                axes.append(2 * in_view / (cells * STRIDE[axis]) - 1)
            grid = torch.stack(axes[::-1], dim=-1)[None]
            expected = F.grid_sample(features[index : index + 1], grid, padding_mode="border", align_corners=False)
            torch.testing.assert_close(aligned[index : index + 1], expected, rtol=0, atol=1e-5)


def test_agrees_with_torchvision_on_depth_constant_input() -> None:
    plane = torch.randn(1, 4, 1, 6, 6, dtype=torch.float64)
    features = plane.expand(-1, -1, 2, -1, -1).contiguous()
    own = ViewGeometry((0, 10, 20), (20, 110, 130), (False,) * 3)
    other = ViewGeometry((0, 40, 0), (20, 130, 120), (False,) * 3)
    aligned, _ = align(features, [own], [other], POOLED, (2, 5, 7))
    start, size = overlap_box(own, other)
    y, x = ((start[k] - own.start[k]) / own.size[k] * VIEW[k] for k in (1, 2))
    y_end, x_end = ((start[k] + size[k] - own.start[k]) / own.size[k] * VIEW[k] for k in (1, 2))
    box = torch.tensor([[0, x, y, x_end, y_end]], dtype=torch.float64)
    expected = torchvision.ops.roi_align(
        plane[:, :, 0], box, (5, 7), spatial_scale=1 / 16, sampling_ratio=1, aligned=True
    )
    for z in range(2):
        torch.testing.assert_close(aligned[:, :, z], expected, rtol=0, atol=1e-5)


def test_identity_and_flip() -> None:
    features = torch.randn(1, 2, 2, 6, 6)
    plain = ViewGeometry((0, 0, 0), (20, 120, 120), (False,) * 3)
    flipped = ViewGeometry((0, 0, 0), (20, 120, 120), (True, False, True))
    same, inside = align(features, [plain], [flipped], POOLED)
    torch.testing.assert_close(same, features)
    assert inside.all()
    torch.testing.assert_close(align(features, [flipped], [plain], POOLED)[0], features.flip((2, 4)))


def disagreement(
    true_offset: tuple[float, ...], grid: FeatureGrid, flip_probability: float = 0.5, min_overlap: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Mean and worst distance per axis, in cells, between the places that two aligned views show.

    Features hold the place in the scan that their cell really looks at.
    """
    rng = np.random.default_rng(0)
    differences = []
    for _ in range(400):
        pair = sample_view_pair((120, 400, 400), VIEW, rng, flip_probability=flip_probability, min_overlap=min_overlap)
        maps = []
        for own in pair:
            axes = []
            for axis, cells in enumerate((2, 6, 6)):
                in_view = true_offset[axis] + STRIDE[axis] * torch.arange(cells, dtype=torch.float64)
                in_view = VIEW[axis] - in_view if own.flip[axis] else in_view
                axes.append(own.start[axis] + in_view / VIEW[axis] * own.size[axis])
            maps.append(torch.stack(torch.meshgrid(*axes, indexing="ij")))
        a, _ = align(maps[0][None], [pair[0]], [pair[1]], grid)
        b, _ = align(maps[1][None], [pair[1]], [pair[0]], grid)
        # A cell of the source: the stride at the mean scale of 1.25.
        cell = torch.tensor(STRIDE, dtype=torch.float64) * 1.25
        differences.append((a - b)[0].abs().flatten(1) / cell[:, None])
    together = torch.cat(differences, dim=1)
    return together.mean(dim=1), together.amax(dim=1)


def test_where_a_cell_sits_matters_under_flips() -> None:
    """Textbook half-pixel alignment is half a cell off under flips; centred cells at known places are not."""
    centred, plain = (ResNet50Encoder(centred=c).feature_grid(VIEW) for c in (True, False))
    textbook, _ = disagreement(plain.offset, POOLED)
    no_flips, _ = disagreement(plain.offset, POOLED, flip_probability=0)
    knows_plain, _ = disagreement(plain.offset, plain)
    ours, ours_worst = disagreement(centred.offset, centred)
    wide, _ = disagreement(centred.offset, centred, min_overlap=0.3)
    assert textbook.tolist() == pytest.approx([0.55, 0.52, 0.52], abs=0.06)
    assert no_flips.tolist() == pytest.approx([0.18, 0.08, 0.08], abs=0.04)
    assert knows_plain.tolist() == pytest.approx([0.37, 0.13, 0.13], abs=0.05)
    assert ours.tolist() == pytest.approx([0.18, 0.06, 0.06], abs=0.03)
    assert wide.tolist() == pytest.approx([0.12, 0.04, 0.04], abs=0.03)
    assert (ours_worst < 1.0).all()


def test_is_differentiable_and_batches_are_samples_alone() -> None:
    rng = np.random.default_rng(2)
    pairs = [sample_view_pair((60, 300, 300), VIEW, rng) for _ in range(4)]
    first, second = zip(*pairs, strict=True)
    features = torch.randn(4, 3, 2, 6, 6, requires_grad=True)
    together, valid = align(features, first, second, POOLED)
    for i in range(4):
        alone, alone_valid = align(features[i : i + 1], first[i : i + 1], second[i : i + 1], POOLED)
        torch.testing.assert_close(together[i : i + 1], alone)
        assert torch.equal(valid[i : i + 1], alone_valid)
    together.sum().backward()
    assert features.grad is not None
    assert float(features.grad.sum()) == pytest.approx(4 * 3 * 72, rel=1e-4)


def test_an_overlap_of_half_a_voxel_is_one() -> None:
    features = torch.arange(12.0).reshape(1, 1, 2, 6, 1).expand(-1, -1, -1, -1, 6)
    one, two = ViewGeometry((0, 0, 0), (5, 5, 5), (False,) * 3), ViewGeometry((4.5, 0, 0), (5, 5, 5), (False,) * 3)
    torch.testing.assert_close(align(features, [one], [two], POOLED)[0][:, :, 0], features[:, :, 1])


def test_refuses() -> None:
    apart = (
        ViewGeometry((0, 0, 0), (5, 5, 5), (False,) * 3),
        ViewGeometry((10, 0, 0), (5, 5, 5), (False,) * 3),
    )
    with pytest.raises(ValueError, match="do not overlap"):
        align(torch.zeros(1, 1, 2, 6, 6), apart[:1], apart[1:], POOLED)
    touching = (apart[0], ViewGeometry((5, 0, 0), (5, 5, 5), (False,) * 3))
    with pytest.raises(ValueError, match="do not overlap"):
        align(torch.zeros(1, 1, 2, 6, 6), touching[:1], touching[1:], POOLED)
    with pytest.raises(ValueError, match="one of each"):
        align(torch.zeros(1, 1, 2, 6, 6), apart[:1], apart, POOLED)
    with pytest.raises(ValueError, match="one of each"):
        align(torch.zeros(2, 1, 2, 6, 6), apart[:1], apart[1:], POOLED)
