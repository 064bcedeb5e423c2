from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from pretraining.views import IntensityRanges, apply_intensity, draw_intensity, intensity

NEUTRAL = [0.0, 0.0, 1.0, 1.0]


def apply_one(view: torch.Tensor, column: int, value: float) -> torch.Tensor:
    draw = list(NEUTRAL)
    draw[column] = value
    return apply_intensity(view, torch.tensor([draw] * len(view)))


def test_draws_match_the_stated_ranges_and_probabilities() -> None:
    draws = draw_intensity(20000, IntensityRanges(), np.random.default_rng(0))
    variance, sigma, factor, exponent = (draws[:, 0] ** 2, draws[:, 1], draws[:, 2], draws[:, 3])
    for values, neutral, probability, (low, high) in (
        (variance, 0, 0.1, (0, 0.1)),
        (sigma, 0, 0.2, (0.5, 1)),
        (factor, 1, 0.5, (0.75, 1.25)),
        (exponent, 1, 0.5, (0.7, 1.5)),
    ):
        drawn = values[values != neutral]
        assert len(drawn) / len(values) == pytest.approx(probability, abs=0.015)
        assert drawn.min() >= low - 1e-6
        assert drawn.max() <= high + 1e-6
        assert drawn.mean() == pytest.approx((low + high) / 2, rel=0.03)


def test_batch_is_each_view_alone_and_neutral_ones_are_untouched() -> None:
    views = torch.randn(6, 1, 5, 9, 8)
    draws = torch.tensor(
        [NEUTRAL, [0, 0.7, 1, 1], [0, 0, 1.2, 1], [0, 0, 1, 0.8], [0, 0.9, 0.8, 1.4], NEUTRAL], dtype=torch.float32
    )
    together = apply_intensity(views, draws)
    alone = torch.cat([apply_intensity(views[i : i + 1], draws[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(together, alone)
    assert torch.equal(together[0], views[0])
    assert torch.equal(together[5], views[5])


def test_blur_is_scipy_s_gaussian_away_from_the_borders() -> None:
    view = torch.randn(1, 1, 24, 24, 24, dtype=torch.float64)
    expected = gaussian_filter(view[0, 0].numpy(), 0.8, truncate=12)
    blurred = apply_one(view, 1, 0.8)[0, 0].numpy()
    inner = (slice(8, 16),) * 3
    np.testing.assert_allclose(blurred[inner], expected[inner], atol=1e-6)


@pytest.mark.parametrize("sigma", [0.5, 0.75, 1.0, 3.0])
def test_blur_matrix_is_the_whole_kernel_to_the_precision_of_float32(sigma: float) -> None:
    index = np.arange(96)
    whole = np.exp(-0.5 * ((index[:, None] - index) / sigma) ** 2)
    whole /= whole.sum(axis=1, keepdims=True)
    matrix = intensity.gaussian_matrix(96, torch.tensor([1.0, sigma]))[1]
    np.testing.assert_allclose(matrix.numpy(), whole, rtol=0, atol=2e-7)
    assert matrix[matrix > 0].min() > 1e-20  # subnormal weights make the products slow


def test_blur_keeps_a_constant_up_to_the_borders() -> None:
    view = torch.full((1, 1, 6, 7, 8), 3.0)
    torch.testing.assert_close(apply_one(view, 1, 1.0), view)


def test_noise_has_the_drawn_deviation_and_follows_the_generator() -> None:
    view = torch.zeros(1, 1, 30, 60, 60)
    draws = torch.tensor([[0.3, 0, 1, 1]])
    noisy = apply_intensity(view, draws, torch.Generator().manual_seed(1))
    assert float(noisy.std()) == pytest.approx(0.3, rel=0.01)
    assert float(noisy.mean()) == pytest.approx(0, abs=0.01)
    assert torch.equal(noisy, apply_intensity(view, draws, torch.Generator().manual_seed(1)))


def test_brightness_is_clipped_to_the_former_range() -> None:
    view = torch.linspace(-1, 2, 60).reshape(1, 1, 3, 4, 5)
    brighter = apply_one(view, 2, 1.25)
    torch.testing.assert_close(brighter, (view * 1.25).clamp(-1, 2))


def test_gamma_on_the_range_of_the_view() -> None:
    view = torch.linspace(-1, 3, 60, dtype=torch.float64).reshape(1, 1, 3, 4, 5)
    expected = ((view + 1) / 4) ** 1.3 * 4 - 1
    torch.testing.assert_close(apply_one(view, 3, 1.3), expected, rtol=1e-6, atol=1e-6)


def test_gamma_of_float32_is_the_power_in_float64() -> None:
    view = torch.randn((1, 1, 16, 32, 32), generator=torch.Generator().manual_seed(0))
    low, high = view.min().double(), view.max().double()
    for exponent in (0.0, 0.01, 0.7, 1.5):
        expected = ((view.double() - low) / (high - low)) ** exponent * (high - low) + low
        changed = apply_one(view, 3, exponent)
        torch.testing.assert_close(changed.double(), expected, rtol=0, atol=float(high - low) * 5e-7)


@pytest.mark.parametrize("step", ["_blur", "_brightness", "_gamma"])
def test_all_at_once_is_one_by_one(step: str) -> None:
    views = torch.randn(5, 2, 6, 9, 9)
    chosen, amounts = torch.tensor([4, 0, 3]), torch.tensor([0.8, 1.2, 0.9]).view(-1, 1, 1, 1, 1)
    together, alone = views.clone(), views.clone()
    intensity.change_together(together, chosen, amounts, getattr(intensity, step))
    intensity.change_one_by_one(alone, chosen, amounts, getattr(intensity, step))
    torch.testing.assert_close(together, alone)
    assert torch.equal(together[[1, 2]], views[[1, 2]])
    assert all(not torch.equal(together[i], views[i]) for i in (0, 3, 4))


def test_constant_view_survives() -> None:
    view = torch.full((1, 1, 3, 3, 3), 5.0)
    for column, value in ((1, 0.9), (2, 1.2), (3, 0.7)):
        torch.testing.assert_close(apply_one(view, column, value), view)
