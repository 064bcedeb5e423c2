"""Objectives: heads, target network and the losses they serve."""

from pretraining.objectives.heads import ConvHead
from pretraining.objectives.pgl import PGL, PGLOutput, feature_spread, local_consistency_loss, within_view_share
from pretraining.objectives.target import make_target, target_decay, update_target

__all__ = [
    "PGL",
    "ConvHead",
    "PGLOutput",
    "feature_spread",
    "local_consistency_loss",
    "make_target",
    "target_decay",
    "update_target",
    "within_view_share",
]
