"""The trainers that nnU-Net finds: ``nnUNetTrainerPGL``, its control, recipes and lengths."""

from nnunetv2_pgl.trainers.demo import nnUNetTrainerPGL_demo
from nnunetv2_pgl.trainers.lengths import trainers_of_all_lengths
from nnunetv2_pgl.trainers.paper import nnUNetTrainerPGL_paper
from nnunetv2_pgl.trainers.pgl import nnUNetTrainerPGL, nnUNetTrainerPGLScratch
from nnunetv2_pgl.trainers.sawtooth import nnUNetTrainerPGL_sawtooth

_other_lengths = trainers_of_all_lengths(nnUNetTrainerPGL, nnUNetTrainerPGLScratch)
for _name, _trainer in _other_lengths.items():
    _trainer.__module__ = __name__
    globals()[_name] = _trainer

__all__ = [
    "nnUNetTrainerPGL",
    "nnUNetTrainerPGLScratch",
    "nnUNetTrainerPGL_demo",
    "nnUNetTrainerPGL_paper",
    "nnUNetTrainerPGL_sawtooth",
    *_other_lengths,
]
