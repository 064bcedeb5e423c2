"""PGL: local consistency of two views of one scan (section 3.3 and 3.4; the paper's figure 2 in code)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from nnunetv2_pgl.networks import ResNet50Encoder
from pretraining.alignment import align
from pretraining.objectives.heads import ConvHead
from pretraining.objectives.objective import Objective
from pretraining.objectives.target import make_target, update_target
from pretraining.views import GeometryBatch


def local_consistency_loss(prediction: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean over voxels of ``|| p/|p| - t/|t| ||^2 = 2 - 2 cos(p, t)``, norms over channels (eq. 8).

    Args:
        prediction: (B, C, ...).
        target: (B, C, ...), the same places in the same order.
        valid: (B, ...) bool, the voxels that count; by default all. With none the loss is zero.

    Raises:
        ValueError: If the shapes do not fit.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape")
    distance = 2 - 2 * F.cosine_similarity(prediction.float(), target.float(), dim=1)
    if valid is None:
        return distance.mean()
    if valid.shape != distance.shape:
        raise ValueError(f"valid is {tuple(valid.shape)}, but the voxels are {tuple(distance.shape)}")
    return (distance * valid).sum() / valid.sum().clamp(min=1)


def feature_spread(features: Tensor) -> Tensor:
    """Standard deviation of L2-normalised features over batch and places, mean over channels, times sqrt(channels).

    About 1 for features spread evenly over the sphere, 0 for collapsed ones.
    """
    normalised = F.normalize(features.float(), dim=1).transpose(0, 1).flatten(1)
    return normalised.std(dim=1).mean() * math.sqrt(features.shape[1])


def within_view_share(features: Tensor) -> Tensor:
    """Share of the variance of L2-normalised features that lies between the places of a view, not between views.

    The loss has a solution that `feature_spread` does not see: features that tell scans apart and are the same at every
    place of a scan. Then this is 0.
    """
    normalised = F.normalize(features.float(), dim=1).flatten(2)
    of_views = normalised - normalised.mean(dim=2, keepdim=True)
    of_all = normalised - normalised.mean(dim=(0, 2), keepdim=True)
    return of_views.square().sum() / of_all.square().sum().clamp(min=torch.finfo(torch.float32).tiny)


class PGLOutput(NamedTuple):
    """Loss of a batch and what tells whether training is healthy, all scalars.

    Attributes:
        loss: The loss of both directions, added (eq. 9).
        feature_std: See `feature_spread`, of the online projections.
        within_views: See `within_view_share`, of the online projections.
        interpolated: Share of the aligned points that lie between cell centres in both views.
    """

    loss: Tensor
    feature_std: Tensor
    within_views: Tensor
    interpolated: Tensor


class PGL(Objective):
    """Online and target path, prior-guided aligner and symmetrised local consistency loss.

    Args:
        encoder: The online encoder; the target's is a copy.
        view_size: Size of the views (z, y, x).
        hidden_channels: Channels inside projector and predictor.
        out_channels: Channels of the projection.
        interpolated_only: Let only points between cell centres count in the loss. With few cells per view that leaves
            few (see ``docs/method.md``), so all count by default.
        precision: Autocast type of the networks, None for float32. Alignment and loss are always float32.
    """

    output: ClassVar[Any] = PGLOutput

    def __init__(
        self,
        encoder: ResNet50Encoder,
        view_size: Sequence[int],
        hidden_channels: int = 4096,
        out_channels: int = 256,
        interpolated_only: bool = False,
        precision: torch.dtype | None = None,
    ):
        super().__init__()
        self.encoder = encoder
        self.projector = ConvHead(encoder.skip_channels[-1], hidden_channels, out_channels)
        self.predictor = ConvHead(out_channels, hidden_channels, out_channels)
        self.target_encoder = make_target(self.encoder)
        self.target_projector = make_target(self.projector)
        self.grid = encoder.feature_grid(view_size)
        self.interpolated_only = interpolated_only
        self.precision = precision
        self.to(memory_format=torch.channels_last_3d)

    def forward(self, views: Tensor, geometries: GeometryBatch, generator: torch.Generator | None = None) -> PGLOutput:
        """See `Objective.forward`; draws nothing."""
        views = views.contiguous(memory_format=torch.channels_last_3d)
        with self.autocast(views.device):
            projection = self.projector(self.encoder(views)[-1])
        return self.consistency(projection, self.project_target(views), geometries)

    def project_target(self, views: Tensor) -> Tensor:
        """Projections of the target path, (2 B, C, d, h, w)."""
        views = views.contiguous(memory_format=torch.channels_last_3d)
        with torch.no_grad(), self.autocast(views.device):
            return self.target_projector(self.target_encoder(views)[-1])

    def consistency(self, projection: Tensor, target: Tensor, geometries: GeometryBatch) -> PGLOutput:
        """Aligns both paths' projections of all views, (2 B, C, d, h, w) each, and compares partners."""
        partners = _swapped(geometries)
        aligned, own_inside = align(projection.float(), geometries, partners, self.grid)
        target, target_inside = align(target.float(), geometries, partners, self.grid)
        with self.autocast(projection.device):
            prediction = self.predictor(aligned)

        # Each view's prediction meets the target of its partner at the same places.
        target, target_inside = _swap(target), _swap(target_inside)
        inside = own_inside & target_inside
        valid = inside if self.interpolated_only else torch.ones_like(inside)
        half = len(projection) // 2
        first = local_consistency_loss(prediction[:half], target[:half], valid[:half])
        second = local_consistency_loss(prediction[half:], target[half:], valid[half:])
        online = projection.detach()
        return PGLOutput(first + second, feature_spread(online), within_view_share(online), inside.float().mean())

    def rehearse(self, views: Tensor) -> Tensor:
        """See `Objective.rehearse`; the aligner's small maps are left out."""
        with self.autocast(views.device):
            projection = self.projector(self.encoder(views)[-1])
        self.project_target(views)
        with self.autocast(views.device):
            prediction = self.predictor(projection.float())
        return prediction.float().square().mean()

    def update_target(self, decay: float) -> None:
        """One step of the target path towards the online path (eq. 10)."""
        update_target(self.target_encoder, self.encoder, decay)
        update_target(self.target_projector, self.projector, decay)


def _swap(x: Tensor) -> Tensor:
    """Second halves first: what belongs to each view's partner."""
    return x.roll(len(x) // 2, dims=0)


def _swapped(geometries: GeometryBatch) -> GeometryBatch:
    return GeometryBatch(_swap(geometries.starts), _swap(geometries.sizes), _swap(geometries.flips))
