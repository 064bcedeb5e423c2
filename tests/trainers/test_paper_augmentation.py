"""The augmentation of the paper's fine-tuning recipe: each of its numbers, measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform

from nnunetv2_pgl.trainers import nnUNetTrainerPGL_paper
from nnunetv2_pgl.trainers.paper import NoiseOfVariance

PATCH = (10, 12, 14)
AXES = range(3)


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    torch.manual_seed(0)
    np.random.seed(0)


def augmentation() -> list[BasicTransform]:
    made: Any = nnUNetTrainerPGL_paper.get_training_transforms(PATCH, (0.0, 0.0), None, (0, 1, 2), False)
    transforms: list[BasicTransform] = made.transforms
    return transforms


def step(kind: type[BasicTransform]) -> Any:
    """The only one of its kind."""
    (found,) = (t for t in augmentation() if isinstance(t, kind))
    return found


def occasional(kind: type[BasicTransform]) -> RandomTransform:
    """The only one of its kind that is applied now and then."""
    (found,) = (t for t in augmentation() if isinstance(t, RandomTransform) and isinstance(t.transform, kind))
    return found


def ramps(size: Sequence[int]) -> torch.Tensor:
    """The coordinate along each axis: (3, D, H, W)."""
    return torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in size), indexing="ij"))


def test_nothing_else_is_done_to_images() -> None:
    kinds = [type(t.transform if isinstance(t, RandomTransform) else t).__name__ for t in augmentation()]
    assert kinds[:2] == ["SpatialTransform", "MirrorTransform"]
    assert kinds[2:6] == ["NoiseOfVariance", "GaussianBlurTransform", "ClippedBrightness", "GammaTransform"]
    assert [isinstance(t, RemoveLabelTansform) for t in augmentation()[6:]] == [True]


def test_crops_of_110_to_140_percent_are_scaled_to_the_patch(paper: Callable[..., nnUNetTrainerPGL_paper]) -> None:
    trainer = paper()
    *_, initial, mirrored = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    patch = trainer.configuration_manager.patch_size
    assert all(now >= 1.4 * planned for now, planned in zip(initial, patch, strict=True))
    assert mirrored == (0, 1, 2)
    scaling, found = step(SpatialTransform), []
    for _ in range(300):
        image = scaling(image=ramps([2 * size for size in PATCH]))["image"]
        assert image.shape == (3, *PATCH)
        inside = image[:, 2:-2, 2:-2, 2:-2]
        slopes = [[float(inside[of].diff(dim=axis).mean()) for axis in AXES] for of in AXES]
        found.append(np.diag(slopes))
        assert np.abs(np.array(slopes) - np.diag(found[-1])).max() < 1e-4, "turned or sheared"
    low, high = np.min(found, axis=0), np.max(found, axis=0)
    assert (low >= 1.1 - 1e-4).all()
    assert (low < 1.12).all()
    assert (high <= 1.4 + 1e-4).all()
    assert (high > 1.38).all()


def test_flips_along_each_axis_half_of_the_time() -> None:
    flip, found = step(MirrorTransform), []
    image = ramps(PATCH)
    for _ in range(400):
        flipped = flip(image=image.clone())["image"]
        found.append([bool(flipped[axis].flatten()[0] != 0) for axis in AXES])
        expected = image.flip([1 + axis for axis in AXES if found[-1][axis]])
        assert torch.equal(flipped, expected)
    assert np.mean(found, axis=0) == pytest.approx(0.5, abs=0.1)  # 4 standard errors
    assert len({tuple(f) for f in found}) == 8


@pytest.mark.parametrize(
    ("kind", "probability"),
    [
        (NoiseOfVariance, 0.1),
        (GaussianBlurTransform, 0.2),
        (MultiplicativeBrightnessTransform, 0.5),
        (GammaTransform, 0.5),
    ],
)
def test_how_often(kind: type[BasicTransform], probability: float) -> None:
    image, draws = torch.rand(1, 4, 4, 4), 4000
    transform = occasional(kind)
    changed = sum(not torch.equal(transform(image=image.clone())["image"], image) for _ in range(draws))
    assert changed / draws == pytest.approx(probability, abs=4 * np.sqrt(probability * (1 - probability) / draws))


def test_the_variance_of_the_noise_is_uniform_up_to_a_tenth() -> None:
    """The variance: nnU-Net's transform takes it for the standard deviation, whose square is a fifteenth on average."""
    noise = occasional(NoiseOfVariance).transform
    image = torch.full((2, 12, 12, 12), 3.0)
    drawn = [noise(image=image.clone())["image"] for _ in range(1500)]
    variances = np.array([float(image.var()) for image in drawn])
    assert variances.mean() == pytest.approx(0.05, abs=4 * 0.1 / np.sqrt(12 * 1500))
    assert variances.std() == pytest.approx(0.1 / np.sqrt(12), rel=0.05)
    assert variances.max() < 0.11
    assert np.mean(variances < 0.025) == pytest.approx(0.25, abs=0.05)
    means = np.array([float(image.mean()) for image in drawn])
    assert means.mean() == pytest.approx(3, abs=0.001)
    spread = [float(image[0].var() / image[1].var()) for image in drawn]
    assert np.median(spread) == pytest.approx(1, abs=0.02)
    assert np.std(np.log(spread)) < 0.1, "one variance for all channels"
    assert not torch.equal(drawn[0][0], drawn[0][1])


def test_the_sigma_of_the_blur() -> None:
    blur, found = occasional(GaussianBlurTransform).transform, []
    image = torch.zeros(1, 15, 15, 15)
    image[0, 7, 7, 7] = 1
    for _ in range(300):
        peak = blur(image=image.clone())["image"][0]
        assert float(peak.sum()) == pytest.approx(1, abs=1e-4)
        beside = [peak[8, 7, 7], peak[7, 8, 7], peak[7, 7, 8]]
        assert torch.allclose(torch.stack(beside), beside[0]), "one sigma for all axes"
        found.append(1 / np.sqrt(2 * np.log(float(peak[7, 7, 7] / beside[0]))))
    assert 0.5 - 1e-3 <= min(found) < 0.52
    assert 0.98 < max(found) <= 1 + 1e-3


def test_brightness_is_clipped_to_the_former_range() -> None:
    brightness, found = occasional(MultiplicativeBrightnessTransform).transform, []
    image = torch.linspace(-1, 2, 64).reshape(1, 4, 4, 4)
    for _ in range(300):
        changed = brightness(image=image.clone())["image"]
        factor = float(changed[0, 2, 2, 2] / image[0, 2, 2, 2])
        found.append(factor)
        torch.testing.assert_close(changed, (image * factor).clamp(-1, 2))
    assert 0.75 <= min(found) < 0.77
    assert 1.23 < max(found) <= 1.25


def test_gamma_is_equation_2() -> None:
    gamma, found = occasional(GammaTransform).transform, []
    unit = torch.linspace(0, 1, 64).reshape(1, 4, 4, 4)
    for _ in range(300):
        changed = gamma(image=4 * unit - 1)["image"]
        exponent = float(torch.log((changed[0, 2, 2, 2] + 1) / 4) / torch.log(unit[0, 2, 2, 2]))
        found.append(exponent)
        torch.testing.assert_close(changed, 4 * unit**exponent - 1, rtol=1e-3, atol=1e-3)
    assert 0.7 - 1e-3 <= min(found) < 0.73
    assert 1.47 < max(found) <= 1.5 + 1e-3
