"""Objectives: the methods with their heads, target networks and losses."""

from pretraining.objectives.byol import BYOL, BYOLOutput
from pretraining.objectives.losses import (
    feature_spread,
    local_consistency_loss,
    local_contrastive_loss,
    within_view_share,
)
from pretraining.objectives.mae import MAE, MAEOutput, draw_block_mask
from pretraining.objectives.models_genesis import ModelsGenesis, ModelsGenesisOutput
from pretraining.objectives.objective import Objective
from pretraining.objectives.paths import ConvHead, make_target, target_decay, update_target
from pretraining.objectives.pgl import PGL, PGLOutput
from pretraining.objectives.pgl_mae import PGLMAE, PGLMAEOutput

__all__ = [
    "BYOL",
    "MAE",
    "PGL",
    "PGLMAE",
    "BYOLOutput",
    "ConvHead",
    "MAEOutput",
    "ModelsGenesis",
    "ModelsGenesisOutput",
    "Objective",
    "PGLMAEOutput",
    "PGLOutput",
    "draw_block_mask",
    "feature_spread",
    "local_consistency_loss",
    "local_contrastive_loss",
    "make_target",
    "target_decay",
    "update_target",
    "within_view_share",
]
