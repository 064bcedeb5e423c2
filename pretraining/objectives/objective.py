"""What the training loop asks of a pre-training method."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnunetv2_pgl.networks import Encoder
from nnunetv2_pgl.networks.hardware import lay_out
from pretraining.views import GeometryBatch


class Objective(nn.Module):
    """Networks of a method and the loss of a batch of pairs.

    Attributes:
        output: Named tuple of scalars that `forward` returns, the loss first.
        has_target: Whether there is a target path, which follows the online path.
        changes_intensity: Whether the views shall have the intensity changes of section 3.2.
        encoder: The encoder that is kept.
        precision: Autocast type of the networks, None for float32.
    """

    output: ClassVar[Any]
    has_target: ClassVar[bool] = True
    changes_intensity: ClassVar[bool] = True
    encoder: Encoder
    precision: torch.dtype | None

    @staticmethod
    def draw(view_size: Sequence[int], rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        """What a method draws for a view of this size in the loading processes; nothing where it does not say.

        Returns:
            Arrays of always the same shapes and types. `forward` gets them by name, of all views, as tensors (2 B, ...)
            on the device.
        """
        return {}

    @abstractmethod
    def forward(self, views: Tensor, geometries: GeometryBatch, generator: torch.Generator | None = None) -> Any:
        """Loss of a batch of pairs.

        Args:
            views: (2 B, C, D, H, W): the first views of all pairs, then the second ones.
            geometries: Of the 2 B views.
            generator: Source of the randomness that a method adds, on the device of ``views``.
        """

    @abstractmethod
    def rehearse(self, views: Tensor) -> Tensor:
        """A pass through all networks without what looks at values: takes the memory of `forward`, gives a scalar."""

    def update_target(self, decay: float) -> None:
        """What follows an optimiser step; nothing where a method has no target path."""

    def autocast(self, device: torch.device) -> torch.autocast:
        """The precision of the networks as a context."""
        kind = "cpu" if device.type == "meta" else device.type  # there nothing is computed, only counted
        return torch.autocast(kind, dtype=self.precision, enabled=self.precision is not None)

    def laid_out(self, views: Tensor) -> Tensor:
        """The views in the encoder's memory format."""
        return lay_out(views, self.encoder.memory_format)

    def kept_decoder(self) -> dict[str, Tensor]:
        """Weights of the segmenter besides the encoder, where a method has trained them; no segmentation head."""
        return {}
