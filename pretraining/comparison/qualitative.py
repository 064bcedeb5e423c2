"""The figure of test cases: image, truth and each initialisation's prediction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from pretraining.comparison.appearance import CLASS_COLOURS, class_colours, looks, new_figure, percent, save
from pretraining.comparison.case_slice import CaseSlice, read_slice, same_size
from pretraining.comparison.results import ResultSet, Run
from pretraining.comparison.statistics import mean_of_known, value_grid
from pretraining.comparison.story import RunRecord, Story

_WINDOW = (0.5, 99.5)  # percentiles of the slice shown


@dataclass(frozen=True)
class Drawing:
    """What came of it.

    Attributes:
        path: The file; None if there was nothing to draw.
        caption: What it shows, or why there is none.
    """

    path: Path | None
    caption: str


@dataclass(frozen=True)
class _Row:
    title: str
    case: str
    runs: Mapping[str, RunRecord]


def draw_cases(results: ResultSet, story: Story, path: Path) -> Drawing:
    """Draws the median and the worst case of the reference at the smallest fraction it has runs of.

    Cases are ranked by average Dice, over all runs of the reference. The predictions are those of one fold and seed,
    the same for all initialisations wherever all have one in common. Where predictions were deleted since, the smallest
    fraction is taken of which every initialisation still has some of one fold and seed.
    """
    reference = story.reference if story.reference in results.inits else next(iter(sorted(results.inits)), "")
    fractions = [fraction for fraction in results.fractions if results.rows(reference, fraction)]
    if not fractions:
        return Drawing(None, "No case is drawn: no run is done.")
    fraction, runs = _chosen(story, fractions)
    rows, absent = _rows(results, story, reference, fraction, runs)
    if not rows:
        return Drawing(None, f"No case is drawn: {absent}.")
    _draw(rows, results, story, path)
    return Drawing(path, _caption(rows, story, reference, fraction, absent))


def _chosen(story: Story, fractions: Sequence[float]) -> tuple[float, dict[str, RunRecord]]:
    """The fraction to draw, and a run of each initialisation."""
    still_there = [run for run in story.runs if run.predictions.is_dir()]
    for fraction in fractions:
        runs = _chosen_runs(still_there, fraction)
        whole = runs.keys() == {run.init for run in story.runs}
        if whole and len({(run.fold, run.seed) for run in runs.values()}) == 1:
            return fraction, runs
    return fractions[0], _chosen_runs(story.runs, fractions[0])


def _chosen_runs(runs: Sequence[RunRecord], fraction: float) -> dict[str, RunRecord]:
    """One run of each initialisation: of the first fold and seed that all have, else of each one's first."""
    of_init: dict[str, dict[Run, RunRecord]] = {}
    for run in runs:
        if run.fraction == fraction:
            of_init.setdefault(run.init, {})[run.fold, run.seed] = run
    common = set.intersection(*(set(found) for found in of_init.values())) if of_init else set()
    return {init: found[min(common or found)] for init, found in of_init.items()}


