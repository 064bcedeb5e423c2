"""A pre-trained encoder in Python: the network, the preprocessing that belongs to it, and dense features."""

from nnunetv2_pgl.features.dense import DenseFeatures, corresponding_points, dense_features, load_encoder
from nnunetv2_pgl.features.preprocessing import PreprocessedImage, Preprocessing

__all__ = [
    "DenseFeatures",
    "PreprocessedImage",
    "Preprocessing",
    "corresponding_points",
    "dense_features",
    "load_encoder",
]
