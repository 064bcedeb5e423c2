"""What nnU-Net finds through ``nnUNet_extTrainer``: it imports this file, takes the class and forgets the file."""

from nnunetv2_pgl import trainers

globals().update({name: getattr(trainers, name) for name in trainers.__all__})
