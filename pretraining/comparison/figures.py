"""The figures of the results, and what all figures share: colours, legends, how they are saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from numpy.typing import NDArray

from nnunetv2_pgl.files import replacing
from nnunetv2_pgl.methods import METHODS
from nnunetv2_pgl.trainers.plans import RANDOM
from pretraining.comparison.results import fractions_of, select
from pretraining.comparison.statistics import Interval, case_scores, interval, run_means
from pretraining.comparison.study import Study

_FURTHER = ("#56b4e9", "#8b6d00", "#a5c400", "#332288", "#7f3c8d")  # no black, which stands for all of them
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_MAX_RUNS_IN_LEGEND = 15
_MAX_NAME_LENGTH = 28
_LETTER_INCHES, _HANDLE_INCHES = 0.085, 0.6  # in a legend


class Look(NamedTuple):
    """Colour and marker of an initialisation; markers distinguish curves in black and white too."""

    colour: str
    marker: str


def looks(inits: Sequence[str]) -> dict[str, Look]:
    """The same look for the same initialisation in all figures; those of a known method have it in all reports."""
    fixed = {RANDOM: "#6e6e6e"} | {name: method.colour for name, method in METHODS.items()}
    further = [init for init in inits if init not in fixed]
    colours = fixed | {init: _FURTHER[i % len(_FURTHER)] for i, init in enumerate(further)}
    return {init: Look(colours[init], _MARKERS[i % len(_MARKERS)]) for i, init in enumerate(inits)}


def percent(fraction: float) -> str:
    """A fraction in words."""
    return f"{100 * fraction:g} %"


def scans(results: pd.DataFrame, fraction: float) -> str:
    """Number of labelled scans of a fraction in words: one, or a range where the folds differ."""
    numbers = sorted(results.loc[results["fraction"] == fraction, "training_cases"].unique())
    if not numbers:
        return "no scans"
    span = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    return f"{span} scan{'' if span == '1' else 's'}"


def new_figure(width: float, height: float) -> Figure:
    """A figure drawn by Agg, without a window or pyplot's global state. Sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def legend_above(figure: Figure, handles: Sequence[Any] = ()) -> None:
    """A legend above the panels, in as many columns as there is room for; each label of the panels once."""
    unique: dict[str, Any] = {}
    for handle in handles or [handle for axes in figure.axes for handle in axes.get_legend_handles_labels()[0]]:
        unique.setdefault(handle.get_label(), handle)
    names = [_shortened(label) for label in unique]
    longest = max(map(len, names), default=1)
    columns = max(1, min(5, int(figure.get_figwidth() / (_LETTER_INCHES * longest + _HANDLE_INCHES))))
    figure.legend(list(unique.values()), names, loc="outside upper center", ncols=columns, frameon=False, fontsize=9)


def _shortened(name: str) -> str:
    """A name that has room in a figure: the middle of a long one is left out."""
    half = (_MAX_NAME_LENGTH - 1) // 2
    return name if len(name) <= _MAX_NAME_LENGTH else f"{name[:half]}\u2026{name[-half:]}"


