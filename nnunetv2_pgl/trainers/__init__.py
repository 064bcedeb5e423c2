"""The trainers that nnU-Net finds: ``nnUNetTrainerPGL``, its control, recipes and lengths."""

from nnunetv2_pgl.trainers.paper import nnUNetTrainerPGL_paper
from nnunetv2_pgl.trainers.pgl import nnUNetTrainerPGL, nnUNetTrainerPGLScratch
from nnunetv2_pgl.trainers.variants import (
    OTHER_LENGTHS,
    nnUNetTrainerPGL_demo,
    nnUNetTrainerPGL_NoMirroring,
    nnUNetTrainerPGL_sawtooth,
    nnUNetTrainerPGLScratch_NoMirroring,
)

globals().update(OTHER_LENGTHS)

__all__ = [
    "nnUNetTrainerPGL",
    "nnUNetTrainerPGLScratch",
    "nnUNetTrainerPGLScratch_NoMirroring",
    "nnUNetTrainerPGL_NoMirroring",
    "nnUNetTrainerPGL_demo",
    "nnUNetTrainerPGL_paper",
    "nnUNetTrainerPGL_sawtooth",
    *OTHER_LENGTHS,
]
