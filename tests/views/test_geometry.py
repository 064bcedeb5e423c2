from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from pretraining.views import ViewGeometry, overlap_box, overlap_fraction, sample_view_pair

VIEW = (16, 96, 96)


def test_overlap_by_hand() -> None:
    a = ViewGeometry((0, 0, 0), (10, 10, 10), (False,) * 3)
    b = ViewGeometry((5, 2, 9.5), (10, 4, 10), (True,) * 3)
    start, size = overlap_box(a, b)
    assert start.tolist() == [5, 2, 9.5]
    assert size.tolist() == [5, 4, 0.5]
    assert overlap_fraction(a, b) == pytest.approx(10 / 1000)
    assert overlap_box(a, ViewGeometry((20, 0, 0), (5, 5, 5), (False,) * 3))[1][0] == 0


@settings(max_examples=150, deadline=None)
@given(
    shape=st.tuples(st.integers(3, 60), st.integers(40, 400), st.integers(40, 400)),
    min_overlap=st.sampled_from([0.0, 0.1, 0.3]),
    seed=st.integers(0, 2**31),
)
def test_boxes_stay_inside_and_overlap(shape: tuple[int, int, int], min_overlap: float, seed: int) -> None:
    pair = sample_view_pair(shape, VIEW, np.random.default_rng(seed), min_overlap=min_overlap)
    for geometry in pair:
        assert min(geometry.start) >= 0
        assert all(e <= n + 1e-9 for e, n in zip(geometry.end, shape, strict=True))
        for size, view, extent in zip(geometry.size, VIEW, shape, strict=True):
            assert size <= 1.4 * view + 1e-9
            assert size >= 1.1 * view - 1e-9 or extent < 1.1 * view
    assert overlap_fraction(*pair) >= min_overlap - 1e-9


def test_distributions_in_a_large_scan() -> None:
    rng = np.random.default_rng(0)
    pairs = [sample_view_pair((200, 600, 600), VIEW, rng) for _ in range(3000)]
    views = [view for pair in pairs for view in pair]
    scales = np.array([view.size for view in views]) / VIEW
    assert scales.min() >= 1.1
    assert scales.max() <= 1.4
    # Uniform in 1.1 .. 1.4: mean 1.25, standard deviation 0.3 / sqrt(12); axes independent.
    assert scales.mean(axis=0) == pytest.approx(1.25, abs=0.01)
    assert scales.std(axis=0) == pytest.approx(0.3 / np.sqrt(12), abs=0.005)
    assert np.abs(np.corrcoef(scales.T)[np.triu_indices(3, 1)]).max() < 0.06
    assert np.mean([view.flip for view in views], axis=0) == pytest.approx(0.5, abs=0.03)
    centres = np.array([np.add(a.start, np.array(a.size) / 2) for a, _ in pairs])
    assert centres.mean(axis=0) == pytest.approx([100, 300, 300], rel=0.05)
    overlaps = [overlap_fraction(*pair) for pair in pairs]
    assert min(overlaps) >= 0.1
    assert min(overlaps) < 0.12  # the bound is reached: pairs are not drawn closer than it asks


def test_small_scan_shrinks_the_box_and_keeps_its_variety() -> None:
    rng = np.random.default_rng(1)
    sizes = np.array([v.size for _ in range(500) for v in sample_view_pair((12, 300, 300), VIEW, rng)])
    assert sizes[:, 0].max() <= 12
    assert sizes[:, 0].max() > 11.9
    assert sizes[:, 0].min() == pytest.approx(12 * 1.1 / 1.4, abs=0.05)


def test_same_generator_same_pair() -> None:
    draw = [sample_view_pair((40, 200, 200), VIEW, np.random.default_rng(7)) for _ in range(2)]
    assert draw[0] == draw[1]


def test_whole_overlap_at_one_scale_is_the_same_box() -> None:
    """The paper's ablation without cropping: -scale 1 1 -min_overlap 1."""
    rng = np.random.default_rng(0)
    for shape in ((20, 120, 133), (16, 96, 96), (9, 50, 200), (37, 101, 97)):
        for _ in range(20):
            one, two = sample_view_pair(shape, (16, 96, 96), rng, scale=(1.0, 1.0), min_overlap=1.0)
            assert one.size == two.size
            np.testing.assert_allclose(one.start, two.start, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"volume_shape": (40, 200)}, "three positive sizes"),
        ({"volume_shape": (0, 200, 200)}, "three positive sizes"),
        ({"view_size": (16, 96)}, "three positive sizes"),
        ({"view_size": (16, 0, 96)}, "three positive sizes"),
        ({"scale": (0.0, 1.1)}, "two positive numbers"),
        ({"scale": (1.4, 1.1)}, "rising order"),
        ({"min_overlap": 1.5}, "between 0 and 1"),
        ({"flip_probability": 1.5}, "flip_probability must be one or three"),
        ({"flip_probability": (0.5, 0.5)}, "flip_probability must be one or three"),
        ({"flip_probability": (0.5, 0.5, float("nan"))}, "flip_probability must be one or three"),
        ({"scale": (0.5, 4.0), "min_overlap": 0.999}, "overlaps by"),
    ],
)
def test_refuses(arguments: dict, message: str) -> None:
    defaults = {"volume_shape": (80, 400, 400), "view_size": VIEW, "rng": np.random.default_rng(0)}
    with pytest.raises(ValueError, match=message):
        sample_view_pair(**{**defaults, **arguments})


