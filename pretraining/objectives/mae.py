"""Masked autoencoding of convolutional networks as nnssl does it: restoring hidden blocks of a view (docs/method.md).

He et al. 2022; Wald et al., "Revisiting MAE pre-training for 3D medical image segmentation", 2025.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nnunetv2_pgl.networks import Encoder, Segmenter
from pretraining.objectives.masking import draw_block_mask, error_of_the_mean, hidden_error
from pretraining.objectives.objective import Objective
from pretraining.views import GeometryBatch


class MAEOutput(NamedTuple):
    """Loss of a batch and what to hold it against, both scalars.

    Attributes:
        loss: Mean squared error of the hidden voxels, in units of the z-scored scans.
        mean_error: That of a network that restores nothing but each view's mean over its hidden voxels.
    """

    loss: Tensor
    mean_error: Tensor


class MAE(Objective):
    """The segmenter as restoring network: from views with hidden blocks to what was there.

    The two views of a pair are just two samples. Hidden voxels are set to 0, the mean of a z-scored scan; the network
    is told in no other way which they are, and visible voxels do not count in the loss.

    Args:
        segmenter: The restoring network; as many output as input channels. Its encoder is kept.
        block: Size of a block in voxels (z, y, x).
        mask_ratio: Share of hidden blocks.
        precision: Autocast type of the network, None for float32. The loss is always float32.
    """

    output = MAEOutput
    has_target = False
    changes_intensity = False  # as published

    def __init__(
        self, segmenter: Segmenter, block: Sequence[int], mask_ratio: float, precision: torch.dtype | None = None
    ):
        super().__init__()
        self.segmenter = segmenter
        self.block, self.mask_ratio = tuple(block), mask_ratio
        self.precision = precision

    @property
    def encoder(self) -> Encoder:  # type: ignore[override]
        """The segmenter's. Not a second module, which would be saved twice."""
        return self.segmenter.encoder

    def forward(self, views: Tensor, geometries: GeometryBatch, generator: torch.Generator | None = None) -> MAEOutput:
        """See `Objective.forward`; places do not matter, the generator decides which blocks are hidden."""
        mask = draw_block_mask(len(views), views.shape[2:], self.block, self.mask_ratio, generator).to(views.device)
        with self.autocast(views.device):
            restored = self.segmenter(views.masked_fill(mask, 0.0))
        return MAEOutput(hidden_error(restored.float(), views, mask), error_of_the_mean(views, mask))

    def rehearse(self, views: Tensor) -> Tensor:
        """See `Objective.rehearse`."""
        with self.autocast(views.device):
            restored: Tensor = self.segmenter(views)
        return (restored - views).square().mean()

    def kept_decoder(self) -> dict[str, Tensor]:
        """See `Objective.kept_decoder`: under the names it has in the segmenter."""
        return self.segmenter.decoder_weights()
