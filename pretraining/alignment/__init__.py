"""Alignment: features of two views, sampled at the same places of the scan (section 3.3)."""

from nnunetv2_pgl.networks import FeatureGrid
from pretraining.alignment.aligner import align, sampled_places

__all__ = ["FeatureGrid", "align", "sampled_places"]
