"""Objectives: the methods with their heads, target networks and losses."""

from pretraining.objectives.byol import BYOL, BYOLOutput
from pretraining.objectives.heads import ConvHead
from pretraining.objectives.mae import MAE, MAEOutput
from pretraining.objectives.masking import draw_block_mask
from pretraining.objectives.models_genesis import ModelsGenesis, ModelsGenesisOutput
from pretraining.objectives.objective import Objective
from pretraining.objectives.pgl import PGL, PGLOutput, feature_spread, local_consistency_loss, within_view_share
from pretraining.objectives.pgl_mae import PGLMAE, PGLMAEOutput
from pretraining.objectives.pgl_nce import PGLNCE, local_contrastive_loss
from pretraining.objectives.target import make_target, target_decay, update_target

__all__ = [
    "BYOL",
    "MAE",
    "PGL",
    "PGLMAE",
    "PGLNCE",
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
