"""What a run reports: the console and a log file, one JSON line per epoch, and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunetv2_pgl.files import replacing
from nnunetv2_pgl.methods import MEASURES, METHODS
from pretraining.objectives import target_decay
from pretraining.settings.config import PretrainConfig
from pretraining.training.state import TrainingState

COLLAPSE_BELOW = 0.1


class RunLog:
    """Prints lines with nnU-Net's time stamps and appends them to the run's ``training_log_*.txt``.

    Args:
        folder: The run folder; None in processes that print nothing.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.file = None if folder is None else folder / f"training_log_{datetime.now():%Y_%m_%d_%H_%M_%S}.txt"

    def __call__(self, *lines: str) -> None:
        """Writes lines to console and file.

        Raises:
            OSError: If the file cannot be written.
        """
        if self.file is None:
            return
        for line in lines:
            stamped = f"{datetime.now()}: {line}" if line else ""
            print(stamped, flush=True)
            append_text(self.file, stamped + "\n")


def epoch_record(state: TrainingState, config: PretrainConfig, means: dict[str, float]) -> dict[str, Any]:
    """The line of an epoch in ``metrics.jsonl``, without a correspondence.

    Args:
        state: After the epoch's last step, which its ``so_far`` counts.
        config: Settings of the run.
        means: What the method measures, averaged over the steps of the epoch and all processes.
    """
    seconds, pairs = state.so_far.seconds, state.steps_per_epoch * config.batch_size
    tau = target_decay(state.step - 1, state.steps_per_epoch * config.epochs, config.target_decay)
    return {
        "epoch": state.epoch,
        **means,
        "learning_rate": state.optimizer.param_groups[0]["lr"],
        **({"tau": tau} if METHODS[config.method].has_target else {}),
        "seconds": seconds,
        "scans_per_second": pairs / seconds,
        "views_per_second": 2 * pairs / seconds,
        "waiting": state.so_far.waited / seconds,
    }


def epoch_lines(record: dict[str, Any], seconds_left: float) -> list[str]:
    """An epoch's record for the log, with the warnings that follow from it."""
    tau = f", tau: {record['tau']:.5f}" if "tau" in record else ""
    lines = [
        "",
        f"Epoch {record['epoch']}",
        f"Current learning rate: {record['learning_rate']:.5f}{tau}",
        f"train_loss {record['loss']:.4f}",
    ]
    if measured := ", ".join(text.format(record[key]) for key, text in MEASURES.items() if key in record):
        lines.append(measured)
    if record.get("feature_std", 1.0) < COLLAPSE_BELOW:
        lines.append(
            f"WARNING: the features have collapsed (feature_std below {COLLAPSE_BELOW}): all scans and places look "
            "alike and the loss says nothing. Lower -lr, raise -b, or try another -optimizer."
        )
    elif record.get("within_views", 1.0) < COLLAPSE_BELOW:
        lines.append(
            f"WARNING: the features tell scans apart but not places (less than {COLLAPSE_BELOW:.0%} of their "
            "variance lies within a view). Early in a run this passes; if it stays, raise -b or -lr, or try another "
            "-optimizer."
        )
    return [
        *lines,
        *correspondence_lines(record),
        f"Epoch time: {record['seconds']:.2f} s, {record['scans_per_second']:.2f} scans/s, "
        f"{record['views_per_second']:.2f} views/s, waiting for data {record['waiting']:.0%}, "
        f"time left {timedelta(seconds=round(seconds_left))}",
    ]


def correspondence_lines(record: Mapping[str, float]) -> list[str]:
    """A record's correspondence for the log; nothing of records of earlier versions."""
    lines = []
    if "flipped_right" in record:
        lines.append(
            f"flipped pairs: {record['flipped_right']:.1%} of cells matched to the right location (position-only "
            f"baseline {record['position_code']:.1%}, upper bound {record['ceiling']:.1%}), {record['decoy']:.1%} to "
            "the same position in the view"
        )
    if "unflipped_right" in record:
        lines.append(
            f"pairs without a flip: {record['unflipped_right']:.1%} (position-only baseline "
            f"{record['unflipped_position_code']:.1%}, upper bound {record['unflipped_ceiling']:.1%})"
        )
    return lines


def append_text(path: Path, text: str) -> None:
    """Adds to a text file.

    Raises:
        OSError: If the file cannot be written; the message names it.
    """
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise OSError(f"could not write {path}: {error.strerror or error}") from error


def plot_progress(history: Sequence[dict[str, Any]], baseline: dict[str, float] | None, path: Path) -> None:
    """Curves of loss, correspondence, feature spread, learning rate with tau, and speed."""
    figure = Figure(figsize=(13, 12), layout="constrained")
    FigureCanvasAgg(figure)
    loss, share, spread, rate, speed = figure.subplots(5, 1, sharex=True, height_ratios=(2, 2, 1, 1, 1))
    miss, decay = share.twinx(), rate.twinx()

    def curve(axes: Any, key: str, label: str, color: str, **style: Any) -> None:
        known = [(record["epoch"], record[key]) for record in history if key in record]
        if known:
            marker = "." if len(known) < 40 else None
            axes.plot(*zip(*known, strict=True), label=label, color=color, marker=marker, **style)

    curve(loss, "loss", "training loss", "tab:blue")
    curve(share, "flipped_right", "flipped pairs: cells matched\nto the right location", "tab:green")
    curve(share, "ceiling", "upper bound", "tab:green", linestyle=":")
    curve(share, "decoy", "to the same position\nin the view instead", "tab:red")
    curve(share, "unflipped_right", "pairs without a flip", "tab:blue")
    curve(share, "unflipped_position_code", "position-only baseline", "tab:blue", linestyle=":")
    curve(share, "correspondence", "all pairs\n(version 0.1.0)", "tab:cyan")
    if baseline and "flipped_right" in baseline:
        share.axhline(baseline["flipped_right"], color="tab:orange", linestyle="--", label="before training")
    curve(miss, "miss_distance", "distance of the others", "tab:gray", alpha=0.5)
    curve(spread, "feature_std", "feature spread\n(1: even, 0: collapsed)", "tab:purple")
    curve(spread, "within_views", "share of it between\npositions within a view", "tab:olive")
    spread.axhline(COLLAPSE_BELOW, color="tab:gray", linestyle=":")
    curve(rate, "learning_rate", "learning rate", "tab:brown")
    curve(decay, "tau", "tau", "tab:pink")
    curve(speed, "views_per_second", "views per second", "black")

    panels = ((loss, "loss"), (share, "share"), (miss, "voxels"), (spread, "spread"), (rate, "rate"), (decay, "tau"))
    for axes, name in (*panels, (speed, "views/s")):
        axes.set_ylabel(name)
    for axes in (share, miss, spread, speed):
        axes.set_ylim(0, None)
    for axes, twins in ((loss, ()), (share, (miss,)), (spread, ()), (rate, (decay,)), (speed, ())):
        axes.grid(alpha=0.3)
        handles, labels = axes.get_legend_handles_labels()
        for twin in twins:
            more_handles, more_labels = twin.get_legend_handles_labels()
            handles, labels = handles + more_handles, labels + more_labels
        axes.legend(handles, labels, loc="center left", bbox_to_anchor=(1.1, 0.5), fontsize=9, frameon=False)
    speed.set_xlabel("epoch")
    if history:
        speed.set_xlim(history[0]["epoch"] - 0.5, history[-1]["epoch"] + 0.5)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
