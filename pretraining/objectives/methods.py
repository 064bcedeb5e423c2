"""The objective of each method that ``pgl_pretrain -m`` names, and what it takes from a run's settings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from pretraining.objectives.byol import BYOL
from pretraining.objectives.losses import local_contrastive_loss
from pretraining.objectives.mae import MAE
from pretraining.objectives.models_genesis import ModelsGenesis
from pretraining.objectives.objective import Objective
from pretraining.objectives.pgl import PGL
from pretraining.objectives.pgl_mae import PGLMAE
from pretraining.settings.config import PretrainConfig


class Entry(NamedTuple):
    """How a method is made.

    Attributes:
        objective: Its class. The first argument is a network: a segmenter for methods that train a decoder
            (`nnunetv2_pgl.methods.Method.has_decoder`), else an encoder.
        options: Its other arguments, but for ``precision``, from the settings of a run.
    """

    objective: type[Objective]
    options: Callable[[PretrainConfig], dict[str, Any]]


def _heads(config: PretrainConfig) -> dict[str, Any]:
    return {"hidden_channels": config.hidden_channels, "out_channels": config.out_channels}


def _alignment(config: PretrainConfig) -> dict[str, Any]:
    aligned = {"stages": config.stages, "interpolated_only": config.interpolated_only}
    return {"view_size": config.views.size, **_heads(config), **aligned}


OBJECTIVES: dict[str, Entry] = {
    "pgl": Entry(PGL, _alignment),
    "pgl_nce": Entry(
        PGL,
        lambda config: {
            **_alignment(config),
            "loss": partial(local_contrastive_loss, temperature=config.temperature),
        },
    ),
    "byol": Entry(BYOL, _heads),
    "models_genesis": Entry(ModelsGenesis, lambda config: {}),
    "mae": Entry(MAE, lambda config: {"block": config.mask_block, "mask_ratio": config.mask_ratio}),
    "pgl_mae": Entry(
        PGLMAE,
        lambda config: {
            **_alignment(config),
            "mask_ratio": config.mask_ratio,
            "restoration_weight": config.restoration_weight,
        },
    ),
}
