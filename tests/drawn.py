"""What a method draws in the loading processes, as its `forward` gets it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pretraining.objectives import Objective


def drawn_for(objective: Objective | type[Objective], views: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """For views (2 B, C, D, H, W), on the CPU; empty for most methods."""
    rng = np.random.default_rng(seed)
    drawn = [objective.draw(views.shape[2:], rng) for _ in views]
    return {name: torch.from_numpy(np.stack([of_view[name] for of_view in drawn])) for name in drawn[0]}
