"""Reads the Dice of the test scans from the summary that nnU-Net's evaluation writes."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from pretraining.demo.organs import LABELS


def _mean(values: list[float]) -> float:
    """The mean of the numbers among the values; nan if there are none."""
    numbers = [value for value in values if not math.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else math.nan


@dataclass(frozen=True)
class CaseResult:
    """One test scan.

    Attributes:
        case: Its name, without folder and file ending.
        dice: Dice of each organ, in the order of ``LABELS``; nan where neither truth nor prediction has it.
    """

    case: str
    dice: dict[str, float]

    @property
    def mean_dice(self) -> float:
        """Mean over the organs."""
        return _mean(list(self.dice.values()))


def read_results(summary: Path, file_ending: str) -> list[CaseResult]:
    """Read a summary.json of nnUNetv2_evaluate_folder.

    Args:
        summary: The file.
        file_ending: That of the segmentations, to cut off.

    Returns:
        All cases, the worst mean Dice first.
    """
    cases = json.loads(summary.read_text(encoding="utf-8"))["metric_per_case"]
    results = [
        CaseResult(
            case=Path(case["prediction_file"]).name.removesuffix(file_ending),
            dice={organ: float(case["metrics"][str(label)]["Dice"]) for organ, label in LABELS.items()},
        )
        for case in cases
    ]
    return sorted(results, key=lambda result: result.mean_dice)


def dice_table(results: list[CaseResult]) -> str:
    """A table of the Dice: one line for each organ with mean, worst and best case, and the mean over organs."""
    lines = [f"{'Dice':<14}{'mean':>7}{'worst':>7}{'best':>7}"]
    rows = {organ: [result.dice[organ] for result in results] for organ in LABELS}
    rows["mean"] = [result.mean_dice for result in results]
    for name, values in rows.items():
        numbers = [value for value in values if not math.isnan(value)] or [math.nan]
        lines.append(f"{name.replace('_', ' '):<14}{_mean(values):7.3f}{min(numbers):7.3f}{max(numbers):7.3f}")
    return "\n".join(lines)
