"""Trainers of other lengths, under nnU-Net's names for them: nnU-Net's command line cannot set a number of epochs."""

from __future__ import annotations

from typing import Any

import torch

from nnunetv2_pgl.trainers.pgl import nnUNetTrainerPGL

EPOCHS = (1, 5, 10, 20, 50, 100, 250, 500)


def with_length(base: type[nnUNetTrainerPGL], suffix: str, **attributes: int) -> type[nnUNetTrainerPGL]:
    """A trainer that differs from ``base`` in attributes set after construction, such as ``num_epochs``.

    ``batch_size`` is that of the plan, which nnU-Net reads later than its other attributes.
    """

    class Trainer(base):  # type: ignore[misc, valid-type]
        def __init__(
            self,
            plans: dict[str, Any],
            configuration: str,
            fold: int,
            dataset_json: dict[str, Any],
            device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's signature
        ):
            super().__init__(plans, configuration, fold, dataset_json, device)
            for name, value in attributes.items():
                if name == "batch_size":
                    self.configuration_manager.configuration[name] = value
                else:
                    setattr(self, name, value)

    Trainer.__name__ = Trainer.__qualname__ = f"{base.__name__}_{suffix}"
    described = ", ".join(f"{name} = {value}" for name, value in attributes.items())
    Trainer.__doc__ = f"`{base.__name__}` with {described}."
    return Trainer


def trainers_of_all_lengths(*bases: type[nnUNetTrainerPGL]) -> dict[str, type[nnUNetTrainerPGL]]:
    """``_1epoch``, ``_5epochs`` and so on of each trainer, by name."""
    made = [with_length(base, f"{n}epoch{'s' if n > 1 else ''}", num_epochs=n) for base in bases for n in EPOCHS]
    return {trainer.__name__: trainer for trainer in made}
