"""Dense features with encoders whose features are places: what is found can be computed by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import nnunetv2_pgl
from nnunetv2_pgl.checkpoint import CheckpointError
from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.features import (
    PreprocessedImage,
    Preprocessing,
    corresponding_points,
    dense_features,
    load_encoder,
)
from nnunetv2_pgl.networks import ResNet50Encoder
from tests.known_encoders import FAR, PlaceInScan, PlaceInView

GOLDEN = Path(__file__).parents[1] / "golden" / "nnUNet_results" / "PGL" / "golden" / "checkpoint_final.pth"
VIEW = (8, 16, 16)


class _Place(PlaceInScan):
    """With a parameter, which says on which device an encoder is."""

    def __init__(self, stride: tuple[int, int, int]):
        super().__init__(stride)
        self.weight = torch.nn.Parameter(torch.zeros(1))


def place_image(size: tuple[int, int, int], start: tuple[int, int, int] = (0, 0, 0), **changes: Any) -> Any:
    """An image whose voxels hold their own place in the original, and a large constant."""
    lines = [torch.arange(n) + 0.5 + first for n, first in zip(size, start, strict=True)]
    places = torch.stack(torch.meshgrid(*lines, indexing="ij"))
    values = torch.cat((places, torch.full((1, *size), FAR)))[None].float()
    preprocessing = Preprocessing(4, None, None, (False,) * 4, None, VIEW)
    return replace(PreprocessedImage(values, (1, 1, 1), (0, 1, 2), start, (1.0, 1.0, 1.0), preprocessing), **changes)


@pytest.mark.parametrize("size", [(24, 40, 36), (8, 16, 16), (13, 17, 31)])
@pytest.mark.parametrize("stride", [(2, 4, 4), (4, 8, 4), (1, 1, 1)])
def test_features_lie_where_they_were_computed(size: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
    """Away from the border, beyond whose last cells nothing is known, places are found exactly."""
    features = dense_features(_Place(stride), place_image(size))
    assert features.values.shape[1:] == tuple(-(-n // s) for n, s in zip(size, features.step, strict=True))
    points = torch.tensor(size) * torch.tensor([[0.5, 0.5, 0.5], [0.45, 0.6, 0.55], [0.55, 0.45, 0.4]])
    torch.testing.assert_close(features.at(points)[:, :3], points.float(), atol=0.15, rtol=0)


def test_an_image_smaller_than_a_view_has_features_of_its_size() -> None:
    features = dense_features(_Place((2, 4, 4)), place_image((5, 9, 40)))
    assert features.step == (1, 2, 2)
    assert features.values.shape[1:] == (5, 5, 20)
    point = torch.tensor([[2.5, 4.5, 20.0]])
    torch.testing.assert_close(features.at(point)[:, :3], point, atol=0.1, rtol=0)


def test_windows_agree_with_one_large_view() -> None:
    """Of an encoder that does not know its window, windows give what the whole image at once does."""
    image = place_image((24, 40, 36))
    encoder = _Place((2, 4, 4))
    whole = replace(image, preprocessing=replace(image.preprocessing, view_size=(24, 40, 40)))
    one, many = dense_features(encoder, whole), dense_features(encoder, image)
    assert one.step == many.step
    inner = (slice(None), slice(2, -2), slice(2, -2), slice(2, -2))
    torch.testing.assert_close(one.values[inner], many.values[inner], atol=0.1, rtol=0)


def test_a_single_window_holds_the_encoder_s_own_map() -> None:
    torch.manual_seed(0)
    encoder = ResNet50Encoder(1, (4, 8, 8), "instance").eval()
    values = torch.randn(1, 1, *VIEW)
    preprocessing = Preprocessing(1, None, None, (False,), None, VIEW, stage=-2)
    image = PreprocessedImage(values, (1, 1, 1), (0, 1, 2), (0, 0, 0), (1.0, 1.0, 1.0), preprocessing)
    features = dense_features(encoder, image)
    with torch.no_grad():
        expected = encoder(values)[-2][0]
    grid = encoder.feature_grid(VIEW, -2)
    cell = (1, 1, 1)
    point = [offset + stride * index for offset, stride, index in zip(grid.offset, grid.stride, cell, strict=True)]
    centre = [round(p / s - 0.5) for p, s in zip(point, features.step, strict=True)]
    if [(c + 0.5) * s for c, s in zip(centre, features.step, strict=True)] == point:
        torch.testing.assert_close(features.values[:, centre[0], centre[1], centre[2]], expected[:, 1, 1, 1])
    else:  # no cell lies there: interpolated between its neighbours, which are between the map's cells
        low, high = expected.amin(dim=(1, 2, 3)), expected.amax(dim=(1, 2, 3))
        found = features.at([point])[0]
        assert (found >= low - 1e-4).all()
        assert (found <= high + 1e-4).all()


def test_corresponding_points_are_found_in_a_cropped_image() -> None:
    """Noise without any two alike places: what is at a point of the source is at the same place of the crop."""
    torch.manual_seed(0)
    values = torch.randn(1, 32, 24, 48, 48)
    source = dense_features(_Place((2, 4, 4)), place_image((24, 48, 48), values=values))
    crop = values[:, :, 4:20, 8:40, 12:44]
    target = dense_features(_Place((2, 4, 4)), place_image((16, 32, 32), start=(4, 8, 12), values=crop))
    points = source.centres()[8:16, 10:14, 10:14].reshape(-1, 3)  # in the middle of both
    found, cosines = corresponding_points(source, points, target)
    right = (found - points).abs().amax(dim=1) < 0.5
    assert right.float().mean() > 0.9
    assert cosines[right].min() > 0.8


def test_the_same_image_finds_itself() -> None:
    torch.manual_seed(0)
    values = torch.randn(1, 4, 24, 32, 32)
    image = place_image((24, 32, 32), values=values)
    features = dense_features(_Place((2, 4, 4)), image)
    centres = features.centres()[3:9, 4:12, 4:12].reshape(-1, 3)
    found, cosines = corresponding_points(features, centres, features)
    torch.testing.assert_close(found, centres)
    torch.testing.assert_close(cosines, torch.ones(len(centres)), atol=1e-4, rtol=0)


def test_centres_are_in_the_original() -> None:
    image = place_image((8, 16, 16), axes=(2, 0, 1), start=(1, 2, 3), scale=(2.0, 1.0, 0.5))
    features = dense_features(_Place((4, 8, 8)), image)
    first = features.centres()[0, 0, 0]
    inside = torch.tensor(features.step) / 2  # along the axes of the values
    expected = inside / torch.tensor([2.0, 1.0, 0.5]) + torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(first.float(), torch.stack([expected[1], expected[2], expected[0]]))


def test_features_do_not_depend_on_where_the_window_is(tmp_path: Path) -> None:
    """An encoder that only knows the place in the window gives features that repeat with the windows."""

    class InView(PlaceInView):
        def __init__(self) -> None:
            super().__init__((4, 8, 8))
            self.weight = torch.nn.Parameter(torch.zeros(1))

    features = dense_features(InView(), place_image((8, 16, 48)), overlap=0.0)
    line: Tensor = features.values[2, 0, 0]
    torch.testing.assert_close(line[:4], line[4:8])


def test_load_encoder_of_a_checkpoint(tmp_path: Path) -> None:
    encoder, preprocess = load_encoder(GOLDEN)
    assert not encoder.training
    image = preprocess(np.random.default_rng(0).normal(-100, 300, (12, 20, 20)), (2.0, 1.0, 1.0))
    maps = encoder(image.values)
    assert maps[-1].shape[0] == 1
    assert torch.isfinite(dense_features(encoder, image).values).all()
    assert nnunetv2_pgl.load_encoder is load_encoder
    assert nnunetv2_pgl.dense_features is dense_features
    with pytest.raises(AttributeError, match="no attribute 'load_encoders'"):
        nnunetv2_pgl.load_encoders  # noqa: B018
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_encoder(tmp_path / "none.pth")


def test_points_that_are_none_or_outside_are_refused() -> None:
    features = dense_features(_Place((2, 4, 4)), place_image((8, 16, 16)))
    for points in ([[-100.0, 5.0, 5.0]], [[4.0, 8.0, 99.0]], [[float("nan"), 1, 1]], [[1, 2], [3, 4], [5, 6]]):
        with pytest.raises(PGLError, match=r"lies outside the image|must be finite numbers"):
            features.at(points)
    assert features.at([]).shape == (0, 4)
    with pytest.raises(PGLError, match="overlap 1"):
        dense_features(_Place((2, 4, 4)), place_image((8, 16, 16)), overlap=1)


def test_features_can_be_trained_on() -> None:
    """They carry no gradient of the encoder, but are ordinary tensors."""
    features = dense_features(_Place((2, 4, 4)), place_image((8, 16, 16)))
    torch.nn.Linear(4, 1)(features.values.flatten(1).T).sum().backward()


def test_an_encoder_in_double_precision() -> None:
    torch.manual_seed(0)
    encoder = ResNet50Encoder(1, (4, 8, 8), "instance").eval()
    image = place_image(VIEW, values=torch.randn(1, 1, *VIEW))
    single = dense_features(encoder, image).values
    torch.testing.assert_close(dense_features(encoder.double(), image).values, single, atol=0.02, rtol=0)
