"""Local consistency together with masked reconstruction: one step beyond the paper (docs/method.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nnunetv2_pgl.networks import Segmenter
from nnunetv2_pgl.networks.segmenter import upsample
from pretraining.objectives.mae import draw_block_mask, masked_error
from pretraining.objectives.pgl import PGL
from pretraining.views import GeometryBatch


class PGLMAEOutput(NamedTuple):
    """`PGLOutput`'s values and the mean squared error of the masked voxels, all scalars.

    ``loss`` is the local consistency loss plus the weighted ``restoration``, that error.
    """

    loss: Tensor
    feature_std: Tensor
    within_views: Tensor
    interpolated: Tensor
    restoration: Tensor


class PGLMAE(PGL):
    """PGL whose online path sees masked views, and also reconstructs what is masked.

    The target path sees the whole views, so the features of masked places must follow from their surroundings. The
    segmenter's ASPP and decoder reconstruct the voxels (He et al. 2022), and the mean squared error of the masked ones
    counts.
    Masked voxels are set to 0, the mean of a z-scored scan.

    Args:
        segmenter: Its encoder is the online encoder; as many output as input channels.
        view_size: Size of the views (z, y, x).
        mask_ratio: Share of masked blocks.
        restoration_weight: Weight of the reconstruction in the loss.
        options: Of `PGL`.
    """

    output = PGLMAEOutput

    def __init__(
        self,
        segmenter: Segmenter,
        view_size: Sequence[int],
        mask_ratio: float,
        restoration_weight: float,
        **options: Any,
    ):
        super().__init__(segmenter.encoder, view_size, **options)
        self.encoder.requires_grad_(True)  # all stages: the decoder needs them
        self.segmenter = segmenter
        self.mask_ratio, self.restoration_weight = mask_ratio, restoration_weight

    def forward(  # type: ignore[override]  # more values than PGL's
        self, views: Tensor, geometries: GeometryBatch, generator: torch.Generator | None = None
    ) -> PGLMAEOutput:
        """See `Objective.forward`; draws the masked blocks, whose size is a cell of the deepest map."""
        views = self.laid_out(views)
        mask = draw_block_mask(len(views), views.shape[2:], self.encoder.strides, self.mask_ratio, generator)
        mask = mask.to(views.device)
        maps: list[Tensor] = []  # all of the online encoder

        def encode_masked(views: Tensor, last_stage: int) -> list[Tensor]:
            maps.extend(self.encoder(self.laid_out(views.masked_fill(mask, 0.0))))
            return maps

        local = super().forward(views, geometries, encode=encode_masked)
        with self.autocast(views.device):
            reconstructed = self.segmenter.decode(maps)
        restoration = masked_error(upsample(reconstructed.float(), views.shape[2:]), views, mask)
        return PGLMAEOutput(local.loss + self.restoration_weight * restoration, *local[1:], restoration)

    def kept_decoder(self) -> dict[str, Tensor]:
        """ASPP and decoder, which a fine-tuning may start from."""
        return self.segmenter.decoder_weights()
