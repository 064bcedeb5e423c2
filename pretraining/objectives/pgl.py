"""PGL: local consistency of two views of one scan (section 3.3 and 3.4; the paper's figure 2 in code)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from nnunetv2_pgl.networks import Encoder
from pretraining.alignment import align
from pretraining.objectives.losses import feature_spread, local_consistency_loss, within_view_share
from pretraining.objectives.objective import Objective
from pretraining.objectives.paths import ConvHead, make_target, of_partners, update_target
from pretraining.views import GeometryBatch


class PGLOutput(NamedTuple):
    """Loss of a batch and what shows whether training is healthy, all scalars.

    Attributes:
        loss: The loss of both directions, added (eq. 9), mean over the stages.
        feature_std: See `feature_spread`, of the online projections of the deepest stage.
        within_views: See `within_view_share`, of the same.
        interpolated: Share of its aligned points that lie between cell centres in both views.
    """

    loss: Tensor
    feature_std: Tensor
    within_views: Tensor
    interpolated: Tensor


class PGL(Objective):
    """Online and target path, prior-guided aligner and symmetrised local loss.

    Args:
        encoder: The online encoder; the target's is a copy.
        view_size: Size of the views (z, y, x).
        hidden_channels: Channels inside projector and predictor.
        out_channels: Channels of the projection.
        stages: Maps of the encoder that are aligned, -1 is its deepest; each has its own projector and predictor.
        interpolated_only: Let only points between cell centres count in the loss. With few cells per view that leaves
            few (see ``docs/method.md``), so all count by default.
        loss: Of one direction (eq. 8): prediction and target (B, C, d, h, w) at the same places and which of these
            count, (B, d, h, w) bool -> a scalar.
        precision: Autocast type of the networks, None for float32. Alignment and loss are always float32.
    """

    output: ClassVar[Any] = PGLOutput

    def __init__(
        self,
        encoder: Encoder,
        view_size: Sequence[int],
        hidden_channels: int = 4096,
        out_channels: int = 256,
        stages: Sequence[int] = (-1,),
        interpolated_only: bool = False,
        loss: Callable[[Tensor, Tensor, Tensor], Tensor] = local_consistency_loss,
        precision: torch.dtype | None = None,
    ):
        super().__init__()
        self.encoder = encoder
        self.stages = sorted({stage % len(encoder.stage_channels) for stage in stages})
        for module in encoder.modules_after(self.stages[-1]):
            module.requires_grad_(False)  # they keep their random weights
        channels = [encoder.stage_channels[stage] for stage in self.stages]
        self.projectors = nn.ModuleList(ConvHead(n, hidden_channels, out_channels) for n in channels)
        self.predictors = nn.ModuleList(ConvHead(out_channels, hidden_channels, out_channels) for _ in channels)
        self.target_encoder = make_target(self.encoder)
        self.target_projectors = make_target(self.projectors)
        self.grids = [encoder.feature_grid(view_size, stage) for stage in self.stages]
        self.interpolated_only = interpolated_only
        self.loss = loss
        self.precision = precision
        self.to(memory_format=encoder.memory_format)

    def forward(
        self,
        views: Tensor,
        geometries: GeometryBatch,
        generator: torch.Generator | None = None,
        encode: Callable[[Tensor, int], Sequence[Tensor]] | None = None,
    ) -> PGLOutput:
        """Figure 2: each view takes the online path and is compared with its partner, which takes the target path.

        See `Objective.forward`; nothing is drawn. ``encode`` stands in for the online encoder: it takes the views and
        the last stage to compute and gives the maps.
        """
        views, last_stage = self.laid_out(views), self.stages[-1]
        # Encode and project, in both paths (eq. 3).
        with self.autocast(views.device):
            with torch.no_grad():  # first: its maps are gone before autograd keeps those of the online path
                targets = self._project(self.target_projectors, self.target_encoder(views, last_stage))
            projections = self._project(self.projectors, (encode or self.encoder)(views, last_stage))

        # Align, predict and compare (eq. 4 to 9).
        partners = GeometryBatch(*map(of_partners, (geometries.starts, geometries.sizes, geometries.flips)))
        halves = slice(len(views) // 2), slice(len(views) // 2, None)
        losses = []
        for projection, target, predictor, grid in zip(projections, targets, self.predictors, self.grids, strict=True):
            # FlipAlign and CSAlign in one (eq. 4 to 7): both maps at the same places of the overlap.
            aligned, is_inside = align(projection.float(), geometries, partners, grid)
            aligned_target, is_target_inside = align(target.float(), geometries, partners, grid)
            with self.autocast(views.device):
                prediction = predictor(aligned)
            # Each view's prediction meets the target of its partner (eq. 8); the views swap paths (eq. 9).
            partner_target, interpolated = of_partners(aligned_target), is_inside & of_partners(is_target_inside)
            counted = interpolated if self.interpolated_only else torch.ones_like(interpolated)
            first, second = (self.loss(prediction[half], partner_target[half], counted[half]) for half in halves)
            losses.append(first + second)
        online = projections[-1].detach()
        health = feature_spread(online), within_view_share(online), interpolated.float().mean()
        return PGLOutput(torch.stack(losses).mean(), *health)

    def _project(self, projectors: Iterable[nn.Module], maps: Sequence[Tensor]) -> list[Tensor]:
        """Projection of the map of each stage, (2 B, C, d, h, w) each."""
        return [projector(maps[stage]) for stage, projector in zip(self.stages, projectors, strict=True)]

    def update_target(self, decay: float) -> None:
        """One step of the target path towards the online path (eq. 10)."""
        update_target(self.target_encoder, self.encoder, decay)
        update_target(self.target_projectors, self.projectors, decay)