def _rows(
    results: ResultSet, story: Story, reference: str, fraction: float, runs: Mapping[str, RunRecord]
) -> tuple[list[_Row], str]:
    """The rows, and what is missing to draw more of them."""
    grid = value_grid(results.rows(reference, fraction), "dice")
    means = mean_of_known(grid.values, axis=0)
    ranked = sorted((mean, case) for mean, case in zip(means, grid.cases, strict=True) if not np.isnan(mean))
    if not ranked:
        return [], "no test case has a class"
    chosen = {"median": ranked[(len(ranked) - 1) // 2][1], "worst": ranked[0][1]}
    rows: list[_Row] = []
    absent: list[str] = []
    for title, case in chosen.items():
        image, truth = story.images.get(case), story.truths.get(case)
        if image is None or truth is None or not (image.is_file() and truth.is_file()):
            absent.append(f"image or truth of {case} is not there")
        elif not same_size(image, truth):
            absent.append(f"image and truth of {case} differ in size")
        elif len(ranked) > 1 or not rows:
            rows.append(_Row(title if len(ranked) > 1 else "only", case, runs))
    return rows, "; ".join(dict.fromkeys(absent))


def _caption(rows: Sequence[_Row], story: Story, reference: str, fraction: float, absent: str) -> str:
    shown = {(run.fold, run.seed) for run in rows[0].runs.values()}
    cases = " and ".join(f"{row.title} test case ({row.case})" for row in rows)
    which = "; ".join(f"fold {fold}, seed {seed}" for fold, seed in sorted(shown)) or "no run"
    text = (
        f"{cases[0].upper()}{cases[1:]} of {reference} at {percent(fraction)} of the labels, ranked by average Dice "
        f"over all its runs. Solid lines: truth (left) and predictions ({which}); dotted white lines: the truth. The "
        "slice is the one with most truth. Below each prediction is its average Dice."
    )
    if len(story.classes) > len(CLASS_COLOURS):
        text += " There are more classes than colours, so colours repeat."
    return f"{text} Not drawn: {absent}." if absent else text


def _draw(rows: Sequence[_Row], results: ResultSet, story: Story, path: Path) -> None:
    inits = [init for init in story.inits if init in rows[0].runs]
    sections = [_section(row, story) for row in rows]
    height = 2.9
    narrowest = max(1.3, 0.1 * max(len(init) for init in ("", *inits)))  # for the titles
    width = min(4.0, max(narrowest, height * max(section.width for section in sections)))
    legend_columns = min(7, len(story.classes), max(1, int(width * (1 + len(inits)) / 2)))
    legend_rows = math.ceil(len(story.classes) / legend_columns)
    figure = new_figure(0.6 + (width + 0.1) * (1 + len(inits)), 0.7 + 0.25 * legend_rows + (height + 0.25) * len(rows))
    panels = figure.subplots(len(rows), 1 + len(inits), squeeze=False)
    for axes, row, section in zip(panels, rows, sections, strict=True):
        _draw_section(axes[0], section, None, story)
        axes[0].set_ylabel(f"{row.title} case\n{row.case}", fontsize=9)
        for place, init in zip(axes[1:], inits, strict=True):
            _draw_section(place, section, init, story)
            place.set_xlabel(_dice_text(results, row.case, row.runs[init]), fontsize=9)
    panels[0, 0].set_title("image and truth", fontsize=10)
    for place, init in zip(panels[0, 1:], inits, strict=True):
        place.set_title(init, fontsize=10, color=looks(story.inits)[init].colour, fontweight="bold")
    colours = class_colours(list(story.classes))
    handles = [Line2D([], [], color=colour, linewidth=3, label=name) for name, colour in colours.items()]
    # Bright class colours need a dark ground in the legend as on the scans.
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=legend_columns, labelcolor="white")
    legend.get_frame().set(facecolor="0.15", edgecolor="none", alpha=1)
    save(figure, path)


def _section(row: _Row, story: Story) -> CaseSlice:
    predictions = {init: run.prediction(row.case) for init, run in row.runs.items()}
    return read_slice(story.images[row.case], story.truths[row.case], predictions, story.classes)


def _dice_text(results: ResultSet, case: str, run: RunRecord) -> str:
    rows = [r for r in results.rows(run.init, run.fraction) if r.case == case and r.run == (run.fold, run.seed)]
    value = mean_of_known(np.array([row.dice for row in rows]))
    return "no result" if np.isnan(value) else f"Dice {100 * value:.1f}"


def _draw_section(axes: Axes, section: CaseSlice, init: str | None, story: Story) -> None:
    """Image with the contours of the truth (init None), or of a prediction with the truth dotted."""
    low, high = np.percentile(section.image, _WINDOW)
    axes.imshow(section.image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=section.aspect)
    axes.set_xticks([])
    axes.set_yticks([])
    labels = section.truth if init is None else section.predictions[init]
    for name, colour in class_colours(list(story.classes)).items():
        if labels is not None:
            _contour(axes, np.isin(labels, story.classes[name]), colours=colour, width=1.6, dashes="solid")
        if init is not None:
            _contour(axes, np.isin(section.truth, story.classes[name]), colours="white", width=0.9, dashes="dotted")
    if labels is None:
        axes.text(0.5, 0.5, "file is missing", transform=axes.transAxes, color="white", ha="center")


def _contour(axes: Axes, mask: NDArray[np.bool_], colours: str, width: float, dashes: str) -> None:
    if mask.any():
        padded = np.pad(mask, 1).astype(float)  # closes contours at the edge
        x, y = (np.arange(-1, n + 1) for n in mask.shape[::-1])
        axes.contour(x, y, padded, levels=[0.5], colors=colours, linewidths=width, linestyles=dashes)
        axes.set_xlim(-0.5, mask.shape[1] - 0.5)
        axes.set_ylim(mask.shape[0] - 0.5, -0.5)
