"""``nnUNetTrainerPGL_sawtooth``: the encoder waits until the decoder has begun to learn."""

from __future__ import annotations

from typing import Any

import torch

from nnunetv2_pgl.trainers.network import unwrapped
from nnunetv2_pgl.trainers.pgl import nnUNetTrainerPGL
from nnunetv2_pgl.trainers.schedule import SawtoothPolyLRScheduler


class Sawtooth(nnUNetTrainerPGL):
    """Makes the learning rate of a trainer rise twice, the first time for all but the encoder."""

    def learning_rates(self, optimizer: torch.optim.Optimizer) -> SawtoothPolyLRScheduler:
        """Gives the encoder a parameter group of its own.

        Its rate is set to 0, not ``requires_grad`` to False: DistributedDataParallel and torch.compile would have to
        be set up anew when that changes.
        """
        (group,) = optimizer.param_groups
        network: Any = unwrapped(self.network)
        encoder = list(network.encoder.parameters())
        of_encoder = {id(parameter) for parameter in encoder}
        rest = [parameter for parameter in group["params"] if id(parameter) not in of_encoder]
        optimizer.param_groups.clear()
        for parameters in (rest, encoder):  # nnU-Net logs the rate of the first
            optimizer.add_param_group({**group, "params": parameters})
        return SawtoothPolyLRScheduler(optimizer, self.initial_lr, self.num_epochs, self.warmup_epochs)


class nnUNetTrainerPGL_sawtooth(Sawtooth):
    """`nnUNetTrainerPGL` that trains all but the encoder during the warm-up, then warms up the whole network."""
