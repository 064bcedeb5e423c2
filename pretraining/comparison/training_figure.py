"""The figure of the trainings' curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pretraining.comparison.appearance import legend_above, looks, new_figure, percent, save
from pretraining.comparison.statistics import mean_of_known
from pretraining.comparison.story import RunRecord, Story
from pretraining.comparison.training_logs import Epoch, read_training

Curves = Mapping[int, Epoch]


def draw_training(story: Story, path: Path) -> Path | None:
    """Loss and pseudo Dice by epoch, means over folds and seeds, one column per fraction.

    Returns:
        The file; None if no run has a log with an epoch in it.
    """
    logs = [(run, read_training(run.training_log)) for run in story.runs if run.training_log is not None]
    logs = [(run, epochs) for run, epochs in logs if epochs]
    if not logs:
        return None
    fractions = sorted({run.fraction for run, _ in logs})
    figure = new_figure(min(18.0, 2.0 + 4.0 * len(fractions)), 6.4)
    panels = figure.subplots(2, len(fractions), sharex="col", sharey="row", squeeze=False)
    for column, fraction in enumerate(fractions):
        panels[0, column].set_title(percent(fraction), fontsize=10)
        panels[1, column].set_xlabel("epoch")
        _draw_fraction(list(panels[:, column]), logs, fraction, story)
    _finish(panels, _outliers_above([epochs for _, epochs in logs]))
    _legend(figure, [init for init in story.inits if any(run.init == init for run, _ in logs)], story)
    return save(figure, path)


def _draw_fraction(
    panels: Sequence[Axes], logs: Sequence[tuple[RunRecord, Curves]], fraction: float, story: Story
) -> None:
    for init in story.inits:
        runs = [epochs for run, epochs in logs if (run.init, run.fraction) == (init, fraction)]
        numbers = sorted({number for epochs in runs for number in epochs})
        style: dict[str, Any] = {"color": looks(story.inits)[init].colour, "linewidth": 1.3}
        style["marker"] = "." if len(numbers) < 25 else None
        for name, axes, dashes in (("train_loss", 0, "-"), ("val_loss", 0, "--"), ("dice", 1, "-")):
            panels[axes].plot(numbers, [_mean(runs, number, name) for number in numbers], dashes, **style)


def _mean(runs: Sequence[Curves], number: int, name: str) -> float:
    """Mean over the runs that have the epoch."""
    return float(mean_of_known(np.array([getattr(epochs[number], name) for epochs in runs if number in epochs])))


def _outliers_above(runs: Sequence[Curves]) -> float:
    """A limit for the losses: above all training losses, and above nearly all validation losses.

    Validation losses of the first epochs can be a hundred times the others.
    """
    train, val = (
        np.array([getattr(epoch, name) for epochs in runs for epoch in epochs.values()])
        for name in ("train_loss", "val_loss")
    )
    known = [values[np.isfinite(values)] for values in (train, val)]
    tops = [np.max(known[0], initial=-np.inf), np.percentile(known[1], 90) if len(known[1]) else -np.inf]
    return float(max(tops))


def _finish(panels: Any, top: float) -> None:
    low = min((axes.dataLim.y0 for axes in panels[0] if np.isfinite(axes.dataLim.y0)), default=0.0)
    if np.isfinite(top) and top > low:
        panels[0, 0].set_ylim(low - 0.05 * (top - low), top + 0.1 * (top - low))
    panels[1, 0].set_ylim(-0.02, 1.02)
    panels[0, 0].set_ylabel("loss")
    panels[1, 0].set_ylabel("pseudo Dice")
    for axes in panels.flat:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, inits: Sequence[str], story: Story) -> None:
    handles = [Line2D([], [], color=looks(story.inits)[init].colour, label=init) for init in inits]
    handles += [Line2D([], [], color="black", linestyle="-", label="training")]
    handles += [Line2D([], [], color="black", linestyle="--", label="validation")]
    legend_above(figure, handles, [str(handle.get_label()) for handle in handles])
