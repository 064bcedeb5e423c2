"""Reads the curves of a training from nnU-Net's logs."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from pretraining.comparison.errors import ComparisonError

_NUMBER = r"(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?|-?inf|nan)"
_LINE = re.compile(
    rf": (?:Epoch (?P<epoch>\d+)|(?P<loss>train_loss|val_loss) (?P<value>{_NUMBER})|"
    r"Pseudo dice \[(?P<dice>.*)\])\s*$"
)


@dataclass(frozen=True)
class Epoch:
    """What nnU-Net logs of an epoch; nan where it does not.

    Attributes:
        train_loss: Mean training loss.
        val_loss: Mean validation loss, of patches.
        dice: Pseudo Dice, of validation patches, averaged over the classes it is known for.
    """

    train_loss: float = math.nan
    val_loss: float = math.nan
    dice: float = math.nan


def read_training(log: Path) -> dict[int, Epoch]:
    """Read a training, with the sittings before it.

    nnU-Net starts a new ``training_log_*.txt`` each time it is started. All of them that lie beside the given one are
    read by name, that is by time; epochs that a later sitting has done again count as there.

    Raises:
        ComparisonError: The log cannot be read.
    """
    logs = sorted({*log.parent.glob("training_log_*.txt"), log}, key=lambda path: path.name)
    epochs: dict[int, Epoch] = {}
    for path in logs:
        try:
            sitting = _read_sitting(path.read_text(encoding="utf-8", errors="replace"))
        except OSError as error:
            raise ComparisonError(f"{path}: cannot be read ({error.strerror})") from error
        if sitting:
            epochs = {number: epoch for number, epoch in epochs.items() if number < min(sitting)} | sitting
    return epochs


def _read_sitting(text: str) -> dict[int, Epoch]:
    values: dict[int, dict[str, float]] = {}
    number: int | None = None
    for line in text.splitlines():
        match = _LINE.search(line)
        if match and match["epoch"]:
            number = int(match["epoch"])
        elif match and number is not None:
            name, value = ("dice", _mean(match["dice"])) if match["loss"] is None else (match["loss"], match["value"])
            values.setdefault(number, {})[name] = float(value)
    return {number: Epoch(**epoch) for number, epoch in values.items()}


def _mean(listed: str) -> float:
    """Mean of the numbers of a printed list; numpy 2 prints them as np.float32(0.5)."""
    numbers = [float(text) for text in re.findall(_NUMBER, re.sub(r"np\.float\d+", "", listed))]
    known = [number for number in numbers if not math.isnan(number)]
    return sum(known) / len(known) if known else math.nan
