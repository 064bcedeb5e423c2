"""Variants of our trainers: other lengths, and an encoder that waits until the decoder has begun to learn.

nnU-Net's command line sets no number of epochs; nnU-Net, too, has a trainer for each length.
"""

from __future__ import annotations

from typing import Any

import torch

from nnunetv2_pgl.networks.hardware import unwrapped
from nnunetv2_pgl.trainers.optimisation import SawtoothPolyLRScheduler, split_group
from nnunetv2_pgl.trainers.pgl import nnUNetTrainerPGL, nnUNetTrainerPGLScratch

EPOCHS = (1, 5, 10, 20, 50, 100, 250, 500)


class Sawtooth(nnUNetTrainerPGL):
    """Makes the learning rate of a trainer rise twice, the first time for all but the encoder."""

    def learning_rates(self, optimizer: torch.optim.Optimizer) -> SawtoothPolyLRScheduler:
        """Puts the encoder into a separate parameter group; nnU-Net logs the rate of the first, the other.

        Its rate is set to 0, not ``requires_grad`` to False: DistributedDataParallel and torch.compile would have to
        be set up again when that changes.
        """
        network: Any = unwrapped(self.network)
        split_group(optimizer, network.encoder.parameters())
        return SawtoothPolyLRScheduler(optimizer, self.initial_lr, self.num_epochs, self.warmup_epochs)


class nnUNetTrainerPGL_sawtooth(Sawtooth):
    """`nnUNetTrainerPGL` that trains all but the encoder during the warm-up, then warms up the whole network."""


def with_length(base: type[nnUNetTrainerPGL], suffix: str, **settings: int) -> type[nnUNetTrainerPGL]:
    """A trainer that differs from ``base`` in some of its ``training_settings``, such as ``num_epochs``."""
    described = ", ".join(f"{name} = {value}" for name, value in settings.items())
    contents = {"training_settings": {**base.training_settings, **settings}}
    return type(f"{base.__name__}_{suffix}", (base,), {**contents, "__doc__": f"`{base.__name__}` with {described}."})


OTHER_LENGTHS = {
    trainer.__name__: trainer
    for base in (nnUNetTrainerPGL, nnUNetTrainerPGLScratch)
    for trainer in (with_length(base, f"{n}epoch{'s' if n > 1 else ''}", num_epochs=n) for n in EPOCHS)
}
globals().update(OTHER_LENGTHS)
