"""The curves of the trainings: read from nnU-Net's logs, and drawn."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from nnunetv2_pgl.errors import PGLError
from pretraining.comparison.figures import legend_above, looks, new_figure, percent, save
from pretraining.comparison.study import Study

_NUMBER = r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?|-?inf|nan"
_LINE = re.compile(rf": (?:(Epoch) (\d+)|(train_loss|val_loss) ({_NUMBER})|(Pseudo dice) \[(.*)\])\s*$", re.MULTILINE)


def read_training(log: Path) -> pd.DataFrame:
    """Reads the log of a training and those of its earlier starts, which lie beside it and are sorted by time.

    nnU-Net writes a new ``training_log_*.txt`` at each start. Epochs that a later start has repeated count as there.

    Returns:
        By epoch: ``train_loss`` and ``val_loss``, means over patches, and ``dice``, the pseudo Dice of validation
        patches averaged over the classes it is known for; nan where nnU-Net logs none.

    Raises:
        PGLError: The log cannot be read.
    """
    logs = sorted({*log.parent.glob("training_log_*.txt"), log}, key=lambda path: path.name)
    epochs: dict[int, dict[str, float]] = {}
    for path in logs:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise PGLError(f"{path}: cannot be read ({error.strerror})") from error
        found: dict[int, dict[str, float]] = {}
        number: int | None = None
        for match in _LINE.finditer(text):
            name, value = (group for group in match.groups() if group is not None)
            if name == "Epoch":
                number = int(value)
            elif number is not None:
                # numpy 2 prints the numbers of a list as np.float32(0.5).
                values = pd.Series(re.findall(_NUMBER, re.sub(r"np\.float\d+", "", value)), dtype=float)
                found.setdefault(number, {})["dice" if name == "Pseudo dice" else name] = values.mean()
        epochs = {number: epoch for number, epoch in epochs.items() if number < min(found, default=np.inf)} | found
    columns = ["train_loss", "val_loss", "dice"]
    return pd.DataFrame(list(epochs.values()), index=list(epochs), columns=columns, dtype=float)


def draw_training(study: Study, path: Path) -> Path | None:
    """Loss and pseudo Dice by epoch, means over folds and seeds, one column per fraction.

    Returns:
        The file; None if no run has a log with an epoch in it.
    """
    logs = [(run.init, run.fraction, read_training(run.training_log)) for run in study.runs if run.training_log]
    logs = [(init, fraction, epochs) for init, fraction, epochs in logs if not epochs.empty]
    if not logs:
        return None
    fractions = sorted({fraction for _, fraction, _ in logs})
    figure = new_figure(min(18.0, 2.0 + 4.0 * len(fractions)), 6.4)
    panels = figure.subplots(2, len(fractions), sharex="col", sharey="row", squeeze=False)
    for (losses, dice), fraction in zip(panels.T, fractions, strict=True):
        losses.set_title(percent(fraction), fontsize=10)
        dice.set_xlabel("epoch")
        for init, look in looks(study.inits).items():
            runs = [epochs for of_init, of_fraction, epochs in logs if (of_init, of_fraction) == (init, fraction)]
            if not runs:
                continue
            means = pd.concat(runs).groupby(level=0).mean()  # over the runs that have the epoch
            style: dict[str, Any] = {"color": look.colour, "linewidth": 1.3, "marker": "." if len(means) < 25 else None}
            losses.plot(means.index, means["train_loss"], "-", **style)
            losses.plot(means.index, means["val_loss"], "--", **style)
            dice.plot(means.index, means["dice"], "-", **style)
    _set_limits(panels, pd.concat([epochs for _, _, epochs in logs]))
    drawn = {init: look.colour for init, look in looks(study.inits).items() if init in {log[0] for log in logs}}
    handles = [Line2D([], [], color=colour, label=init) for init, colour in drawn.items()]
    handles.append(Line2D([], [], color="black", linestyle="-", label="training"))
    handles.append(Line2D([], [], color="black", linestyle="--", label="validation"))
    legend_above(figure, handles)
    return save(figure, path)


def _set_limits(panels: Any, epochs: pd.DataFrame) -> None:
    """Limits the losses to all training losses and nearly all validation losses, and finishes the panels.

    Validation losses of the first epochs can be a hundred times the others.
    """
    finite = epochs.where(np.isfinite(epochs))
    top = np.nanmax([finite["train_loss"].max(), finite["val_loss"].quantile(0.9), -np.inf])
    low = min((axes.dataLim.y0 for axes in panels[0] if np.isfinite(axes.dataLim.y0)), default=0.0)
    if np.isfinite(top) and top > low:
        panels[0, 0].set_ylim(low - 0.05 * (top - low), top + 0.1 * (top - low))
    panels[1, 0].set_ylim(-0.02, 1.02)
    panels[0, 0].set_ylabel("loss")
    panels[1, 0].set_ylabel("pseudo Dice")
    for axes in panels.flat:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
