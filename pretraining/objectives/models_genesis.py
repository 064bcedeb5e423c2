"""Models Genesis, the paper's generative comparison: restoring deformed views (Zhou et al. 2019 and 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from pretraining.objectives.deformation_apply import DeformationBatch, deform
from pretraining.objectives.deformation_draw import DeformationSettings, as_arrays, draw_deformation
from pretraining.objectives.objective import Restoration
from pretraining.views import GeometryBatch

_PUBLISHED = DeformationSettings()


class ModelsGenesisOutput(NamedTuple):
    """Loss of a batch and what to compare it with, both scalars.

    Attributes:
        loss: Mean squared error of the restored views, in units of the z-scored scans.
        deformed: That of the deformed views themselves: the loss of a network that changes nothing.
    """

    loss: Tensor
    deformed: Tensor


class ModelsGenesis(Restoration):
    """The segmenter as restoring network: from deformed views to the views as they were.

    The two views of a pair are just two sub-volumes. Their flips and scales are in the view to restore as well. The
    loss is the published one, the mean squared error over all voxels. Ours: no sigmoid at the output, since z-scored
    scans have no fixed range.

    Args:
        segmenter: The restoring network; as many output as input channels. Its encoder is kept.
        precision: Autocast type of the network, None for float32. Deformation and loss are always float32.
    """

    output = ModelsGenesisOutput

    @staticmethod
    def draw(view_size: Sequence[int], rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        """See `Objective.draw`: what happens to the view, with the published probabilities and sizes."""
        return as_arrays(draw_deformation(view_size, _PUBLISHED, rng), view_size, _PUBLISHED, rng)

    def forward(
        self, views: Tensor, geometries: GeometryBatch, generator: torch.Generator | None = None, **drawn: Tensor
    ) -> ModelsGenesisOutput:
        """See `Objective.forward`; places do not matter, the generator gives the noise that views are painted with."""
        with torch.no_grad():
            deformed = deform(views, DeformationBatch(**drawn), generator)
        with self.autocast(views.device):
            restored = self.segmenter(deformed)
        return ModelsGenesisOutput(F.mse_loss(restored.float(), views), F.mse_loss(deformed, views))