def save(figure: Figure, path: Path) -> Path:
    """Writes a PNG, completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, shared=True) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
    return path


def draw_label_curve(results: pd.DataFrame, study: Study, path: Path) -> Path:
    """Average Dice by number of labelled scans, on a logarithmic scale, with its 95 % confidence interval."""
    figure = new_figure(7.5, 4.8)
    axes = figure.subplots()
    fractions = fractions_of(results)
    places = [float(results.loc[results["fraction"] == f, "training_cases"].unique().mean()) for f in fractions]
    for number, (init, look) in enumerate(looks(study.inits).items()):
        known = [
            (place, rows) for place, f in zip(places, fractions, strict=True) if len(rows := select(results, init, f))
        ]
        # Side by side, so that the bars do not hide each other.
        at = [place * 1.02 ** (number - (len(study.inits) - 1) / 2) for place, _ in known]
        intervals = [interval(run_means(case_scores(rows, "dice"))) for _, rows in known]
        means, low, high = _in_percent(intervals)
        axes.plot(at, means, color=look.colour, marker=look.marker, markersize=6, label=init)
        axes.fill_between(at, low, high, color=look.colour, alpha=0.13, linewidth=0)
        _draw_intervals(axes, at, intervals, color=look.colour, linewidth=0, elinewidth=1, capsize=2)
    gaps = np.diff(np.log(sorted(set(places))))
    crowded = len(gaps) and gaps.min() < 0.11 * (np.log(places[-1] / places[0]) + 0.6)  # texts would overlap
    texts = [f"{percent(f)}{', ' if crowded else chr(10)}{scans(results, f)}" for f in fractions]
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels(texts, rotation=60 if crowded else 0, ha="right" if crowded else "center")
    axes.set_xlim(places[0] * 0.75, places[-1] / 0.75)
    axes.set_xlabel("labelled training scans")
    axes.set_ylabel("average Dice, %")
    _finish(axes)
    legend_above(figure)
    return save(figure, path)


def draw_runs(results: pd.DataFrame, study: Study, path: Path) -> Path:
    """Average Dice of each run, less the baseline's where there is one: a line per fold and seed, a panel per fraction.

    The lines show what the intervals hide: whether the runs agree.
    """
    fractions = fractions_of(results)
    figure = new_figure(min(18.0, 1.5 + len(fractions) * max(2.5, 0.8 * len(study.inits))), 4.8)
    panels = figure.subplots(1, len(fractions), sharey=True, squeeze=False)[0]
    with_baseline = RANDOM in study.inits
    for axes, fraction in zip(panels, fractions, strict=True):
        scores = {init: case_scores(select(results, init, fraction), "dice") for init in study.inits}
        if with_baseline:
            scores = {init: values - scores[RANDOM] for init, values in scores.items()}
            axes.axhline(0, color="0.6", linewidth=0.8)
        means = pd.DataFrame({init: run_means(values) for init, values in scores.items()}).sort_index()  # a row per run
        colours = colormaps["viridis"](np.linspace(0.1, 0.9, max(2, len(means))))
        for ((fold, seed), values), colour in zip(means.iterrows(), colours, strict=False):
            style: dict[str, Any] = {"color": colour, "label": f"fold {fold}, seed {seed}"}
            axes.plot(range(len(values)), 100 * values, marker=".", linewidth=0.9, alpha=0.8, **style)
        known = [place for place, init in enumerate(means) if means[init].notna().any()]
        intervals = [interval(means.iloc[:, place].dropna()) for place in known]
        style = {"linestyle": "none", "marker": "_", "markersize": 12, "capsize": 3}
        _draw_intervals(axes, known, intervals, color="black", **style)
        axes.set_xticks(range(len(study.inits)), [_shortened(init) for init in means], rotation=35, ha="right")
        axes.set_xlim(-0.5, len(study.inits) - 0.5)
        _finish(axes, f"{percent(fraction)}, {scans(results, fraction)}")
    panels[0].set_ylabel(f"average Dice minus that of {RANDOM}, points" if with_baseline else "average Dice, %")
    if len(results[["fold", "seed"]].drop_duplicates()) <= _MAX_RUNS_IN_LEGEND:
        legend_above(figure)
    return save(figure, path)


def draw_classes(results: pd.DataFrame, study: Study, path: Path) -> Path:
    """Dice of each class and their average, one panel per fraction, with 95 % confidence intervals."""
    fractions = fractions_of(results)
    names: list[str | None] = [*study.classes, *([None] if len(study.classes) > 1 else [])]
    width = min(18.0, max(6.5, 1.5 + len(names) * (0.4 + 0.2 * len(study.inits))))
    slanted = len(names) > 6
    figure = new_figure(width, (1.7 if slanted else 0.6) + 2.7 * len(fractions))
    panels = figure.subplots(len(fractions), 1, sharex=True, squeeze=False)[:, 0]
    step = min(0.16, 0.75 / len(study.inits))
    for axes, fraction in zip(panels, fractions, strict=True):
        for number, (init, look) in enumerate(looks(study.inits).items()):
            rows = select(results, init, fraction)
            if rows.empty:
                continue
            intervals = [interval(run_means(case_scores(rows, "dice", name))) for name in names]
            places = np.arange(len(names)) + (number - (len(study.inits) - 1) / 2) * step
            style: dict[str, Any] = {"color": look.colour, "marker": look.marker, "label": init}
            _draw_intervals(axes, places, intervals, linestyle="none", capsize=3, markersize=4.5, **style)
        for place in range(1, len(names)):
            axes.axvline(place - 0.5, color="0.85", linewidth=0.8)
        axes.set_xlim(-0.6, len(names) - 0.4)
        axes.set_ylabel("Dice, %")
        _finish(axes, f"{percent(fraction)}, {scans(results, fraction)}")
    labels = [(name or "average").replace("_", " ") for name in names]
    side = "right" if slanted else "center"
    panels[-1].set_xticks(range(len(names)), labels, rotation=40 if slanted else 0, ha=side)
    legend_above(figure)
    return save(figure, path)


def _in_percent(intervals: Sequence[Interval]) -> NDArray[Any]:
    """Means, lower and upper limits, (3, n)."""
    return 100 * np.array(intervals).reshape(-1, 3).T


def _draw_intervals(axes: Axes, places: Any, intervals: Sequence[Interval], **style: Any) -> None:
    """Draws means with error bars; no bar where there is no interval."""
    means, low, high = _in_percent(intervals)
    axes.errorbar(places, means, np.nan_to_num(np.stack([means - low, high - means])), **style)


def _finish(axes: Axes, title: str = "") -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(alpha=0.3, axis="y")
    axes.spines[["top", "right"]].set_visible(False)
