"""docs/performance.md promises no less memory than a step takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.memory import BATCHES, GIB, SETTINGS, peak_of_step

PAGE = (Path(__file__).parents[2] / "docs" / "performance.md").read_text()
HEAD = "| pairs per step (`-b`) |"


def table() -> dict[str, list[float]]:
    """The figures of each row of the table."""
    lines = PAGE[PAGE.index(HEAD) :].split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (lines[0], *lines[2:])]
    return {name: [float(cell) for cell in cells] for name, *cells in rows}


@pytest.mark.parametrize(("name", "row"), [("recommended", "recommended settings"), ("--paper", "`--paper`")])
def test_the_figures_are_those_of_a_step(name: str, row: str) -> None:
    batches, figures = table()["pairs per step (`-b`)"], table()[row]
    assert batches == list(BATCHES)
    for place in (0, -1):
        peak = peak_of_step(replace(SETTINGS[name], batch_size=BATCHES[place])) / GIB
        assert peak <= figures[place] <= peak + 0.11, f"{peak:.2f} GiB"
