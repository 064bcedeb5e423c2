"""PGL: local consistency of two views of one scan (section 3.3 and 3.4; the paper's figure 2 in code)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from nnunetv2_pgl.networks import Encoder
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
    require_same_places(prediction, target, valid)
    distance = 2 - 2 * F.cosine_similarity(prediction.float(), target.float(), dim=1)
    if valid is None:
        return distance.mean()
    return (distance * valid).sum() / valid.sum().clamp(min=1)


def require_same_places(prediction: Tensor, target: Tensor, valid: Tensor | None) -> None:
    """Checks (B, C, ...), (B, C, ...) and (B, ...) or None.

    Raises:
        ValueError: The shapes do not fit.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape")
    voxels = (len(prediction), *prediction.shape[2:])
    if valid is not None and valid.shape != voxels:
        raise ValueError(f"valid is {tuple(valid.shape)}, but the voxels are {voxels}")


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
        loss: The loss of both directions, added (eq. 9), mean over the levels.
        feature_std: See `feature_spread`, of the online projections of the deepest level.
        within_views: See `within_view_share`, of the same.
        interpolated: Share of its aligned points that lie between cell centres in both views.
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
        levels: Maps of the encoder that are aligned, -1 is its deepest; each has its own projector and predictor.
        interpolated_only: Let only points between cell centres count in the loss. With few cells per view that leaves
            few (see ``docs/method.md``), so all count by default.
        precision: Autocast type of the networks, None for float32. Alignment and loss are always float32.
    """

    output: ClassVar[Any] = PGLOutput
    needs_all_stages: ClassVar[bool] = False

    def __init__(
        self,
        encoder: Encoder,
        view_size: Sequence[int],
        hidden_channels: int = 4096,
        out_channels: int = 256,
        levels: Sequence[int] = (-1,),
        interpolated_only: bool = False,
        precision: torch.dtype | None = None,
    ):
        super().__init__()
        self.encoder = encoder
        self.levels = sorted({level % len(encoder.skip_channels) for level in levels})
        if not self.needs_all_stages:
            for stage in encoder.beyond(self.levels[-1]):
                stage.requires_grad_(False)  # they keep their random weights
        channels = [encoder.skip_channels[level] for level in self.levels]
        self.projectors = nn.ModuleList(ConvHead(n, hidden_channels, out_channels) for n in channels)
        self.predictors = nn.ModuleList(ConvHead(out_channels, hidden_channels, out_channels) for _ in channels)
        self.target_encoder = make_target(self.encoder)
        self.target_projectors = make_target(self.projectors)
        self.grids = [encoder.feature_grid(view_size, level) for level in self.levels]
        self.interpolated_only = interpolated_only
        self.precision = precision
        self.to(memory_format=encoder.memory_format)

    def forward(self, views: Tensor, geometries: GeometryBatch, generator: torch.Generator | None = None) -> PGLOutput:
        """See `Objective.forward`; draws nothing."""
        views = self.laid_out(views)
        targets = self.project_target(views)  # first: its maps are gone before autograd keeps those of the online path
        with self.autocast(views.device):
            projections = self.project(self.encoder(views, self.levels[-1]))
        return self.consistency(projections, targets, geometries)

    def project(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Projections of the online path, (2 B, C, d, h, w) for each level, from the encoder's maps."""
        return [projector(maps[level]) for level, projector in zip(self.levels, self.projectors, strict=True)]

    def project_target(self, views: Tensor) -> list[Tensor]:
        """Projections of the target path, (2 B, C, d, h, w) for each level."""
        with torch.no_grad(), self.autocast(views.device):
            maps = self.target_encoder(views, self.levels[-1])
            return [
                projector(maps[level]) for level, projector in zip(self.levels, self.target_projectors, strict=True)
            ]

    def consistency(
        self, projections: Sequence[Tensor], targets: Sequence[Tensor], geometries: GeometryBatch
    ) -> PGLOutput:
        """Aligns both paths' projections of all views, (2 B, C, d, h, w) for each level, and compares partners."""
        outputs = [
            self._consistency_of_level(number, projection, target, geometries)
            for number, (projection, target) in enumerate(zip(projections, targets, strict=True))
        ]
        return outputs[-1]._replace(loss=torch.stack([output.loss for output in outputs]).mean())

    def _consistency_of_level(
        self, number: int, projection: Tensor, target: Tensor, geometries: GeometryBatch
    ) -> PGLOutput:
        partners = _swapped(geometries)
        aligned, own_inside = align(projection.float(), geometries, partners, self.grids[number])
        target, target_inside = align(target.float(), geometries, partners, self.grids[number])
        with self.autocast(projection.device):
            prediction = self.predictors[number](aligned)

        # Each view's prediction meets the target of its partner at the same places.
        target, target_inside = _swap(target), _swap(target_inside)
        inside = own_inside & target_inside
        valid = inside if self.interpolated_only else torch.ones_like(inside)
        half = len(projection) // 2
        first = self.compare(prediction[:half], target[:half], valid[:half])
        second = self.compare(prediction[half:], target[half:], valid[half:])
        online = projection.detach()
        return PGLOutput(first + second, feature_spread(online), within_view_share(online), inside.float().mean())

    def compare(self, prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Loss of one direction: (B, C, d, h, w), the same, and (B, d, h, w) bool -> a scalar (eq. 8)."""
        return local_consistency_loss(prediction, target, valid)

    def rehearse(self, views: Tensor) -> Tensor:
        """See `Objective.rehearse`; the aligner's small maps are left out."""
        views = self.laid_out(views)
        self.project_target(views)
        with self.autocast(views.device):
            projections = self.project(self.encoder(views, self.levels[-1]))
        return self.rehearse_predictors(projections)

    def rehearse_predictors(self, projections: Sequence[Tensor]) -> Tensor:
        """The predictors' part of `rehearse`."""
        with self.autocast(projections[0].device):
            predictions = [
                predictor(projection.float())
                for predictor, projection in zip(self.predictors, projections, strict=True)
            ]
        return torch.stack([prediction.float().square().mean() for prediction in predictions]).mean()

    def update_target(self, decay: float) -> None:
        """One step of the target path towards the online path (eq. 10)."""
        update_target(self.target_encoder, self.encoder, decay)
        update_target(self.target_projectors, self.projectors, decay)


def _swap(x: Tensor) -> Tensor:
    """Second halves first: what belongs to each view's partner."""
    return x.roll(len(x) // 2, dims=0)


def _swapped(geometries: GeometryBatch) -> GeometryBatch:
    return GeometryBatch(_swap(geometries.starts), _swap(geometries.sizes), _swap(geometries.flips))
