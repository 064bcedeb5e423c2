"""What the training loop asks of a pre-training method."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnunetv2_pgl.networks import Encoder, Segmenter
from nnunetv2_pgl.networks.hardware import lay_out
from pretraining.views import GeometryBatch


class Objective(nn.Module):
    """Networks of a method and the loss of a batch of pairs.

    Attributes:
        output: Named tuple of scalars that `forward` returns, the loss first.
        encoder: The encoder that is kept.
        precision: Autocast type of the networks, None for float32.
    """

    output: ClassVar[Any]
    encoder: Encoder
    precision: torch.dtype | None

    @staticmethod
    def draw(view_size: Sequence[int], rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        """What a method draws in the loading processes for each view of this size (z, y, x); by default nothing.

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

    def dry_forward(self, views: Tensor) -> Tensor:
        """Loss of `forward` where values do not matter: counts the memory and the operations of a step.

        All views show the same box, and of what `draw` returns all is zero. Works without values, on the device "meta"
        and under torch's FakeTensorMode.

        Args:
            views: (2 B, C, D, H, W).
        """
        count, size = len(views), views.shape[2:]
        box = views.new_zeros(count, 3, dtype=torch.float64)
        geometries = GeometryBatch(box, box + box.new_tensor(size), box.bool())
        drawn = {
            name: views.new_zeros(count, *values.shape, dtype=getattr(torch, values.dtype.name))
            for name, values in self.draw(size, np.random.default_rng(0)).items()
        }
        output = self(views, geometries, **drawn)
        return output.loss

    def update_target(self, decay: float) -> None:
        """Moves the target path after an optimiser step; does nothing where there is none."""

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


class Restoration(Objective):
    """A method whose loss is that of a segmenter which restores the views; there is no target path.

    Args:
        segmenter: The restoring network; as many output as input channels. Its encoder is kept.
        precision: Autocast type of the network, None for float32. The loss is always float32.
    """

    def __init__(self, segmenter: Segmenter, precision: torch.dtype | None = None):
        super().__init__()
        self.segmenter = segmenter
        self.precision = precision

    @property
    def encoder(self) -> Encoder:  # type: ignore[override]
        """The segmenter's. Not a second module, which would be saved twice."""
        return self.segmenter.encoder

    def kept_decoder(self) -> dict[str, Tensor]:
        """See `Objective.kept_decoder`: under the names it has in the segmenter."""
        return self.segmenter.decoder_weights()
