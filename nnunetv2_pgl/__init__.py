"""PGL inside nnU-Net: the networks, the encoder checkpoint and the trainers.

Tell nnU-Net where the trainers are, in every shell that trains or predicts::

    export nnUNet_extTrainer="$(pgl_extension)"
    nnUNetv2_train DATASET 3d_fullres 0 -tr nnUNetTrainerPGL

This package never imports ``pretraining``.
"""

__version__ = "0.1.0"
