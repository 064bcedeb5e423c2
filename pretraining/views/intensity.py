"""Intensity changes of the views (section 3.2, steps 3 to 6): drawn per view, applied to a batch on its device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretraining.views.sampling import apply_per_axis

_NEUTRAL = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class IntensityRanges:
    """Uniform ranges and probabilities of each change; the defaults are the paper's.

    Attributes:
        noise_variance: Variance of white Gaussian noise, in units of the z-scored scan.
        blur_sigma: Standard deviation of the Gaussian kernel, in voxels of the view.
        brightness: Factor on the voxel values, which are then clipped to the view's range.
        gamma: Exponent applied to the view rescaled to [0, 1] (paper, eq. 2).
    """

    noise_variance: tuple[float, float] = (0.0, 0.1)
    noise_probability: float = 0.1
    blur_sigma: tuple[float, float] = (0.5, 1.0)
    blur_probability: float = 0.2
    brightness: tuple[float, float] = (0.75, 1.25)
    brightness_probability: float = 0.5
    gamma: tuple[float, float] = (0.7, 1.5)
    gamma_probability: float = 0.5


def draw_intensity(views: int, ranges: IntensityRanges, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draws the changes of each view.

    Returns:
        (views, 4): standard deviation of the noise, sigma of the blur, factor, exponent; 0, 0, 1 and 1 mean no change.
    """
    steps = (
        (ranges.noise_variance, ranges.noise_probability),
        (ranges.blur_sigma, ranges.blur_probability),
        (ranges.brightness, ranges.brightness_probability),
        (ranges.gamma, ranges.gamma_probability),
    )
    draws = np.empty((views, len(steps)), dtype=np.float32)
    for column, ((low, high), probability) in enumerate(steps):
        happens = rng.random(views) < probability
        draws[:, column] = np.where(happens, rng.uniform(low, high, views), _NEUTRAL[column])
    draws[:, 0] = np.sqrt(draws[:, 0])
    return draws


def apply_intensity(views: Tensor, draws: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Applies noise, blur, brightness and gamma, in this order, each only to the views it was drawn for.

    Args:
        views: (B, C, D, H, W), floating point.
        draws: (B, 4) as returned by `draw_intensity`.
        generator: Source of the noise's values, on the device of ``views``.

    Returns:
        (B, C, D, H, W), a new tensor; views whose draws are neutral are unchanged to the bit.
    """
    out = views.clone()
    draws = draws.to(views.device, views.dtype)
    steps = (
        lambda x, sigma: x + sigma * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device),
        _blur,
        _brightness,
        _gamma,
    )
    neutral = draws.new_tensor(_NEUTRAL)
    for column, step in enumerate(steps):
        chosen = torch.nonzero(draws[:, column] != neutral[column]).flatten()
        if len(chosen):
            out[chosen] = step(out[chosen], draws[chosen, column].view(-1, 1, 1, 1, 1))
    return out


def _blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur as one matrix per axis; at the borders the kernel is cut off and normalised again."""
    matrices = []
    for size in x.shape[2:]:
        index = torch.arange(size, dtype=x.dtype, device=x.device)
        weights = torch.exp(-0.5 * ((index[:, None] - index) / sigma.view(-1, 1, 1)) ** 2)
        matrices.append(weights / weights.sum(dim=-1, keepdim=True))
    return apply_per_axis(x, (matrices[0], matrices[1], matrices[2]))


def _range(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.amin(dim=(1, 2, 3, 4), keepdim=True), x.amax(dim=(1, 2, 3, 4), keepdim=True)


def _brightness(x: Tensor, factor: Tensor) -> Tensor:
    low, high = _range(x)
    return torch.minimum(torch.maximum(x * factor, low), high)


def _gamma(x: Tensor, exponent: Tensor) -> Tensor:
    low, high = _range(x)
    span = (high - low).clamp(min=torch.finfo(x.dtype).eps)
    return ((x - low) / span).clamp(0, 1) ** exponent * span + low
