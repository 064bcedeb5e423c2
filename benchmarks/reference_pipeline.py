"""View pairs as a knowledgeable nnU-Net user would make them from nnU-Net's parts: what our feeding is compared with.

Store: nnU-Net's own, written by `nnUNetDatasetBlosc2.save_case` (z-scored float32, codec, level and filter as nnU-Net
chooses them) in the blocks and chunks that `comp_blosc2_params` computes for the patch. Reading: `load_case` and
`crop_and_pad_nd`, as nnU-Net's loader does. Transforms: batchgeneratorsv2's, one view after the other, in the order and
with the ranges and probabilities of `ViewSettings`. One thread.

It is spared what this comparison does not need: the crop of the segmentation is not read, a crop is no larger than its
view needs (nnU-Net's loader reads the largest that scaling may ask for, here 1.4 times the patch), and its values need
no z-scoring.

What it does differently from ours, none of it to its disadvantage:

- crops measure whole voxels, and a view shows its crop less one voxel on each side (ours: real numbers);
- `SpatialTransform` samples a grid of points and can rotate, so it uses `grid_sample` where ours works axis by axis;
- the range of `GaussianNoiseTransform` is that of the standard deviation (ours: of the variance);
- `GaussianBlurTransform` cuts its kernel at 3 sigma (ours: 7) and reflects at the borders;
- brightness is not clipped to the view's former range.

With ``lean`` a view is resized by `torch.nn.functional.interpolate` instead, which batchgeneratorsv2 has no transform
for: what is left to gain for someone who writes that transform.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from torch import Tensor

from pretraining.views import ViewSettings, sample_view_pair, source_box


class ReferencePipeline:
    """Draws, reads and augments pairs of views.

    Args:
        folder: Where `store` wrote scans.
        settings: How views are drawn.
        lean: Resize by interpolation along the axes instead of `SpatialTransform`.
        seed: Seed of the geometry.
    """

    def __init__(self, folder: Path, settings: ViewSettings, lean: bool = False, seed: int = 0):
        self.dataset = nnUNetDatasetBlosc2(str(folder))
        self.settings = settings
        self.rng = np.random.default_rng(seed)
        self.transform = transforms(settings, lean)

    def batch(self, indices: Sequence[int]) -> Tensor:
        """Both views of each scan, (2 * len(indices), 1, *view), float32."""
        crops = [crop for index in indices for crop in self.read(index)]
        return torch.stack([self.transform(image=crop)["image"] for crop in crops])

    def read(self, index: int) -> list[Tensor]:
        """The two crops of a pair, (1, d, h, w) each."""
        data, _, _, _ = self.dataset.load_case(self.dataset.identifiers[index])
        shape = data.shape[1:]
        settings = self.settings
        pair = sample_view_pair(shape, settings.size, self.rng, scale=settings.scale, min_overlap=settings.min_overlap)
        boxes = [zip(*source_box(geometry, shape), strict=True) for geometry in pair]
        return [torch.from_numpy(crop_and_pad_nd(data, [list(axis) for axis in box], 0)).float() for box in boxes]


def store(image: np.ndarray, folder: Path, name: str, patch: Sequence[int]) -> None:
    """Writes a scan, (z, y, x), as nnU-Net's preprocessing does: z-scored, float32, with a segmentation."""
    folder.mkdir(parents=True, exist_ok=True)
    data = ((image - image.mean()) / image.std()).astype(np.float32)[None]
    segmentation = np.zeros(data.shape, dtype=np.int8)
    blocks, chunks = comp_blosc2_params(data.shape, patch, data.itemsize)
    blocks_seg, chunks_seg = comp_blosc2_params(data.shape, patch, segmentation.itemsize)
    nnUNetDatasetBlosc2.save_case(data, segmentation, {}, str(folder / name), chunks, blocks, chunks_seg, blocks_seg)


class ResizeTransform(ImageOnlyTransform):
    """Resizes what a view shows of its crop to the size of the view."""

    def __init__(self, size: Sequence[int]):
        super().__init__()
        self.size = tuple(size)

    def _apply_to_image(self, img: Tensor, **params: object) -> Tensor:
        return F.interpolate(img[None, :, 1:-1, 1:-1, 1:-1], self.size, mode="trilinear", align_corners=False)[0]


def spatial_transform(view: Sequence[int]) -> SpatialTransform:
    """nnU-Net's, scaling each axis so that a view shows its crop less one voxel on each side."""

    def shown(image: Tensor, dim: int) -> float:
        return (image.shape[1 + dim] - 2) / view[dim]

    return SpatialTransform(
        view,
        patch_center_dist_from_border=0,
        random_crop=False,
        p_scaling=1,
        scaling=shown,
        padding_mode_image="border",
    )


def transforms(settings: ViewSettings, lean: bool) -> BasicTransform:
    """Resizing, flips, noise, blur, brightness and gamma of one view."""
    view, ranges = settings.size, settings.intensity
    return ComposeTransforms(
        [
            ResizeTransform(view) if lean else spatial_transform(view),
            MirrorTransform((0, 1, 2)),
            RandomTransform(GaussianNoiseTransform(ranges.noise_variance), ranges.noise_probability),
            RandomTransform(
                GaussianBlurTransform(ranges.blur_sigma, synchronize_axes=True, benchmark=True),
                ranges.blur_probability,
            ),
            RandomTransform(
                MultiplicativeBrightnessTransform(ranges.brightness, synchronize_channels=False),
                ranges.brightness_probability,
            ),
            RandomTransform(
                GammaTransform(
                    ranges.gamma, p_invert_image=0, synchronize_channels=False, p_per_channel=1, p_retain_stats=0
                ),
                ranges.gamma_probability,
            ),
        ]
    )
