"""Trainers of the comparison in docs/results: 10 epochs of 16 iterations, for two CPU cores.

export nnUNet_extTrainer="$(pgl_extension):$PWD/benchmarks/trainers"
"""

from nnunetv2_pgl.trainers import nnUNetTrainerPGL, nnUNetTrainerPGLScratch
from nnunetv2_pgl.trainers.lengths import with_length

_SHORT = {"num_epochs": 10, "num_iterations_per_epoch": 16, "num_val_iterations_per_epoch": 2}
nnUNetTrainerPGL_short = with_length(nnUNetTrainerPGL, "short", **_SHORT)
nnUNetTrainerPGLScratch_short = with_length(nnUNetTrainerPGLScratch, "short", **_SHORT)
