from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pretraining.views import GeometryBatch, ViewGeometry, render_views, rendering, sample_view_pair
from pretraining.views.rendering import (
    largest_source_box,
    render_by_matrices,
    render_by_rows,
    render_crops,
    source_box,
)
from pretraining.views.sampling import linear_neighbours, linear_sampling_matrix


def with_grid_sample(volume: Tensor, geometry: ViewGeometry, view_size: tuple[int, int, int]) -> Tensor:
    """The same view by `F.grid_sample`, which wants (x, y, z) in [-1, 1] with edges at the ends."""
    axes = []
    for start, size, flip, n, length in zip(
        geometry.start, geometry.size, geometry.flip, view_size, volume.shape[1:], strict=True
    ):
        places = start + (torch.arange(n, dtype=torch.float64) + 0.5) / n * size
        axes.append(2 * (places.flip(0) if flip else places) / length - 1)
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    grid = torch.stack((x, y, z), dim=-1)[None].to(volume.dtype)
    return F.grid_sample(volume[None], grid, mode="bilinear", padding_mode="border", align_corners=False)[0]


@pytest.mark.parametrize("shape", [(40, 60, 50), (9, 24, 31), (7, 20, 20)])
def test_agrees_with_grid_sample(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    volume = torch.randn(2, *shape, dtype=torch.float64)
    for _ in range(20):
        pair = sample_view_pair(shape, (8, 20, 24), rng)
        views = render_views(volume, pair, (8, 20, 24))
        for view, geometry in zip(views, pair, strict=True):
            torch.testing.assert_close(view, with_grid_sample(volume, geometry, (8, 20, 24)), rtol=0, atol=1e-5)


def test_float32_agrees_with_grid_sample() -> None:
    volume = torch.randn(1, 30, 60, 60)
    pair = sample_view_pair((30, 60, 60), (8, 24, 24), np.random.default_rng(3))
    for view, geometry in zip(render_views(volume, pair, (8, 24, 24)), pair, strict=True):
        exact = with_grid_sample(volume.double(), geometry, (8, 24, 24))  # its float32 is itself 1e-5 off
        torch.testing.assert_close(view, exact.float(), rtol=0, atol=1e-5)


def crops_and_positions(flip: bool) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor], Tensor]:
    """Three padded int16 crops of two channels, one of them a single voxel high, and where to sample them."""
    generator = torch.Generator().manual_seed(0)
    extents = torch.tensor([[5, 9, 12], [7, 11, 9], [1, 2, 3]], dtype=torch.float64)
    crops = torch.randint(-1024, 326, (3, 2, 7, 11, 12), dtype=torch.int16, generator=generator)
    shares = [torch.rand((3, n), dtype=torch.float64, generator=generator).sort(descending=flip)[0] for n in (4, 6, 8)]
    for share in shares:
        share[:, 0], share[:, -1] = 0, 1  # the centres of the outermost voxels
    z, y, x = (share * (extents[:, axis : axis + 1] - 1) for axis, share in enumerate(shares))
    return crops, (z, y, x), extents


@pytest.mark.parametrize("flip", [False, True])
def test_by_rows_is_by_matrices(flip: bool) -> None:
    crops, positions, extents = crops_and_positions(flip)
    plain = render_by_matrices(crops, positions, extents, torch.float64)
    rows = render_by_rows(crops, positions, extents, torch.float64)
    torch.testing.assert_close(rows, plain, rtol=0, atol=1e-9)
    for render in (render_by_rows, render_by_matrices):
        views = render(crops, positions, extents, torch.float32)
        assert views.dtype == torch.float32
        torch.testing.assert_close(views.double(), plain, rtol=0, atol=1e-3)  # of values up to 1024


def test_by_rows_never_looks_at_the_padding() -> None:
    crops, positions, extents = crops_and_positions(False)
    poisoned = torch.full(crops.shape, torch.nan, dtype=torch.float64)
    for crop, (d, h, w), source in zip(poisoned, extents.long().tolist(), crops, strict=True):
        crop[:, :d, :h, :w] = source[:, :d, :h, :w]
    expected = render_by_rows(crops, positions, extents, torch.float64)
    assert torch.equal(render_by_rows(poisoned, positions, extents, torch.float64), expected)


def test_neighbours_are_the_non_zeros_of_the_matrix() -> None:
    positions = torch.tensor([[0.0, 0.25, 2.0, 3.75], [4.0, 1.5, 3.0, 0.0]], dtype=torch.float64)
    cells, weights = linear_neighbours(positions, torch.float64)
    matrix = torch.zeros(2, 4, 5, dtype=torch.float64).scatter_add_(2, cells, weights)
    assert torch.equal(matrix, linear_sampling_matrix(positions, 5))


