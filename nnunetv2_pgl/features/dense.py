"""Features of a whole image on a regular grid, and the places of another image that look most alike."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
from torch import Tensor

from nnunetv2_pgl.addresses import locate
from nnunetv2_pgl.checkpoint import load_encoder_network
from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.features.preprocessing import PreprocessedImage, Preprocessing, as_points
from nnunetv2_pgl.networks import Encoder, FeatureGrid


def load_encoder(checkpoint: str | os.PathLike[str]) -> tuple[Encoder, Preprocessing]:
    """The pre-trained encoder and the preprocessing that belongs to it.

    Args:
        checkpoint: A path or an address, such as ``hf://OWNER/NAME``, as `addresses.locate` takes it.

    Returns:
        The encoder, a module in evaluation mode on the CPU that maps (B, channels, z, y, x) to its maps, deepest last;
        and a function that makes such an input of an image.

    Raises:
        CheckpointError: The checkpoint cannot be had or used.
        PGLError: It does not record how images were preprocessed.
    """
    path = locate(os.fspath(checkpoint)).path
    encoder, content = load_encoder_network(path)
    return encoder, Preprocessing.from_checkpoint(content, str(path))


_MARGIN = 1.0  # voxels beyond the image that rounding and cropping may cost


@dataclass(frozen=True)
class DenseFeatures:
    """Features of an image in cells of equal size that fill it.

    Points are (z, y, x) in voxels of the original image with edges at the integers: the centre of the first voxel is
    (0.5, 0.5, 0.5).

    Attributes:
        values: (C, z, y, x), float32, one vector for each cell.
        step: Size of a cell (z, y, x) in voxels of the preprocessed image.
        image: The preprocessed image.
    """

    values: Tensor
    step: tuple[int, int, int]
    image: PreprocessedImage

    def at(self, points: Any) -> Tensor:
        """Features (N, C) at points (N, 3), interpolated between the centres of cells.

        Raises:
            PGLError: A point lies outside the image, or where its preprocessing has cropped it.
        """
        inside = self.image.from_original(points)
        size = torch.tensor(self.image.values.shape[2:])
        if (wrong := ((inside < -_MARGIN) | (inside > size + _MARGIN)).any(dim=1)).any():
            point = as_points(points)[wrong][0].tolist()
            raise PGLError(f"the point {point} (z, y, x) lies outside the image, or in its border of zeros")
        cells = inside / torch.tensor(self.step) - 0.5
        return _interpolated(self.values, cells.to(self.values))

    def centres(self) -> Tensor:
        """The centres of all cells as points, (z, y, x, 3)."""
        lines = [torch.arange(n) + 0.5 for n in self.values.shape[1:]]
        cells = torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1)
        return self.image.to_original(cells * torch.tensor(self.step)).reshape(cells.shape)


@torch.no_grad()
def dense_features(encoder: Encoder, image: PreprocessedImage, overlap: float = 0.5) -> DenseFeatures:
    """Features of a whole image.

    The encoder sees the image in windows of the size of its views, as in its pre-training. In each, features are taken
    from the deepest trained map at the centres of the cells, and averaged over the windows with Gaussian weights. A
    cell is half as large as the stride of the map. The 2,048 channels of a ResNet-50 take 2 GB for a CT of 256 x 256 x
    256 voxels at strides of 8.

    Args:
        encoder: As `load_encoder` returns it, on any device.
        image: As its preprocessing returns it.
        overlap: Of neighbouring windows, 0 .. 1 (excluded).
    """
    view, stage = image.preprocessing.view_size, image.preprocessing.stage
    grid = encoder.feature_grid(view, stage)
    step = [math.gcd(max(1, int(stride) // 2), size) for stride, size in zip(grid.stride, view, strict=True)]
    size = [math.ceil(n / s) for n, s in zip(image.values.shape[2:], step, strict=True)]  # in cells, like all below
    window = [v // s for v, s in zip(view, step, strict=True)]
    padded = [max(pair) for pair in zip(size, window, strict=True)]
    pads = [cells * s - n for cells, s, n in zip(padded, step, image.values.shape[2:], strict=True)]
    if not 0 <= overlap < 1:
        raise PGLError(f"overlap {overlap}: must be from 0 to less than 1")
    parameter = next(encoder.parameters())
    device, dtype = parameter.device, parameter.dtype
    values = F.pad(image.values.to(device), [p for pad in reversed(pads) for p in (0, pad)], mode="replicate")
    weight = _weight(window).to(device)
    places = _places(grid, window, step).to(device)
    total, weights = None, torch.zeros(padded, device=device)
    starts = compute_steps_for_sliding_window(tuple(padded), tuple(window), 1 - overlap)
    for start in torch.cartesian_prod(*map(torch.tensor, starts)).tolist():
        z, y, x = (slice(a * s, a * s + v) for a, s, v in zip(start, step, view, strict=True))
        features = _interpolated(encoder(values[:, :, z, y, x].to(dtype))[stage][0].float(), places)
        total = torch.zeros(features.shape[1], *padded, device=device) if total is None else total
        z, y, x = (slice(a, a + w) for a, w in zip(start, window, strict=True))
        total[:, z, y, x] += features.T.reshape(-1, *window) * weight
        weights[z, y, x] += weight
    assert total is not None
    depth, height, width = size
    a, b, c = step
    return DenseFeatures((total / weights)[:, :depth, :height, :width].contiguous(), (a, b, c), image)


def corresponding_points(source: DenseFeatures, points: Any, target: DenseFeatures) -> tuple[Tensor, Tensor]:
    """Where the places at some points of one image are in another.

    Args:
        source: Features of the image that the points are of.
        points: (N, 3), see `DenseFeatures`.
        target: Features of the other image.

    Returns:
        For each point the centre (N, 3) of the cell of the other image whose features are most alike, and the cosine
        (N,) of the two, after subtracting the mean of both images.
    """
    known = target.values.flatten(1)
    mean = torch.cat((source.values.flatten(1), known), dim=1).mean(dim=1)  # that of each alone depends on its extent
    cosines = F.normalize(source.at(points) - mean, dim=1) @ F.normalize(known - mean[:, None], dim=0)
    best = cosines.max(dim=1)
    return target.centres().reshape(-1, 3)[best.indices.cpu()], best.values


def _weight(window: Sequence[int]) -> Tensor:
    """How much each cell of a window counts, (z, y, x).

    nnU-Net's Gaussian for predictions, but centred: its own lies half a cell off, much in windows of a few cells.
    """
    lines = [torch.exp(-32 * ((torch.arange(n) + 0.5) / n - 0.5) ** 2) for n in window]  # sigma: an eighth
    z, y, x = torch.meshgrid(*lines, indexing="ij")
    return z * y * x


def _places(grid: FeatureGrid, window: Sequence[int], step: Sequence[int]) -> Tensor:
    """The centres of a window's cells in cells of the encoder's map, (N, 3)."""
    lines = [
        ((torch.arange(n) + 0.5) * s - offset) / stride
        for n, s, offset, stride in zip(window, step, grid.offset, grid.stride, strict=True)
    ]
    return torch.cartesian_prod(*lines)


def _interpolated(values: Tensor, cells: Tensor) -> Tensor:
    """A map (C, z, y, x) at places (N, 3) in cells, trilinear, constant beyond the outermost centres: (N, C)."""
    sizes = torch.tensor(values.shape[1:], device=values.device)
    normalised = 2 * cells / (sizes - 1).clamp(min=1) - 1
    normalised = torch.where(sizes > 1, normalised, torch.zeros_like(normalised))
    sampled = F.grid_sample(
        values[None], normalised.flip(-1)[None, None, None], padding_mode="border", align_corners=True
    )
    return sampled[0, :, 0, 0].T
