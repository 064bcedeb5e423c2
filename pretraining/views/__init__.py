"""Views: the geometry of a pair, their rendering on the device, and their intensity changes (section 3.2)."""

from pretraining.views.batch import ViewPairBatch
from pretraining.views.geometry import ViewGeometry, overlap_box, overlap_fraction, sample_view_pair
from pretraining.views.intensity import IntensityRanges, apply_intensity, draw_intensity
from pretraining.views.pairs import ViewPairDataset, ViewSettings
from pretraining.views.rendering import GeometryBatch, render_crops, render_views, source_box

__all__ = [
    "GeometryBatch",
    "IntensityRanges",
    "ViewGeometry",
    "ViewPairBatch",
    "ViewPairDataset",
    "ViewSettings",
    "apply_intensity",
    "draw_intensity",
    "overlap_box",
    "overlap_fraction",
    "render_crops",
    "render_views",
    "sample_view_pair",
    "source_box",
]
