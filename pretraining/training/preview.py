"""Pictures of view pairs: their boxes on the scan, the views, the overlap as alignment sees it; and what they allow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from nnunetv2_pgl.files import replacing
from pretraining.alignment import FeatureGrid, align
from pretraining.data import Volume
from pretraining.settings.config import PretrainConfig
from pretraining.training.geometry_baselines import geometry_of_pairs, validation_batches
from pretraining.training.networks import make_encoder
from pretraining.views import ViewGeometry, ViewPairBatch, ViewPairDataset, ViewSettings, overlap_box, overlap_fraction

_COLOURS = ("tab:cyan", "tab:orange")
_FIELDS = 6  # of the chessboard along each axis


def draw_pairs(volumes: Sequence[Volume], settings: ViewSettings, seed: int, path: Path, pairs: int = 3) -> None:
    """Writes a PNG with one row per pair, each of another scan as far as there are enough.

    A row shows one channel; where views show all together, the rows take them in turn.

    Columns: the scan with both boxes at a slice through their overlap; the two views at that slice, as the networks see
    them, with the overlap framed; the overlap sampled from each view by `align`, flips undone; and the two put together
    as a chessboard, whose fields continue each other if the alignment is right.
    """
    dataset = ViewPairDataset(volumes, settings, seed)
    figure = Figure(figsize=(15, 2.7 * pairs + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(pairs, 6, squeeze=False)
    order = np.random.default_rng(seed).permutation(len(volumes))
    for row in range(pairs):
        index = int(order[row % len(volumes)])
        sample = dataset[row, index]
        batch = ViewPairBatch.collate([sample])
        shown = row % batch.crops.shape[1]
        _draw_row(rows[row], volumes[index], int(sample["index"][1]), shown, batch, settings)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def geometry_lines(volumes: Sequence[Volume], config: PretrainConfig) -> list[str]:
    """Baseline and upper bound of the correspondence in views of these scans, and a warning if the first is high."""
    with torch.device("meta"):
        encoder = make_encoder(config)
    size, stage = config.views.size, config.stages[-1]
    grid = encoder.feature_grid(size, stage)
    strides = config.stage_strides[stage]
    cells = [-(-voxels // stride) for voxels, stride in zip(size, strides, strict=True)]
    batches = validation_batches(volumes, config.views, config.seed)
    found = geometry_of_pairs([batch.geometries for batch in batches], grid, cells)
    return [f"Cells of {' x '.join(map(str, strides))} voxels, as pgl_pretrain has them by default:", *found.lines()]


def _draw_row(
    axes: Any, volume: Volume, first_channel: int, shown: int, batch: ViewPairBatch, settings: ViewSettings
) -> None:
    """``first_channel`` of the scan is the first of the views, ``shown`` the one of the views to draw."""
    geometries = [
        ViewGeometry(tuple(start), tuple(size), tuple(flip))
        for start, size, flip in zip(batch.starts.tolist(), batch.sizes.tolist(), batch.flips.tolist(), strict=True)
    ]
    channel = first_channel + shown
    views = batch.render(settings.size, torch.Generator().manual_seed(0))[:, shown : shown + 1]
    start, size = overlap_box(*geometries)
    middle = float(start[0] + size[0] / 2)
    _draw_scan(axes[0], volume, channel, int(min(middle, volume.shape[1] - 1)), geometries)
    for number, geometry in enumerate(geometries):
        _draw_view(axes[1 + number], views[number, 0], geometry, (start, size), middle, volume.spacing)
        flipped = "".join(name for name, flip in zip("zyx", geometry.flip, strict=True) if flip)
        title = f"view {number + 1}" + (f", flipped in {flipped}" if flipped else "")
        axes[1 + number].set_title(title, fontsize=9, color=_COLOURS[number])

    grid = FeatureGrid(settings.size, (1.0, 1.0, 1.0), (0.5, 0.5, 0.5))
    first, _ = align(views[:1], geometries[:1], geometries[1:], grid, settings.size)
    second, _ = align(views[1:], geometries[1:], geometries[:1], grid, settings.size)
    one, two = (aligned[0, 0, settings.size[0] // 2].numpy() for aligned in (first, second))
    rows, columns = np.indices(one.shape)
    is_odd = (rows * _FIELDS // one.shape[0] + columns * _FIELDS // one.shape[1]) % 2 == 1
    aspect = _aspect(volume.spacing, size, settings.size)
    titles = ("overlap in view 1", "overlap in view 2", "both, as a chessboard")
    for axis, image, title in zip(axes[3:], (one, two, np.where(is_odd, two, one)), titles, strict=True):
        axis.imshow(image, cmap="gray", aspect=aspect)
        axis.set_title(title, fontsize=9)
    which = f", channel {channel:04d}" if volume.shape[0] > 1 else ""  # numbered as in nnU-Net's file names
    axes[0].set_title(f"{volume.name}{which}\noverlap {overlap_fraction(*geometries):.0%}", fontsize=9)
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])


def _draw_scan(axis: Any, volume: Volume, channel: int, z: int, geometries: Sequence[ViewGeometry]) -> None:
    """A slice of the scan with the boxes of both views."""
    _, _, height, width = volume.shape
    image = volume.read(channel, (z, 0, 0), (z + 1, height, width))[0].astype(np.float32)
    low, high = np.percentile(image, (1, 99.5))
    contrast = {"cmap": "gray", "vmin": low, "vmax": max(high, low + 1e-3)}
    axis.imshow(image, extent=(0, width, height, 0), aspect=volume.spacing[1] / volume.spacing[2], **contrast)
    for geometry, colour in zip(geometries, _COLOURS, strict=True):
        axis.add_patch(_frame(geometry.start[1:], geometry.size[1:], colour))


def _draw_view(
    axis: Any,
    view: Tensor,
    geometry: ViewGeometry,
    overlap: tuple[np.ndarray, np.ndarray],
    z: float,
    spacing: tuple[float, float, float],
) -> None:
    """The view's slice at height ``z`` of the scan, with the overlap framed where the view shows it."""
    size = np.array(view.shape)
    scale = size / np.array(geometry.size)
    low = (overlap[0] - geometry.start) * scale
    extent = overlap[1] * scale
    low = np.where(geometry.flip, size - low - extent, low)
    position = (z - geometry.start[0]) * scale[0]
    index = int(np.clip(size[0] - position if geometry.flip[0] else position, 0, size[0] - 1))
    aspect = _aspect(spacing, np.array(geometry.size), view.shape)
    axis.imshow(view[index].numpy(), cmap="gray", extent=(0, size[2], size[1], 0), aspect=aspect)
    axis.add_patch(_frame(low[1:].tolist(), extent[1:].tolist(), "yellow"))


def _frame(start: Sequence[float], size: Sequence[float], colour: str) -> Rectangle:
    return Rectangle((start[1], start[0]), size[1], size[0], fill=False, edgecolor=colour, linewidth=1.6)


def _aspect(spacing: Sequence[float], size: np.ndarray, pixels: Sequence[int]) -> float:
    """Height of a pixel over its width, when ``pixels`` span ``size`` source voxels of the given spacing."""
    return float(spacing[1] * size[1] / pixels[1]) / float(spacing[2] * size[2] / pixels[2])