def test_scans_and_views_of_one_voxel() -> None:
    one, two = sample_view_pair((1, 50, 50), (1, 1, 20), np.random.default_rng(0), scale=(1.0, 1.0), min_overlap=0.0)
    assert one.size == two.size == (1, 1, 20)
    assert one.start[0] == two.start[0] == 0


def test_a_scan_as_large_as_the_smallest_box_is_shown_whole() -> None:
    rng = np.random.default_rng(0)
    sizes = [view.size for _ in range(20) for view in sample_view_pair((10, 40, 40), (10, 20, 20), rng, scale=(1, 2))]
    assert {z for z, _, _ in sizes} == {10.0}


@pytest.mark.parametrize(
    ("shape", "min_overlap"), [((30, 150, 220), 0.3), ((60, 300, 140), 0.1), ((18, 120, 110), 0.6)]
)
def test_the_second_box_is_uniform_among_those_that_overlap_enough(
    shape: tuple[int, int, int], min_overlap: float
) -> None:
    """Beside places drawn anywhere in the scan until one overlaps enough: shares below each tenth, and their ends."""
    rng, draws, size = np.random.default_rng(0), 1500, np.array(VIEW) * 1.1
    pairs = [sample_view_pair(shape, VIEW, rng, scale=(1.1, 1.1), min_overlap=min_overlap) for _ in range(draws)]
    first, second = (np.array([pair[half].start for pair in pairs]) for half in (0, 1))
    room = np.array(shape) - size
    anywhere = rng.random((draws, 1000, 3)) * room
    common = np.clip(size - np.abs(anywhere - first[:, None]), 0, None).prod(axis=2)
    enough = common >= min_overlap * size.prod()
    assert enough.any(axis=1).all()
    reference = anywhere[np.arange(draws), enough.argmax(axis=1)]
    for axis in range(3):
        assert ks_2samp(first[:, axis], rng.random(draws) * room[axis]).pvalue > 1e-3
        assert ks_2samp(second[:, axis], reference[:, axis]).pvalue > 1e-3
        assert ks_2samp((second - first)[:, axis], (reference - first)[:, axis]).pvalue > 1e-3
        assert second[:, axis].min() < 0.02 * room[axis]
        assert second[:, axis].max() > 0.98 * room[axis]


def test_boxes_less_than_a_voxel_thick_overlap_enough_as_well() -> None:
    rng = np.random.default_rng(0)
    pairs = [sample_view_pair((3, 60, 60), (1, 20, 20), rng, scale=(0.5, 0.7), min_overlap=0.3) for _ in range(100)]
    assert min(overlap_fraction(*pair) for pair in pairs) >= 0.3 - 1e-9


def test_flips_along_each_axis_by_its_own_probability() -> None:
    def flips(probability: float | tuple[float, float, float]) -> np.ndarray:
        rng = np.random.default_rng(5)
        pairs = [sample_view_pair((40, 200, 200), VIEW, rng, flip_probability=probability) for _ in range(2000)]
        return np.array([view.flip for pair in pairs for view in pair])

    assert flips((0.2, 0.0, 1.0)).mean(axis=0) == pytest.approx([0.2, 0, 1], abs=0.03)
    assert np.array_equal(flips(0.3), flips((0.3, 0.3, 0.3)))
    assert np.array_equal(flips((0.5, 0.0, 0.5))[:, [0, 2]], flips(0.5)[:, [0, 2]])  # what else is drawn stays


def test_old_runs_keep_their_pairs() -> None:
    """The numbers are what release 0.1.0 draws."""
    one, two = sample_view_pair((40, 200, 200), VIEW, np.random.default_rng(7), flip_probability=0.5)
    assert one.start == pytest.approx((0.10214449580055247, 56.303619538555836, 57.43702399376483))
    assert two.size == pytest.approx((18.680994511954843, 114.2447890054433, 130.75833922741234))
    assert (one.flip, two.flip) == ((False, False, True), (False, True, False))
