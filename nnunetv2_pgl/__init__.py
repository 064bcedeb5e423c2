"""PGL inside nnU-Net: the networks, the encoder checkpoint and the trainers.

Tell nnU-Net where the trainers are, in every shell that trains or predicts::

    export nnUNet_extTrainer="$(pgl_extension)"
    nnUNetv2_train DATASET 3d_fullres 0 -tr nnUNetTrainerPGL

In Python, the encoder and the preprocessing that belongs to it (see docs/features.md)::

    from nnunetv2_pgl import load_encoder

This package never imports ``pretraining``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunetv2_pgl.features import corresponding_points, dense_features, load_encoder

__version__ = "0.1.0"
__all__ = ["__version__", "corresponding_points", "dense_features", "load_encoder"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # only now, since torch and nnU-Net take seconds to import
        from nnunetv2_pgl import features

        return getattr(features, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
