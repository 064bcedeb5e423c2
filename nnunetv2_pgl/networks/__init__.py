"""The networks of the paper (encoder, ASPP and segmenter) and nnU-Net's own."""

from nnunetv2_pgl.networks.feature_grid import FeatureGrid
from nnunetv2_pgl.networks.padding import PaddingName
from nnunetv2_pgl.networks.planned import PLANNERS, PlanError, PlannedNetwork
from nnunetv2_pgl.networks.planned_encoder import PlannedEncoder, PlannedSegmenter
from nnunetv2_pgl.networks.resnet3d import PAPER_STRIDES, NormName, ResNet50Encoder, resnet_stage_strides
from nnunetv2_pgl.networks.segmenter import PGLSegmenter
from nnunetv2_pgl.networks.strided import Triple

Encoder = ResNet50Encoder | PlannedEncoder
Segmenter = PGLSegmenter | PlannedSegmenter

__all__ = [
    "PAPER_STRIDES",
    "PLANNERS",
    "Encoder",
    "FeatureGrid",
    "NormName",
    "PGLSegmenter",
    "PaddingName",
    "PlanError",
    "PlannedEncoder",
    "PlannedNetwork",
    "PlannedSegmenter",
    "ResNet50Encoder",
    "Segmenter",
    "Triple",
    "resnet_stage_strides",
]
