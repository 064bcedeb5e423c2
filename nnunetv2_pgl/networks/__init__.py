"""The networks of the paper (encoder, ASPP and segmenter) and nnU-Net's own."""

from nnunetv2_pgl.networks.feature_grid import FeatureGrid
from nnunetv2_pgl.networks.planned import PlanError, PlannedEncoder, PlannedName, PlannedNetwork
from nnunetv2_pgl.networks.resnet3d import PAPER_STRIDES, NormName, ResNet50Encoder
from nnunetv2_pgl.networks.segmenter import PGLSegmenter

__all__ = [
    "PAPER_STRIDES",
    "FeatureGrid",
    "NormName",
    "PGLSegmenter",
    "PlanError",
    "PlannedEncoder",
    "PlannedName",
    "PlannedNetwork",
    "ResNet50Encoder",
]
