"""What the parts of the benchmark share: settings, figures, and how they are printed and kept."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch


@dataclass(frozen=True)
class Settings:
    """What a part is given.

    Attributes:
        device: Where the networks run.
        folder: Scratch folder of this run, deleted at its end.
        quick: Run on small inputs, to see that everything works; the figures mean nothing.
        batch: Pairs per step; None lets the part choose.
        seconds: How long a part may take, for those that measure again as long as there is time; None: as they like.
    """

    device: torch.device
    folder: Path
    quick: bool = False
    batch: int | None = None
    seconds: float | None = None

    def share(self, part: float) -> float | None:
        """Seconds of a part of the time, from 0 to 1."""
        return None if self.seconds is None else part * self.seconds


@dataclass(frozen=True)
class Figure:
    """One measured value.

    Attributes:
        key: Its name in the JSON file.
        value: In ``unit``.
        unit: "" for a ratio.
        meaning: What was measured, in words.
        goal: What it should be, such as "<= 1.10"; "" if it only informs.
    """

    key: str
    value: float
    unit: str
    meaning: str
    goal: str = ""

    @property
    def meets_goal(self) -> bool | None:
        """Whether the goal is met; None without one."""
        if not self.goal:
            return None
        relation, bound = self.goal.split()
        return {"<=": self.value <= float(bound), ">=": self.value >= float(bound)}[relation]


def synchronise(device: torch.device) -> None:
    """Waits until the device has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alternating(
    functions: dict[str, Callable[[], object]],
    rounds: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    limit: float | None = None,
) -> dict[str, list[float]]:
    """Seconds of each call, the functions taking turns, so that a slow spell of the machine meets all of them.

    After ``limit`` seconds, warm-up included, no other round begins; one is made in any case.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    begin = time.monotonic()
    for round_number in range(warmup + rounds):
        if round_number > warmup and limit is not None and time.monotonic() - begin > limit:
            break
        for name, function in functions.items():
            started = clock()
            function()
            if round_number >= warmup:
                seconds[name].append(clock() - started)
    return seconds


def paired_ratio(seconds: dict[str, list[float]], numerator: str, denominator: str) -> float:
    """Median of the ratios of two functions that took turns."""
    pairs = zip(seconds[numerator], seconds[denominator], strict=True)
    return median(one / other for one, other in pairs)


def machine(device: torch.device) -> dict[str, str]:
    """The hardware and software that figures belong to."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "date": date.today().isoformat(),
        "device": name,
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def print_table(figures: Sequence[Figure]) -> None:
    """One line per figure, with its goal."""
    for figure in figures:
        print(table_line(figure), flush=True)


def table_line(figure: Figure) -> str:
    """Key, value, goal, whether it is met, and meaning."""
    verdict = {True: "met", False: "MISSED", None: ""}[figure.meets_goal]
    value = f"{figure.value:,.4g} {figure.unit}".strip()
    return f"{figure.key:36s} {value:>18s}  {figure.goal:10s} {verdict:7s} {figure.meaning}"


def write_json(
    figures: Sequence[Figure], about: dict[str, str], path: Path, errors: dict[str, str] | None = None
) -> None:
    """A flat object: each figure by its key, ``machine``, and, if given, ``errors`` by the part that has failed."""
    content: dict[str, Any] = {figure.key: figure.value for figure in figures} | {"machine": about}
    if errors is not None:
        content["errors"] = errors
    path.write_text(json.dumps(content, indent=1) + "\n")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
