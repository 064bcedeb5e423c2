"""The figures of the results: Dice by labelled scans, and Dice by class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator
from numpy.typing import NDArray

from pretraining.comparison.appearance import Look, legend_above, looks, new_figure, percent, save, scans, short
from pretraining.comparison.results import ResultSet
from pretraining.comparison.statistics import Interval, difference, interval, value_grid
from pretraining.comparison.story import BASELINE, Story

_MOST_RUNS_NAMED = 15


def draw_label_curve(results: ResultSet, story: Story, path: Path) -> Path:
    """Average Dice by number of labelled scans, on a logarithmic scale, with its 95 % confidence interval."""
    figure = new_figure(7.5, 4.8)
    axes = figure.subplots()
    styles = looks(story.inits)
    for init in story.inits:
        fractions = [fraction for fraction in results.fractions if results.rows(init, fraction)]
        intervals = [_dice(results, init, fraction, None) for fraction in fractions]
        places = [_mean_scans(results, fraction) for fraction in fractions]
        # Side by side, so that the bars do not hide each other.
        shift = 1.02 ** (story.inits.index(init) - (len(story.inits) - 1) / 2)
        _band(axes, [place * shift for place in places], intervals, styles[init], init)
    places = [_mean_scans(results, fraction) for fraction in results.fractions]
    texts = [f"{percent(f)}\n{scans(results.training_cases(f))}" for f in results.fractions]
    crowded = _are_crowded(places)
    if crowded:
        texts = [text.replace("\n", ", ") for text in texts]
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels(texts, rotation=60 if crowded else 0, ha="right" if crowded else "center")
    axes.set_xlim(places[0] * 0.75, places[-1] / 0.75)
    axes.set_xlabel("labelled training scans")
    _finish(axes, "average Dice, %")
    legend_above(figure, *axes.get_legend_handles_labels())
    return save(figure, path)


def _are_crowded(places: Sequence[float]) -> bool:
    """Whether texts below these places of a logarithmic axis would overlap."""
    gaps = np.diff(np.log(sorted(set(places))))
    return bool(len(gaps)) and bool(gaps.min() < 0.11 * (np.log(places[-1] / places[0]) + 0.6))


def _dice(results: ResultSet, init: str, fraction: float, class_name: str | None) -> Interval:
    return interval(value_grid(results.rows(init, fraction), "dice", class_name))


def _mean_scans(results: ResultSet, fraction: float) -> float:
    return float(np.mean(results.training_cases(fraction)))


def _band(axes: Axes, places: Sequence[float], intervals: Sequence[Interval], look: Look, label: str) -> None:
    means, low, high = (100 * np.array([getattr(i, name) for i in intervals]) for name in ("mean", "low", "high"))
    axes.plot(places, means, color=look.colour, marker=look.marker, markersize=6, label=label)
    axes.fill_between(places, low, high, color=look.colour, alpha=0.13, linewidth=0)
    axes.errorbar(places, means, _lengths(means, low, high), color=look.colour, linewidth=0, elinewidth=1, capsize=2)


def _lengths(means: NDArray[Any], low: NDArray[Any], high: NDArray[Any]) -> NDArray[Any]:
    """Lengths of error bars; none where there is no interval."""
    return np.nan_to_num(np.stack([means - low, high - means]))


def _finish(axes: Axes, name: str) -> None:
    axes.set_ylabel(name)
    axes.grid(alpha=0.3, axis="y")
    axes.spines[["top", "right"]].set_visible(False)


def draw_runs(results: ResultSet, story: Story, path: Path) -> Path:
    """Average Dice of each run, less the baseline's where there is one: a line per fold and seed, a panel per fraction.

    The lines show what the intervals hide: whether the runs agree.
    """
    panels_wide = len(results.fractions)
    width = min(18.0, 1.5 + panels_wide * max(2.5, 0.8 * len(story.inits)))
    figure = new_figure(width, 4.8)
    panels = figure.subplots(1, panels_wide, sharey=True, squeeze=False)[0]
    for axes, fraction in zip(panels, results.fractions, strict=True):
        _runs_panel(axes, results, story, fraction)
        axes.set_title(f"{percent(fraction)}, {scans(results.training_cases(fraction))}", fontsize=10, loc="left")
    of_baseline = BASELINE in story.inits
    _finish(panels[0], f"average Dice minus that of {BASELINE}, points" if of_baseline else "average Dice, %")
    for axes in panels[1:]:
        axes.grid(alpha=0.3, axis="y")
        axes.spines[["top", "right"]].set_visible(False)
    handles, texts = _unique_legend(list(panels))
    if len(handles) <= _MOST_RUNS_NAMED:
        legend_above(figure, handles, texts)
    return save(figure, path)


def _runs_panel(axes: Axes, results: ResultSet, story: Story, fraction: float) -> None:
    grids = [value_grid(results.rows(init, fraction), "dice") for init in story.inits]
    if BASELINE in story.inits:
        baseline = grids[story.inits.index(BASELINE)]
        grids = [difference(grid, baseline) for grid in grids]
        axes.axhline(0, color="0.6", linewidth=0.8)
    runs = sorted({run for grid in grids for run in grid.runs})
    colours = colormaps["viridis"](np.linspace(0.1, 0.9, max(2, len(runs))))
    for run, colour in zip(runs, colours, strict=False):
        values = [100 * dict(zip(grid.runs, grid.run_means, strict=True)).get(run, np.nan) for grid in grids]
        style: dict[str, Any] = {"color": colour, "label": f"fold {run[0]}, seed {run[1]}"}
        axes.plot(range(len(grids)), values, marker=".", linewidth=0.9, alpha=0.8, **style)
    intervals = [interval(grid) for grid in grids]
    means, low, high = (100 * np.array([getattr(i, key) for i in intervals]) for key in ("mean", "low", "high"))
    known = ~np.isnan(means)
    places = np.arange(len(grids))[known]
    lengths = _lengths(means, low, high)[:, known]
    axes.errorbar(places, means[known], lengths, color="black", linestyle="none", marker="_", markersize=12, capsize=3)
    axes.set_xticks(range(len(grids)), [short(init) for init in story.inits], rotation=35, ha="right")
    axes.set_xlim(-0.5, len(grids) - 0.5)


def draw_classes(results: ResultSet, story: Story, path: Path) -> Path:
    """Dice of each class and their average, one panel per fraction, with 95 % confidence intervals."""
    names: list[str | None] = [*story.classes, *([None] if len(story.classes) > 1 else [])]
    width = min(18.0, max(6.5, 1.5 + len(names) * (0.4 + 0.2 * len(story.inits))))
    turned = len(names) > 6
    figure = new_figure(width, (1.7 if turned else 0.6) + 2.7 * len(results.fractions))
    panels = figure.subplots(len(results.fractions), 1, sharex=True, squeeze=False)[:, 0]
    for axes, fraction in zip(panels, results.fractions, strict=True):
        _class_panel(axes, results, story, fraction, names)
        axes.set_title(f"{percent(fraction)}, {scans(results.training_cases(fraction))}", fontsize=10, loc="left")
        _finish(axes, "Dice, %")
    labels = [(name or "average").replace("_", " ") for name in names]
    panels[-1].set_xticks(range(len(names)), labels, rotation=40 if turned else 0, ha="right" if turned else "center")
    handles, texts = _unique_legend(list(panels))
    legend_above(figure, handles, texts)
    return save(figure, path)


def _class_panel(axes: Axes, results: ResultSet, story: Story, fraction: float, names: Sequence[str | None]) -> None:
    styles = looks(story.inits)
    step = min(0.16, 0.75 / len(story.inits))
    for number, init in enumerate(story.inits):
        if not results.rows(init, fraction):
            continue
        intervals = [_dice(results, init, fraction, name) for name in names]
        means, low, high = (100 * np.array([getattr(i, key) for i in intervals]) for key in ("mean", "low", "high"))
        places = np.arange(len(names)) + (number - (len(story.inits) - 1) / 2) * step
        style: dict[str, Any] = {"color": styles[init].colour, "marker": styles[init].marker, "label": init}
        axes.errorbar(places, means, _lengths(means, low, high), linestyle="none", capsize=3, markersize=4.5, **style)
    for place in range(1, len(names)):
        axes.axvline(place - 0.5, color="0.85", linewidth=0.8)
    axes.set_xlim(-0.6, len(names) - 0.4)


def _unique_legend(panels: Sequence[Axes]) -> tuple[list[Any], list[str]]:
    """Handles of all panels, each label once."""
    found: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)
