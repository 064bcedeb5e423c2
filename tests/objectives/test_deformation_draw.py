from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from pretraining.objectives.deformation_apply import DeformationBatch, deform
from pretraining.objectives.deformation_draw import (
    Boxes,
    DeformationSettings,
    ViewDeformation,
    as_arrays,
    draw_deformation,
    draw_shuffles,
)

SIZE = (12, 32, 40)
PUBLISHED_SIZE = (64, 64, 32)
NOTHING = DeformationSettings(curve_probability=0, shuffle_probability=0, paint_probability=0)


def only(**probabilities: float) -> DeformationSettings:
    return replace(NOTHING, **probabilities)  # type: ignore[arg-type]


def draws_of(settings: DeformationSettings, size: tuple[int, int, int], count: int) -> list[ViewDeformation]:
    rng = np.random.default_rng(0)
    return [draw_deformation(size, settings, rng) for _ in range(count)]


def random_view(size: tuple[int, int, int] = SIZE, seed: int = 0) -> Tensor:
    return torch.randn(1, *size, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def deform_one(view: Tensor, draw: ViewDeformation, seed: int = 0) -> Tensor:
    """(C, D, H, W) -> (C, D, H, W)."""
    arrays = as_arrays(draw, view.shape[1:], DeformationSettings(block_size=0.6), np.random.default_rng(seed))
    batch = {name: torch.from_numpy(values)[None] for name, values in arrays.items()}
    return deform(view[None], DeformationBatch(**batch), seeded(seed))[0]


def within(count: int, draws: int, probability: float) -> bool:
    low, high = stats.binom.interval(1 - 1e-4, draws, probability)
    return bool(low <= count <= high)


# What happens how often


def test_each_deformation_is_as_frequent_as_published() -> None:
    count = 4000
    draws = draws_of(DeformationSettings(), (4, 6, 6), count)
    assert within(sum(d.curve is not None for d in draws), count, 0.9)
    assert within(sum(d.blocks is not None for d in draws), count, 0.5)
    assert within(sum(d.inside is not None for d in draws), count, 0.9 * 0.2)
    assert within(sum(d.outside is not None for d in draws), count, 0.9 * 0.8)
    assert not any(d.inside is not None and d.outside is not None for d in draws)
    curves = [d.curve for d in draws if d.curve is not None]
    assert within(sum(curve[0, 1] == 1 for curve in curves), len(curves), 0.5)
    three = [d for d in draws if d.curve is not None and d.blocks is not None and d.outside is not None]
    assert within(len(three), count, 0.9 * 0.5 * 0.9 * 0.8)  # independent of one another


def test_nothing_drawn_changes_nothing() -> None:
    view = random_view()
    for draw in draws_of(NOTHING, SIZE, 20):
        assert draw == ViewDeformation()
        deformed = deform_one(view, draw)
        assert torch.equal(deformed, view)
        assert deformed.data_ptr() != view.data_ptr()


@pytest.mark.parametrize(
    ("size", "offsets"), [((16, 96, 96), np.int16), ((64, 64, 64), np.int16), ((40, 160, 160), np.int32)]
)
def test_shapes_and_types_are_the_same_for_all_views_of_a_size(size: tuple[int, int, int], offsets: type) -> None:
    """And small: 2 bytes a voxel for the default views."""
    rng = np.random.default_rng(0)
    draws = [*draws_of(DeformationSettings(), size, 8), ViewDeformation()]
    kinds = [
        {
            name: (values.shape, values.dtype)
            for name, values in as_arrays(draw, size, DeformationSettings(), rng).items()
        }
        for draw in draws
    ]
    assert all(kind == kinds[0] for kind in kinds)
    assert kinds[0]["offsets"] == (size, offsets)
    rest = [math.prod(shape) * dtype.itemsize for name, (shape, dtype) in kinds[0].items() if name != "offsets"]
    assert sum(rest) < 512


def test_offsets_fit_their_type() -> None:
    """Also where the first voxel of the largest block comes from its last one."""
    for size in ((16, 96, 96), (4, 6, 6), (1, 1, 1), (40, 160, 160)):
        draw = draws_of(only(shuffle_probability=1), size, 1)[0]
        assert draw.blocks is not None
        arrays = as_arrays(draw, size, DeformationSettings(), np.random.default_rng(3))
        assert np.array_equal(arrays["offsets"], draw_shuffles(draw.blocks, size, np.random.default_rng(3)))
        span = draw.blocks.sizes.max(axis=0) - 1
        assert np.iinfo(arrays["offsets"].dtype).max >= span @ (size[1] * size[2], size[2], 1)


def test_same_seed_same_view() -> None:
    view = random_view()
    everything = DeformationSettings(1.0, shuffle_probability=1.0, paint_probability=1.0)
    first, again = (draws_of(everything, SIZE, 1)[0] for _ in range(2))
    assert torch.equal(deform_one(view, first), deform_one(view, again))
    assert not torch.equal(deform_one(view, first), deform_one(view, first, seed=1))


@pytest.mark.parametrize("size", [(4, 6, 6), (1, 1, 1), (2, 3, 5), (7, 14, 21), (16, 24, 24)])
def test_views_of_any_size_stay_in_their_range(size: tuple[int, int, int]) -> None:
    view = random_view(size)
    for number, draw in enumerate(draws_of(DeformationSettings(), size, 100)):
        deformed = deform_one(view, draw, number)
        assert deformed.shape == view.shape
        assert deformed.dtype == view.dtype
        assert view.min() <= deformed.min()
        assert deformed.max() <= view.max()
        for boxes in (draw.blocks, draw.inside, draw.outside):
            if boxes is not None:
                assert np.all(boxes.starts >= 0)
                assert np.all(boxes.starts + boxes.sizes <= size)


def test_a_constant_view_stays_so() -> None:
    view = torch.full((1, 4, 6, 6), -1.5)
    for draw in draws_of(DeformationSettings(), (4, 6, 6), 30):
        assert torch.equal(deform_one(view, draw), view)


# Intensities


def bezier(u: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The cubic of these control points as a map of the first coordinate to the second."""
    t = np.linspace(0, 1, 400001)
    (x0, x1, x2, x3), (y0, y1, y2, y3) = points.T
    weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
    x = weights[0] * x0 + weights[1] * x1 + weights[2] * x2 + weights[3] * x3
    y = weights[0] * y0 + weights[1] * y1 + weights[2] * y2 + weights[3] * y3
    return np.interp(u, x, y)


def test_curve_is_the_bezier_curve_on_the_range_of_the_view() -> None:
    view = torch.rand(1, *SIZE, generator=seeded()) * 7 - 3.5
    low, high = view.double().min().item(), view.double().max().item()
    u = (view.double().numpy() - low) / (high - low)
    for draw in draws_of(only(curve_probability=1), SIZE, 40):
        assert draw.curve is not None
        expected = low + (high - low) * bezier(u, draw.curve)
        np.testing.assert_allclose(deform_one(view, draw).numpy(), expected, atol=1e-3 * (high - low))


def test_curve_is_monotonic_and_keeps_the_range() -> None:
    view = random_view()
    order = view.flatten().argsort()
    directions = set()
    for draw in draws_of(only(curve_probability=1), SIZE, 100):
        mapped = deform_one(view, draw).flatten()[order]
        steps = mapped.diff()
        falls = bool(mapped[0] > mapped[-1])
        directions.add(falls)
        assert bool((steps <= 0).all() if falls else (steps >= 0).all())
        torch.testing.assert_close(mapped.aminmax(), view.aminmax())
    assert directions == {True, False}


def test_control_points_are_uniform() -> None:
    curves = [draw.curve for draw in draws_of(only(curve_probability=1), (1, 1, 1), 2000)]
    inner = np.stack([curve[1:3] for curve in curves if curve is not None]).reshape(len(curves), 4)
    for column in inner.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3


# Shuffling


def test_one_block_keeps_its_values_and_all_else_its_places() -> None:
    view = torch.arange(math.prod(SIZE), dtype=torch.float32).reshape(1, *SIZE)
    block = (slice(2, 5), slice(7, 11), slice(30, 39))
    shuffled = deform_one(view, ViewDeformation(blocks=Boxes(np.array([[2, 7, 30]]), np.array([[3, 4, 9]]))))
    inside, before = shuffled[0][block].flatten(), view[0][block].flatten()
    assert torch.equal(inside.sort().values, before)
    assert int((inside != before).sum()) > 90  # of 108: on average one stays in its place
    outside = torch.ones(SIZE, dtype=torch.bool)
    outside[block] = False
    assert torch.equal(shuffled[0][outside], view[0][outside])


def test_all_orders_of_a_block_are_equally_likely() -> None:
    tiles = 60
    corners = np.array([(0, 2 * y, 2 * x) for y in range(tiles) for x in range(tiles)])
    view = torch.arange(4.0).reshape(1, 1, 2, 2).repeat(1, 1, tiles, tiles)
    blocks = Boxes(corners, np.tile((1, 2, 2), (len(corners), 1)))
    shuffled = deform_one(view, ViewDeformation(blocks=blocks))[0, 0]
    orders = shuffled.reshape(tiles, 2, tiles, 2).permute(0, 2, 1, 3).reshape(-1, 4).long()
    assert torch.equal(orders.sort(dim=1).values, torch.arange(4).expand(len(corners), 4))
    counts = np.unique(orders.numpy(), axis=0, return_counts=True)[1]
    assert len(counts) == math.factorial(4)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_where_blocks_overlap_the_last_counts_and_shuffles_the_view_as_it_was() -> None:
    view = torch.arange(100.0).reshape(1, 1, 10, 10)
    blocks = Boxes(np.array([[0, 0, 0], [0, 3, 3]]), np.array([[1, 6, 6], [1, 6, 6]]))
    shuffled = deform_one(view, ViewDeformation(blocks=blocks))[0, 0]
    first, last = view[0, 0, :6, :6], view[0, 0, 3:9, 3:9]
    assert torch.equal(shuffled[3:9, 3:9].flatten().sort().values, last.flatten())
    rest = torch.cat((shuffled[:3, :6].flatten(), shuffled[3:6, :3].flatten()))
    assert set(rest.tolist()) <= set(first.flatten().tolist())
    assert len(set(rest.tolist())) == len(rest)


@pytest.mark.parametrize(
    ("size", "longest"), [(PUBLISHED_SIZE, (6, 6, 3)), ((16, 96, 96), (2, 9, 9)), ((4, 6, 6), (2, 2, 2))]
)
def test_values_come_from_within_the_longest_edge(size: tuple[int, int, int], longest: tuple[int, int, int]) -> None:
    view = torch.arange(math.prod(size), dtype=torch.float32).reshape(1, *size)
    draw = draws_of(only(shuffle_probability=1), size, 1)[0]
    assert draw.blocks is not None
    source = np.stack(np.unravel_index(deform_one(view, draw)[0].numpy().astype(int), size))
    distance = np.abs(source - np.indices(size)).reshape(3, -1)
    assert np.all(distance.max(axis=1) == np.array(longest) - 1)
    assert np.all(draw.blocks.starts >= 0)
    assert np.all(draw.blocks.starts + draw.blocks.sizes <= size)
    moved = np.any(distance > 0, axis=0).reshape(size)
    assert not np.any(moved & ~draw.blocks.covered(size))


@pytest.mark.parametrize("size", [SIZE, (4, 6, 6), (3, 70, 5)])
def test_each_voxel_comes_from_the_last_block_around_it_and_none_twice(size: tuple[int, int, int]) -> None:
    """With blocks of all sizes, painted one after the other."""
    index = np.arange(math.prod(size)).reshape(size)
    for seed, draw in enumerate(draws_of(only(shuffle_probability=1), size, 5)):
        assert draw.blocks is not None
        last = np.full(size, -1)
        for number, ((z, y, x), (d, h, w)) in enumerate(zip(draw.blocks.starts, draw.blocks.sizes, strict=True)):
            last[z : z + d, y : y + h, x : x + w] = number
        sources = index + draw_shuffles(draw.blocks, size, np.random.default_rng(seed))
        assert np.array_equal(sources[last < 0], index[last < 0])
        blocks, places = last[last >= 0], np.stack(np.unravel_index(sources[last >= 0], size), axis=1)
        starts = draw.blocks.starts[blocks]
        assert np.all(places >= starts)
        assert np.all(places < starts + draw.blocks.sizes[blocks])
        assert len(np.unique(np.column_stack((blocks, places)), axis=0)) == len(blocks)


def plain_shuffle(view: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """The published procedure block by block: 10,000 blocks in 64 x 64 x 32 voxels, edges up to 6, 6 and 3."""
    result = view.copy()
    for _ in range(10_000):
        edges = [int(rng.integers(1, n // 10 + 1)) for n in view.shape]
        starts = [int(rng.integers(0, n - edge + 1)) for n, edge in zip(view.shape, edges, strict=True)]
        block = tuple(slice(start, start + edge) for start, edge in zip(starts, edges, strict=True))
        result[block] = rng.permutation(view[block].ravel()).reshape(edges)
    return result


def test_as_many_voxels_move_as_far_as_in_the_published_procedure() -> None:
    size = PUBLISHED_SIZE
    index = np.arange(math.prod(size), dtype=np.float64).reshape(size)
    draw = draws_of(only(shuffle_probability=1), size, 1)[0]
    assert draw.blocks is not None
    assert len(draw.blocks.sizes) == 10_000
    ours = deform_one(torch.from_numpy(index)[None], draw)[0].numpy()
    plain = plain_shuffle(index, np.random.default_rng(1))
    shares = []
    for shuffled in (ours, plain):
        source = np.stack(np.unravel_index(shuffled.astype(int), size))
        distance = np.abs(source - np.indices(size)).reshape(3, -1)
        shares.append([np.mean(distance[axis] == far) for axis in range(3) for far in range(6)])
        shares[-1].append(np.mean(np.any(distance > 0, axis=0)))
    np.testing.assert_allclose(shares[0], shares[1], atol=0.01)
    assert 0.7 < shares[1][-1] < 0.9


def test_small_views_are_shuffled_as_much() -> None:
    for size in ((16, 24, 24), (16, 96, 96)):
        view = random_view(size)
        changed = [deform_one(view, draw) != view for draw in draws_of(only(shuffle_probability=1), size, 5)]
        assert 0.5 < torch.stack(changed).float().mean() < 0.9


def test_channels_are_shuffled_alike() -> None:
    view = random_view().repeat(2, 1, 1, 1) * torch.tensor([1.0, -3.0]).view(2, 1, 1, 1)
    draw = draws_of(only(shuffle_probability=1), SIZE, 1)[0]
    shuffled = deform_one(view, draw)
    assert torch.equal(shuffled[1], -3 * shuffled[0])
    assert not torch.equal(shuffled, view)


# Painting


def test_inner_windows_are_painted_and_nothing_else() -> None:
    view = random_view()
    inner = torch.zeros(SIZE, dtype=torch.bool)
    inner[3:-3, 3:-3, 3:-3] = True
    shares = []
    for number, draw in enumerate(draws_of(only(paint_probability=1, inpaint_probability=1), SIZE, 60)):
        assert draw.inside is not None
        changed = (deform_one(view, draw, number) != view)[0]
        assert not (changed & ~inner).any()
        assert np.array_equal(changed.numpy(), draw.inside.covered(SIZE))
        shares.append(float(changed.float().mean()) if len(draw.inside.sizes) else math.nan)
    # One window has at least 1/6 of each axis (rounded down), five have at most 1/3.
    assert np.nanmin(shares) >= 2 * 5 * 6 / math.prod(SIZE)
    assert np.nanmax(shares) <= 5 / 27
    assert np.isnan(shares).any()  # sometimes there is no window at all


def test_outer_windows_keep_and_nothing_else() -> None:
    view = random_view()
    for number, draw in enumerate(draws_of(only(paint_probability=1, inpaint_probability=0), SIZE, 60)):
        assert draw.outside is not None
        kept = (deform_one(view, draw, number) == view)[0]
        assert np.array_equal(kept.numpy(), draw.outside.covered(SIZE))
        assert (3 / 7) ** 3 <= float(kept.float().mean()) <= 5 * (7 / 12 * 19 / 32 * 23 / 40)
        faces = kept.clone()
        faces[2:-2, 3:-3, 3:-3] = False  # 12 voxels less a window of 7 leave 2 in front
        assert not faces.any()


def test_noise_is_uniform_over_the_range_of_the_view() -> None:
    view = random_view()
    draw = draws_of(only(paint_probability=1, inpaint_probability=0), SIZE, 1)[0]
    deformed = deform_one(view, draw)
    noise = deformed[deformed != view].double().numpy()
    low, high = view.min().item(), view.max().item()
    assert stats.kstest(noise, "uniform", args=(low, high - low)).pvalue > 1e-3


@pytest.mark.parametrize(
    ("inside", "smallest", "largest"), [(True, (10, 10, 5), (21, 21, 10)), (False, (28, 28, 14), (37, 37, 19))]
)
def test_windows_of_the_published_size_are_the_published_windows(
    inside: bool, smallest: tuple[int, int, int], largest: tuple[int, int, int]
) -> None:
    """64 // 6 .. 64 // 3 voxels are painted; 64 - 4 * 64 // 7 .. 64 - 3 * 64 // 7 are kept; three at least are left."""
    count = 1500
    draws = draws_of(only(paint_probability=1, inpaint_probability=float(inside)), PUBLISHED_SIZE, count)
    windows = [window for d in draws if (window := d.inside if inside else d.outside) is not None]
    sizes = np.concatenate([w.sizes for w in windows])
    starts = np.concatenate([w.starts for w in windows])
    assert np.array_equal(sizes.min(axis=0), smallest)
    assert np.array_equal(sizes.max(axis=0), largest)
    assert np.array_equal(starts.min(axis=0), (3, 3, 3))
    assert np.array_equal((starts + sizes).max(axis=0), np.array(PUBLISHED_SIZE) - 3)
    numbers = [len(w.sizes) for w in windows]
    certain = 0 if inside else 1
    assert min(numbers) == certain
    assert within(numbers.count(certain), count, 0.05)
    assert within(numbers.count(5), count, 0.95 ** (5 - certain))


@pytest.mark.parametrize(
    ("inside", "smallest", "largest"), [(True, (2, 2, 5), (4, 4, 10)), (False, (6, 6, 13), (7, 8, 18))]
)
def test_windows_of_views_whose_shares_are_whole_numbers(
    inside: bool, smallest: tuple[int, int, int], largest: tuple[int, int, int]
) -> None:
    """A sixth and a third of 12 and 30 voxels, three and four sevenths of 14."""
    draws = draws_of(only(paint_probability=1, inpaint_probability=float(inside)), (12, 14, 30), 300)
    windows = [window for d in draws if (window := d.inside if inside else d.outside) is not None]
    sizes = np.concatenate([w.sizes for w in windows])
    assert np.array_equal(sizes.min(axis=0), smallest)
    assert np.array_equal(sizes.max(axis=0), largest)


# Order


def test_shuffled_first_then_mapped_then_painted() -> None:
    """The curve meets the shuffled values, on the range the view had before, and the noise comes last."""
    view = random_view()
    low, high = view.double().min().item(), view.double().max().item()
    settings = DeformationSettings(1.0, shuffle_probability=1.0, paint_probability=1.0)
    for draw in draws_of(settings, SIZE, 5):
        shuffled = deform_one(view, ViewDeformation(blocks=draw.blocks))[0].double().numpy()
        assert draw.curve is not None
        mapped = low + (high - low) * bezier((shuffled - low) / (high - low), draw.curve)
        deformed = deform_one(view, draw)[0].numpy()
        windows = draw.inside if draw.outside is None else draw.outside
        assert windows is not None
        painted = windows.covered(SIZE) == (draw.inside is not None)
        close = np.abs(deformed - mapped) < 1e-3 * (high - low)
        assert close[~painted].all()
        assert close[painted].mean() < 0.02
