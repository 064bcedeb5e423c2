"""What a run leaves to look at: the console, a log file, one JSON line per epoch, and curves."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLLAPSE_BELOW = 0.1


class RunLog:
    """Prints lines with nnU-Net's time stamps and appends them to the run's ``training_log_*.txt``.

    Args:
        folder: The run folder; None on processes that stay silent.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.file = None if folder is None else folder / f"training_log_{datetime.now():%Y_%m_%d_%H_%M_%S}.txt"

    def __call__(self, *lines: str) -> None:
        """Writes lines to console and file."""
        if self.file is None:
            return
        for line in lines:
            stamped = f"{datetime.now()}: {line}" if line else ""
            print(stamped, flush=True)
            with open(self.file, "a", encoding="utf-8") as file:
                file.write(stamped + "\n")


def epoch_lines(record: dict[str, Any], seconds_left: float) -> list[str]:
    """An epoch's record in words."""
    lines = [
        "",
        f"Epoch {record['epoch']}",
        f"Current learning rate: {record['learning_rate']:.5f}, tau: {record['tau']:.5f}",
        f"train_loss {record['loss']:.4f}",
        f"feature_std {record['feature_std']:.3f} (1: spread out, 0: collapsed), of which between the places of a view "
        f"{record['within_views']:.0%}; aligned points between cell centres {record['interpolated']:.0%}",
    ]
    if record["feature_std"] < COLLAPSE_BELOW:
        lines.append(
            f"WARNING: the features have collapsed (feature_std below {COLLAPSE_BELOW}): all scans and places look "
            "alike and the loss says nothing. Lower -lr, raise -b, or try another -optimizer."
        )
    elif record["within_views"] < COLLAPSE_BELOW:
        lines.append(
            f"WARNING: the features tell scans apart but not places (less than {COLLAPSE_BELOW:.0%} of their variance "
            "lies within a view). Early in a run this passes; if it stays, raise -b or -lr, or try another -optimizer."
        )
    if "correspondence" in record:
        lines.append(
            f"correspondence {record['correspondence']:.1%} right (chance {record['chance']:.1%}), the others "
            f"{record['miss_distance']:.1f} voxels away"
        )
    lines.append(
        f"Epoch time: {record['seconds']:.2f} s, {record['scans_per_second']:.2f} scans/s, "
        f"{record['views_per_second']:.2f} views/s, waiting for data {record['waiting']:.0%}, "
        f"time left {timedelta(seconds=round(seconds_left))}"
    )
    return lines


def write_metrics(history: Sequence[dict[str, Any]], path: Path) -> None:
    """One JSON line per epoch, replaced as a whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(json.dumps(record) + "\n" for record in history))
    os.replace(temporary, path)


def plot_progress(history: Sequence[dict[str, Any]], baseline: dict[str, float] | None, path: Path) -> None:
    """Curves of loss, correspondence, feature spread, learning rate with tau, and speed."""
    figure = Figure(figsize=(11, 13), layout="constrained")
    FigureCanvasAgg(figure)
    top, middle, spread, rate, speed = figure.subplots(5, 1, sharex=True, height_ratios=(2, 2, 1, 1, 1))
    epochs = [record["epoch"] for record in history]

    def curve(axes: Any, key: str, label: str, **style: Any) -> None:
        known = [(record["epoch"], record[key]) for record in history if key in record]
        if known:
            axes.plot(*zip(*known, strict=True), label=label, marker="." if len(known) < 40 else None, **style)

    curve(top, "loss", "training loss (both directions; 0 to 8)", color="tab:blue")
    curve(middle, "correspondence", "held-out cells that find their place", color="tab:green")
    curve(middle, "chance", "chance", color="tab:gray", linestyle=":")
    if baseline:
        middle.axhline(baseline["correspondence"], color="tab:orange", linestyle="--", label="before training")
    middle.set_ylim(0, None)
    miss = middle.twinx()
    curve(miss, "miss_distance", "distance of the others [voxels]", color="tab:red", linestyle="-", alpha=0.6)
    miss.set_ylim(0, None)
    miss.set_ylabel("voxels")
    miss.legend(loc="lower right")
    curve(spread, "feature_std", "feature spread (1: even, 0: collapsed)", color="tab:purple")
    curve(spread, "within_views", "share of it between places of a view", color="tab:olive")
    spread.axhline(COLLAPSE_BELOW, color="tab:gray", linestyle=":")
    spread.set_ylim(0, None)
    curve(rate, "learning_rate", "learning rate", color="tab:brown")
    decay = rate.twinx()
    curve(decay, "tau", "tau", color="tab:pink")
    decay.legend(loc="lower right")
    curve(speed, "views_per_second", "views per second", color="black")
    speed.set_ylim(0, None)
    for axes, name in ((top, "loss"), (middle, "share"), (spread, "spread"), (rate, "rate"), (speed, "views/s")):
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
        axes.legend(loc="upper right" if axes is not middle else "upper left")
    speed.set_xlabel("epoch")
    if epochs:
        speed.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    temporary = path.with_name(f".{path.stem}.tmp.png")
    figure.savefig(temporary, dpi=100)
    os.replace(temporary, path)
