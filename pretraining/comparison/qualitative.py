"""The figure of test cases: a slice with image, truth and each initialisation's prediction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import SimpleITK as sitk
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from pretraining.comparison.figures import looks, new_figure, percent, save
from pretraining.comparison.results import fractions_of, select
from pretraining.comparison.statistics import case_scores
from pretraining.comparison.study import RunRecord, Study

CLASS_COLOURS = (  # bright, to be seen on a scan
    *("#ffd400", "#00d5ff", "#ff5fc4", "#7dff5f", "#ff8a3c", "#b79cff", "#5f8bff", "#ffffff"),
    *("#ff4040", "#00ffb3", "#d9a066", "#e600ff", "#c0ff00", "#9aa5b1", "#0090ff", "#b30059"),
)
_WINDOW = (0.5, 99.5)  # percentiles of the slice shown
_MARGIN = 0.4  # of the larger side of the truth's box, on each side


class CaseSlice(NamedTuple):
    """A plane of a case.

    Attributes:
        image: (y, x).
        truth: Labels, (y, x).
        predictions: Labels, (y, x), by name; None where the file is missing.
        aspect: Height over width of a pixel.
    """

    image: NDArray[Any]
    truth: NDArray[Any]
    predictions: Mapping[str, NDArray[Any] | None]
    aspect: float


def draw_cases(results: pd.DataFrame, study: Study, path: Path) -> tuple[Path | None, str]:
    """Draws the median and the worst case of the reference at the smallest fraction it has runs of.

    Cases are ranked by average Dice, over all runs of the reference. The predictions are those of one fold and seed,
    the same for all initialisations wherever all have one in common. Where predictions were deleted since, the smallest
    fraction is taken of which every initialisation still has some of one fold and seed.

    Returns:
        The file, None if there was nothing to draw; and its caption, or why there is none.
    """
    inits = set(results["init"])
    reference = study.reference if study.reference in inits else min(inits)
    fraction, runs = _chosen_runs(study, fractions_of(results[results["init"] == reference]))
    means = case_scores(select(results, reference, fraction), "dice").mean().dropna().sort_values(kind="stable")
    if means.empty:
        return None, "No case is drawn: no test case has a class."
    ranked = list(means.index)
    chosen = {"median": ranked[(len(ranked) - 1) // 2], "worst": ranked[0]} if len(ranked) > 1 else {"only": ranked[0]}
    problems = {title: problem for title, case in chosen.items() if (problem := _problem(case, study))}
    absent = "; ".join(dict.fromkeys(problems.values()))
    drawn = {title: case for title, case in chosen.items() if title not in problems}
    if not drawn:
        return None, f"No case is drawn: {absent}."
    _draw(drawn, runs, results, study, path)
    cases = " and ".join(f"{title} test case ({case})" for title, case in drawn.items())
    which = "; ".join(f"fold {f}, seed {s}" for f, s in sorted({(r.fold, r.seed) for r in runs.values()})) or "no run"
    caption = (
        f"{cases[0].upper()}{cases[1:]} of {reference} at {percent(fraction)} of the labels, ranked by average Dice "
        f"over all its runs. Solid lines: truth (left) and predictions ({which}); dotted white lines: the truth. The "
        "slice is the one with most truth. Below each prediction is its average Dice."
    )
    if len(study.classes) > len(CLASS_COLOURS):
        caption += " There are more classes than colours, so colours repeat."
    return path, f"{caption} Not drawn: {absent}." if absent else caption


def _chosen_runs(study: Study, fractions: Sequence[float]) -> tuple[float, dict[str, RunRecord]]:
    """The fraction to draw, and a run of each initialisation: of one fold and seed that all have, else its first."""
    runs = sorted(study.runs, key=lambda run: (run.fold, run.seed))
    inits = {run.init for run in runs}
    for fraction, with_files in [*((fraction, True) for fraction in fractions), (fractions[0], False)]:
        of_fraction = [run for run in runs if run.fraction == fraction and (run.predictions.is_dir() or not with_files)]
        for first in of_fraction:
            same = {run.init: run for run in of_fraction if (run.fold, run.seed) == (first.fold, first.seed)}
            if same.keys() == inits:
                return fraction, same
    return fractions[0], {run.init: run for run in reversed(runs) if run.fraction == fractions[0]}


def _problem(case: str, study: Study) -> str | None:
    """Why a case cannot be drawn; reads no more than the headers of its files."""
    sizes = []
    for file in (study.images.get(case), study.truths.get(case)):
        if file is None or not file.is_file():
            return f"image or truth of {case} is not there"
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(file))
        reader.ReadImageInformation()
        sizes.append(reader.GetSize())
    return None if sizes[0] == sizes[1] else f"image and truth of {case} differ in size"


def _draw(
    cases: Mapping[str, str], runs: Mapping[str, RunRecord], results: pd.DataFrame, study: Study, path: Path
) -> None:
    inits = [init for init in study.inits if init in runs]
    planes = [
        read_slice(study.images[c], study.truths[c], {i: runs[i].prediction(c) for i in inits}, study.classes)
        for c in cases.values()
    ]
    height = 2.9
    title_width = max(1.3, 0.1 * max(len(init) for init in ("", *inits)))
    widest = max(plane.truth.shape[1] / (plane.truth.shape[0] * plane.aspect) for plane in planes)
    width = min(4.0, max(title_width, height * widest))
    legend_columns = min(7, len(study.classes), max(1, int(width * (1 + len(inits)) / 2)))
    legend_height = 0.25 * math.ceil(len(study.classes) / legend_columns)
    figure = new_figure(0.6 + (width + 0.1) * (1 + len(inits)), 0.7 + legend_height + (height + 0.25) * len(cases))
    panels = figure.subplots(len(cases), 1 + len(inits), squeeze=False)
    for (first, *others), (title, case), plane in zip(panels, cases.items(), planes, strict=True):
        _draw_plane(first, plane, None, study)
        first.set_ylabel(f"{title} case\n{case}", fontsize=9)
        for axes, init in zip(others, inits, strict=True):
            _draw_plane(axes, plane, init, study)
            scores = case_scores(select(results, init, runs[init].fraction), "dice")
            value = scores.get(case, pd.Series(dtype=float)).get((runs[init].fold, runs[init].seed), math.nan)
            axes.set_xlabel("no result" if math.isnan(value) else f"Dice {100 * value:.1f}", fontsize=9)
    panels[0, 0].set_title("image and truth", fontsize=10)
    for axes, init in zip(panels[0, 1:], inits, strict=True):
        axes.set_title(init, fontsize=10, color=looks(study.inits)[init].colour, fontweight="bold")
    colours = zip(study.classes, cycle(CLASS_COLOURS), strict=False)
    handles = [Line2D([], [], color=colour, linewidth=3, label=name) for name, colour in colours]
    # Bright class colours need a dark ground in the legend as on the scans.
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=legend_columns, labelcolor="white")
    legend.get_frame().set(facecolor="0.15", edgecolor="none", alpha=1)
    save(figure, path)


def _draw_plane(axes: Axes, plane: CaseSlice, init: str | None, study: Study) -> None:
    """Image with the contours of the truth (init None), or of a prediction with the truth dotted."""
    low, high = np.percentile(plane.image, _WINDOW)
    axes.imshow(plane.image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=plane.aspect)
    axes.set_xticks([])
    axes.set_yticks([])
    labels = plane.truth if init is None else plane.predictions[init]
    for label, colour in zip(study.classes.values(), cycle(CLASS_COLOURS), strict=False):
        if labels is not None:
            _draw_contour(axes, np.isin(labels, label), colors=colour, linewidths=1.6, linestyles="solid")
        if init is not None:
            _draw_contour(axes, np.isin(plane.truth, label), colors="white", linewidths=0.9, linestyles="dotted")
    if labels is None:
        axes.text(0.5, 0.5, "file is missing", transform=axes.transAxes, color="white", ha="center")


def _draw_contour(axes: Axes, mask: NDArray[np.bool_], **style: Any) -> None:
    if mask.any():
        padded = np.pad(mask, 1).astype(float)  # closes contours at the edge
        x, y = (np.arange(-1, n + 1) for n in mask.shape[::-1])
        axes.contour(x, y, padded, levels=[0.5], **style)
        axes.set_xlim(-0.5, mask.shape[1] - 0.5)
        axes.set_ylim(mask.shape[0] - 0.5, -0.5)


def read_slice(
    image: Path, truth: Path, predictions: Mapping[str, Path], classes: Mapping[str, int | tuple[int, ...]]
) -> CaseSlice:
    """The axial slice that shows most of the structures, cut to the truth and its surroundings.

    Most: where the structures together come closest to their largest areas, so that a large one does not hide the
    small ones.
    """
    true_image, true_labels = _read(truth)
    masks = [np.isin(true_labels, value) for value in classes.values()]
    areas = [mask.sum(axis=(1, 2)) for mask in masks]
    shares = [area / area.max() for area in areas if area.max() > 0]
    z = int(np.argmax(np.sum(shares, axis=0))) if shares else 0
    x_mm, y_mm = true_image.GetSpacing()[:2]
    window = (z, *_surroundings(np.any(masks, axis=0)[z], (y_mm, x_mm)))
    cut = {name: _read(path)[1][window] if path.is_file() else None for name, path in predictions.items()}
    return CaseSlice(_read(image)[1][window], true_labels[window], cut, y_mm / x_mm)


def _read(path: Path) -> tuple[Any, NDArray[Any]]:
    """An image with the patient's right on the left and front on top, and its voxels (z, y, x).

    A plane has one slice; of several values per voxel the mean is taken.
    """
    image = sitk.ReadImage(str(path))
    if image.GetDimension() == 3:
        image = sitk.DICOMOrient(image, "LPS")
    voxels = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        voxels = voxels.mean(axis=-1)
    return image, voxels if voxels.ndim == 3 else voxels[None]


def _surroundings(mask: NDArray[np.bool_], spacing: tuple[float, float]) -> tuple[slice, slice]:
    """The box of a mask with a margin, the same in mm on all sides; the whole plane if the mask is empty."""
    if not mask.any():
        return slice(None), slice(None)
    sides = [(int(i.min()), int(i.max()) + 1, mm) for i, mm in zip(np.nonzero(mask), spacing, strict=True)]
    margin = _MARGIN * max((end - start) * mm for start, end, mm in sides)
    y, x = (slice(max(0, start - round(margin / mm)), end + round(margin / mm)) for start, end, mm in sides)
    return y, x