def test_whole_volume_is_itself_and_flips_reverse_it() -> None:
    volume = torch.arange(2 * 3 * 4, dtype=torch.float32).reshape(1, 2, 3, 4)
    geometries = [ViewGeometry((0, 0, 0), (2, 3, 4), flip) for flip in ((False,) * 3, (True, False, True))]
    views = render_views(volume, geometries, (2, 3, 4))
    assert torch.equal(views[0], volume)
    assert torch.equal(views[1], volume.flip((1, 3)))


def test_integer_crop_is_a_slice() -> None:
    volume = torch.randn(1, 8, 9, 10)
    view = render_views(volume, [ViewGeometry((1, 2, 3), (4, 5, 6), (False,) * 3)], (4, 5, 6))
    assert torch.equal(view[0], volume[:, 1:5, 2:7, 3:9])


def test_is_differentiable() -> None:
    volume = torch.randn(1, 8, 9, 10, requires_grad=True)
    render_views(volume, [ViewGeometry((1.5, 2, 3), (4, 5, 6), (True,) * 3)], (3, 4, 5)).sum().backward()
    assert volume.grad is not None
    assert float(volume.grad.sum()) == pytest.approx(3 * 4 * 5, rel=1e-5)


def test_sampling_matrix_by_hand() -> None:
    matrix = linear_sampling_matrix(torch.tensor([-1.0, 0.25, 2.0, 9.0]), 3)
    assert matrix.tolist() == [[1, 0, 0], [0.75, 0.25, 0], [0, 0, 1], [0, 0, 1]]


def test_what_a_view_reads_by_hand() -> None:
    """One voxel more than its box on either side, as far as there are any."""
    geometry = ViewGeometry((2.5, 0.3, 4.0), (3.0, 9.0, 3.0), (False,) * 3)
    assert source_box(geometry, (20, 10, 8)) == ((1, 0, 3), (7, 10, 8))
    assert source_box(geometry, (20, 30, 30)) == ((1, 0, 3), (7, 11, 8))
    assert source_box(ViewGeometry((1, 2, 3), (1, 1, 1), (False,) * 3), (9, 9, 9)) == ((0, 1, 2), (3, 4, 5))


def test_the_largest_box_read_is_reached_and_never_exceeded() -> None:
    """Boxes of 14 voxels: on whole voxels two more are read, anywhere else three."""
    read = []
    for start in np.linspace(3, 4, 11):
        low, high = source_box(ViewGeometry((start,) * 3, (14.0,) * 3, (False,) * 3), (40, 40, 40))
        read.append(high[0] - low[0])
    assert largest_source_box((10, 10, 10), (1.1, 1.4)) == (max(read),) * 3 == (17, 17, 17)


def test_no_views_of_a_volume() -> None:
    views = render_views(torch.zeros(2, 8, 8, 8, dtype=torch.float64), [], (3, 4, 5))
    assert (views.shape, views.dtype) == ((0, 2, 3, 4, 5), torch.float64)


def test_a_box_may_leave_the_volume_by_rounding() -> None:
    volume = torch.randn(1, 8, 8, 8)
    rounded = ViewGeometry((-1e-7, 0, 0), (8 + 2e-7, 8, 8), (False,) * 3)
    torch.testing.assert_close(render_views(volume, [rounded], (8, 8, 8))[0], volume)
    for start, size in (((-0.5, 0, 0), (4, 4, 4)), ((0, 0, 4.5), (4, 4, 4))):
        with pytest.raises(ValueError, match="leaves the volume"):
            render_views(volume, [ViewGeometry(start, size, (False,) * 3)], (4, 4, 4))


def test_refuses_a_box_outside_and_integers() -> None:
    outside = ViewGeometry((5, 0, 0), (4, 4, 4), (False,) * 3)
    with pytest.raises(ValueError, match="leaves the volume"):
        render_views(torch.zeros(1, 8, 8, 8), [outside], (4, 4, 4))
    with pytest.raises(ValueError, match="floating point"):
        render_views(torch.zeros(1, 8, 8, 8, dtype=torch.int16), [], (4, 4, 4))


@pytest.mark.parametrize(("device", "way"), [("cpu", "rows"), ("meta", "matrices")])
def test_each_device_renders_its_own_way(monkeypatch: pytest.MonkeyPatch, device: str, way: str) -> None:
    """The views are the same; on a CPU rows are six times as fast, on a GPU they would be thousands of kernels."""
    for name in ("rows", "matrices"):
        monkeypatch.setattr(rendering, f"render_by_{name}", lambda *arguments, name=name: name)
    box = torch.tensor([[0.0, 0, 0]]), torch.tensor([[4.0, 4, 4]]), torch.tensor([[False] * 3])
    geometries = GeometryBatch(*(values.to(device) for values in box))
    crops, corners = torch.zeros(1, 1, 4, 4, 4, device=device), torch.zeros(1, 3, device=device)
    assert render_crops(crops, corners, corners + 4, geometries, (2, 2, 2)) == way
