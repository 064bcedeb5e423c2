"""Pictures of phantoms and of predictions beside the truth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from nnunetv2_pgl.files import replacing
from pretraining.demo.ellipsoids import Vector
from pretraining.demo.phantoms import LABELS

_WINDOW_HU = (-160, 240)  # soft tissue
_COLOURS = ("#d1603d", "#3f88c5", "#f2b705", "#7fb069", "#e4007f", "#b79ced", "#56c5d0")  # in the order of LABELS
_COLOUR_MAP = ListedColormap(["black", *_COLOURS])
_PLANES = ("axial", "coronal", "sagittal")


@dataclass(frozen=True)
class Volume:
    """A scan or a segmentation, (z, y, x), and its spacing in mm."""

    voxels: NDArray[Any]
    spacing: Vector

    def cut(self, plane: str, index: int) -> NDArray[Any]:
        """A slice as it is looked at: the patient's right on the left; front, or head, on top."""
        axis = _PLANES.index(plane)
        section = np.take(self.voxels, index, axis=axis)
        return section if plane == "axial" else section[::-1]

    def aspect(self, plane: str) -> float:
        """Height over width of a pixel of a slice."""
        rows, columns = (mm for axis, mm in enumerate(self.spacing) if axis != _PLANES.index(plane))
        return rows / columns


@dataclass(frozen=True)
class PredictedCase:
    """What one row of the picture of predictions shows."""

    title: str
    image: Volume
    truth: Volume
    prediction: Volume


def read_volume(path: Path) -> Volume:
    """Read an image file."""
    image = sitk.ReadImage(str(path))
    x, y, z = image.GetSpacing()
    return Volume(sitk.GetArrayFromImage(image), (z, y, x))


def draw_phantom(image: Volume, labels: Volume, path: Path) -> None:
    """Write a PNG of a scan in three planes, above, and with its labels, below."""
    figure = _figure(10.5, 6.4, "A phantom and its labels")
    axes = figure.subplots(2, 3)
    for column, plane in enumerate(_PLANES):
        index = _richest_slice(labels, plane)
        _draw(axes[0, column], plane, plane, index, image, None)
        _draw(axes[1, column], "", plane, index, image, labels)
    _finish(figure, path)


def draw_predictions(cases: list[PredictedCase], path: Path) -> None:
    """Write a PNG with one row for each case: truth and prediction over the scan, axial and coronal."""
    figure = _figure(13, 0.8 + 3.0 * len(cases), "Prediction beside the truth, test scans")
    for part, case in zip(figure.subfigures(len(cases), 1, squeeze=False)[:, 0], cases, strict=True):
        part.suptitle(case.title, fontsize=11)
        axes = part.subplots(1, 4)
        for number, plane in enumerate(("axial", "coronal")):
            index = _richest_slice(case.truth, plane)
            _draw(axes[2 * number], "truth", plane, index, case.image, case.truth)
            _draw(axes[2 * number + 1], "prediction", plane, index, case.image, case.prediction)
    _finish(figure, path)


def _figure(width: float, height: float, title: str) -> Figure:
    """A figure of its own, drawn by Agg: no window, no state shared with anyone else's figures."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13, fontweight="bold")
    return figure


def _richest_slice(labels: Volume, plane: str) -> int:
    """The slice with the most organs, the lungs aside; among these, the one with the most labelled voxels."""
    planes = np.moveaxis(labels.voxels, _PLANES.index(plane), 0)
    soft = np.where(planes == LABELS["lungs"], 0, planes)
    scores = [(len(np.unique(section)), int(np.count_nonzero(section))) for section in soft]
    return max(range(len(scores)), key=lambda index: scores[index])


def _draw(axes: Axes, title: str, plane: str, index: int, image: Volume, labels: Volume | None) -> None:
    aspect = image.aspect(plane)
    low, high = _WINDOW_HU
    axes.imshow(image.cut(plane, index), cmap="gray", vmin=low, vmax=high, aspect=aspect, interpolation="bilinear")
    if labels is not None:
        section = labels.cut(plane, index)
        shown = np.ma.masked_equal(section, 0)
        axes.imshow(shown, cmap=_COLOUR_MAP, vmin=0, vmax=7, alpha=0.55, aspect=aspect, interpolation="nearest")
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()


def _finish(figure: Figure, path: Path) -> None:
    """Add the legend and write the file, under a temporary name first."""
    patches = [
        Patch(color=colour, label=organ.replace("_", " ")) for organ, colour in zip(LABELS, _COLOURS, strict=True)
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
