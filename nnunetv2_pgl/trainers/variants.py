"""Variants of our trainers: without mirroring, the demo's, other lengths, and an encoder that waits for the decoder.

nnU-Net's command line sets no number of epochs; nnU-Net, too, has a trainer for each length.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from nnunetv2_pgl.networks.hardware import unwrapped
from nnunetv2_pgl.trainers.optimisation import SawtoothPolyLRScheduler, WarmupPolyLRScheduler, split_group
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


class TrainsWithAdamW(nnUNetTrainerPGL):
    """`nnUNetTrainerPGL` with AdamW, for trainings too short for nnU-Net's SGD."""

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, WarmupPolyLRScheduler]:
        """AdamW with the same schedule."""
        fused = True if self.device.type == "cpu" else None
        optimizer = torch.optim.AdamW(self.network.parameters(), self.initial_lr, weight_decay=1e-2, fused=fused)
        return optimizer, self.learning_rates(optimizer)


class NoMirroring(nnUNetTrainerPGL):
    """Turns mirroring off, in augmentation and prediction, as nnU-Net's ``nnUNetTrainerNoMirroring`` does."""

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:  # noqa: N802 - nnU-Net's name
        """nnU-Net's, without axes to mirror along."""
        *rotation_and_size, _ = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        self.inference_allowed_mirroring_axes = None
        return (*rotation_and_size, None)


class nnUNetTrainerPGL_NoMirroring(NoMirroring):
    """`nnUNetTrainerPGL` without mirroring, for labels that tell left from right."""


class nnUNetTrainerPGLScratch_NoMirroring(NoMirroring, nnUNetTrainerPGLScratch):
    """The control of `nnUNetTrainerPGL_NoMirroring`: the same, from random weights."""


class nnUNetTrainerPGL_demo(NoMirroring, TrainsWithAdamW):
    """What `pgl_demo` trains with: 8 epochs of 25 single patches, AdamW and no mirroring; 2 minutes on two CPU cores.

    That is too short to learn which kidney is the right one in mirrored images.
    """

    training_settings: ClassVar[Mapping[str, Any]] = {
        "initial_lr": 2e-3,
        "num_epochs": 8,
        "num_iterations_per_epoch": 25,
        "num_val_iterations_per_epoch": 2,
        "batch_size": 1,
    }


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
