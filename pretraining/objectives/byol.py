"""BYOL, the paper's global comparison: two views of one scan must agree as a whole (Grill et al. 2020)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nnunetv2_pgl.networks import Encoder
from pretraining.objectives.losses import feature_spread, local_consistency_loss
from pretraining.objectives.objective import Objective
from pretraining.objectives.paths import ConvHead, make_target, of_partners, update_target
from pretraining.views import GeometryBatch


class BYOLOutput(NamedTuple):
    """Loss of a batch and what shows whether training is healthy, all scalars.

    Attributes:
        loss: The loss of both directions, added, from 0 to 8.
        feature_std: See `feature_spread`, of the online projections.
    """

    loss: Tensor
    feature_std: Tensor


class BYOL(Objective):
    """Online and target path on globally pooled features and the symmetrised loss ``2 - 2 cos``.

    Differs from PGL in two things only, as in the paper's comparison: the deepest map is averaged over all places, and
    nothing is aligned. The heads are PGL's. On maps of 1 x 1 x 1 cells they are BYOL's MLP (linear, batch norm, ReLU,
    linear), and their norms are of the class that is shared between processes.

    Args:
        encoder: The online encoder; the target's is a copy.
        hidden_channels: Channels inside projector and predictor.
        out_channels: Channels of the projection.
        precision: Autocast type of the networks, None for float32. The loss is always float32.
    """

    output = BYOLOutput

    def __init__(
        self,
        encoder: Encoder,
        hidden_channels: int = 4096,
        out_channels: int = 256,
        precision: torch.dtype | None = None,
    ):
        super().__init__()
        self.encoder = encoder
        self.projector = ConvHead(encoder.stage_channels[-1], hidden_channels, out_channels)
        self.predictor = ConvHead(out_channels, hidden_channels, out_channels)
        self.target_encoder = make_target(self.encoder)
        self.target_projector = make_target(self.projector)
        self.precision = precision
        self.to(memory_format=encoder.memory_format)

    def forward(self, views: Tensor, geometries: GeometryBatch, generator: torch.Generator | None = None) -> BYOLOutput:
        """See `Objective.forward`; places do not matter and nothing is drawn.

        All views are one batch for every batch norm, as in PGL. With a single pair the heads' norms see two vectors.
        """
        views = self.laid_out(views)
        with self.autocast(views.device):
            with torch.no_grad():  # first: its maps are gone before autograd keeps those of the online path
                target = self.target_projector(_pool(self.target_encoder(views)[-1]))
            projection = self.projector(_pool(self.encoder(views)[-1]))
            prediction = self.predictor(projection)
        # Both directions have equally many views, so their sum is twice the mean over all.
        loss = 2 * local_consistency_loss(prediction, of_partners(target))
        return BYOLOutput(loss, feature_spread(projection.detach()))

    def update_target(self, decay: float) -> None:
        """One step of the target path towards the online path."""
        update_target(self.target_encoder, self.encoder, decay)
        update_target(self.target_projector, self.projector, decay)


def _pool(features: Tensor) -> Tensor:
    """Mean over all places, (B, C, d, h, w) -> (B, C, 1, 1, 1)."""
    return features.mean(dim=(2, 3, 4), keepdim=True)
