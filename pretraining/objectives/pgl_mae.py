"""Local consistency together with masked reconstruction: one step beyond the paper (docs/method.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nnunetv2_pgl.networks import Segmenter
from nnunetv2_pgl.networks.segmenter import upsample
from pretraining.objectives.masking import draw_block_mask, hidden_error
from pretraining.objectives.pgl import PGL
from pretraining.views import GeometryBatch


class PGLMAEOutput(NamedTuple):
    """`PGLOutput`'s values and the restoration's mean squared error over hidden voxels, all scalars.

    ``loss`` is the local consistency loss plus the weighted restoration.
    """

    loss: Tensor
    feature_std: Tensor
    within_views: Tensor
    interpolated: Tensor
    restoration: Tensor


class PGLMAE(PGL):
    """PGL whose online path sees views with hidden blocks, and also restores them.

    The target path sees the whole views, so the features of hidden places must follow from their surroundings, and the
    segmenter's ASPP and decoder restore the voxels (He et al. 2022; blocks and mean squared error over hidden voxels).
    Hidden voxels are set to 0, the mean of a z-scored scan.

    Args:
        segmenter: Its encoder is the online encoder; as many output as input channels.
        view_size: Size of the views (z, y, x).
        mask_ratio: Share of hidden blocks.
        restoration_weight: Weight of the restoration in the loss.
        hidden_channels, out_channels, levels, interpolated_only, precision: See `PGL`.
    """

    output = PGLMAEOutput
    needs_all_stages = True  # the decoder does

    def __init__(
        self,
        segmenter: Segmenter,
        view_size: Sequence[int],
        mask_ratio: float,
        restoration_weight: float,
        hidden_channels: int = 4096,
        out_channels: int = 256,
        levels: Sequence[int] = (-1,),
        interpolated_only: bool = False,
        precision: torch.dtype | None = None,
    ):
        heads = (hidden_channels, out_channels, levels)
        super().__init__(segmenter.encoder, view_size, *heads, interpolated_only, precision)
        self.segmenter = segmenter
        self.mask_ratio, self.restoration_weight = mask_ratio, restoration_weight

    def forward(  # type: ignore[override]  # more values than PGL's
        self, views: Tensor, geometries: GeometryBatch, generator: torch.Generator | None = None
    ) -> PGLMAEOutput:
        """See `Objective.forward`; draws the hidden blocks, whose size is a cell of the deepest map."""
        views = self.laid_out(views)
        targets = self.project_target(views)  # first: its maps are gone before autograd keeps those of the online path
        mask = draw_block_mask(len(views), views.shape[2:], self.encoder.strides, self.mask_ratio, generator)
        mask = mask.to(views.device)
        projections, restored = self._online(self.laid_out(views.masked_fill(mask, 0.0)))
        local = self.consistency(projections, targets, geometries)
        restoration = hidden_error(restored, views, mask)
        return PGLMAEOutput(local.loss + self.restoration_weight * restoration, *local[1:], restoration)

    def rehearse(self, views: Tensor) -> Tensor:
        """See `Objective.rehearse`."""
        views = self.laid_out(views)
        self.project_target(views)
        projections, restored = self._online(views)
        return self.rehearse_predictors(projections) + (restored - views).square().mean()

    def kept_decoder(self) -> dict[str, Tensor]:
        """ASPP and decoder, which a fine-tuning may start from."""
        return self.segmenter.decoder_weights()

    def _online(self, views: Tensor) -> tuple[list[Tensor], Tensor]:
        """Projections and restored views, float32, at the views' size."""
        with self.autocast(views.device):
            features = self.encoder(views)
            projections, restored = self.project(features), self.segmenter.decode(features)
        return projections, upsample(restored.float(), views.shape[2:])
