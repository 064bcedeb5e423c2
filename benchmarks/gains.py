"""The figure and the tables of docs/results/README.md: what each start gains over random weights, in which comparison.

python -m benchmarks.gains

Reads the tables of all runs that the result pages keep, compares the runs of one seed and fold with each other, and
takes means and 95 % confidence intervals over them, as `pgl_compare` does. Starts with fewer than three runs, as in a
comparison in progress, are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from pretraining.comparison.figures import looks, new_figure, save
from pretraining.comparison.results import read_results
from pretraining.comparison.statistics import MIN_RUNS, RunTest, case_scores, holm, run_test

RESULTS = Path(__file__).parents[1] / "docs" / "results"
BASELINE = "random"
RECOMMENDED = "pgl_nce"
FRACTION = 0.2  # of the labels, which all comparisons have; the pages have the others


@dataclass(frozen=True)
class Source:
    """A comparison.

    Attributes:
        title: Data, network and length in words.
        page: The page that describes it, below docs/results.
        table: Its runs: results.csv of `pgl_compare`, or a table with the mean Dice of each run.
        fraction: Of a table of means, which does not say it.
    """

    title: str
    page: str
    table: str
    fraction: float = 0.2


SOURCES = (
    Source("Head-and-neck CT (OpenKBP), ResNet-50, 360 steps", "openkbp.md", "openkbp/results.csv"),
    Source("Head-and-neck CT (OpenKBP), ResEnc-M, 360 steps", "openkbp.md", "openkbp_resenc/results.csv"),
    Source("Hippocampus MRI, ResNet-50, 360 steps", "hippocampus.md", "hippocampus/results.csv"),
    Source("Hippocampus MRI, ResNet-50, 360 steps", "hippocampus.md", "hippocampus_5pct/results.csv"),
    Source("Head-and-neck CT (OpenKBP), ResNet-50, 300 steps", "anatomy.md", "anatomy/openkbp_fine_tuning.csv"),
    Source("Hippocampus MRI, ResNet-50, 150 steps", "anatomy.md", "anatomy/hippocampus_fine_tuning.csv"),
    Source("Hippocampus MRI, ResNet-50, 150 steps, 0.1.0", "hippocampus_0.1.0.md", "hippocampus_0.1.0/results.csv"),
    Source("Hippocampus MRI, ResEnc-M, 150 steps, 0.1.0", "resenc_hippocampus.md", "resenc_hippocampus/results.csv"),
    Source("Generated torso CT, ResNet-50, 300 steps, 0.1.0", "torso.md", "torso/results.csv"),
)


@dataclass(frozen=True)
class Gain:
    """A start against random weights in one comparison."""

    source: Source
    test: RunTest

    @property
    def place(self) -> str:
        """Comparison and share of the labels, in words."""
        return f"{self.source.title}, {100 * self.test.fraction:g} % of the labels, {len(self.test.runs)} runs"


def main() -> None:
    """Entry point."""
    there = [source for source in SOURCES if (RESULTS / source.table).is_file()]
    found = [gain for source in there for gain in gains(source) if gain.test.fraction == FRACTION]
    found = [gain for gain in found if len(gain.test.runs) >= MIN_RUNS]
    print("| comparison | start | gain, Dice points | runs above | page |\n|---|---|---|---|---|")
    for gain in found:
        test = gain.test
        print(
            f"| {gain.place} | `{test.init}` | {_points(test)} | {test.above} of {len(test.runs)} | "
            f"[{gain.source.page}]({gain.source.page}) |"
        )
    print_recommended(there)
    draw(found, RESULTS / "gains.png")


def print_recommended(sources: Sequence[Source]) -> None:
    """Recommended settings against random weights; p after Holm over the tests of a comparison, and over a page's."""
    found = [(source, test) for source in sources for test in tests_of(source, RECOMMENDED)]
    table = pd.DataFrame(
        [(source.table, source.page, test.p) for source, test in found], columns=["table", "page", "p"]
    )
    corrected = [table.groupby(group)["p"].transform(holm) for group in ("table", "page")]
    print("\n| comparison | gain | runs above | p in its comparison | p of its page |\n|---|---|---|---|---|")
    for (source, test), *p in zip(found, *corrected, strict=True):
        if test.init == BASELINE:
            print(
                f"| {Gain(source, test).place} | {_points(test)} | {test.above} of {len(test.runs)} | {p[0]:.3f} | "
                f"{p[1]:.3f} |"
            )


def tests_of(source: Source, init: str) -> Iterator[RunTest]:
    """An init against each other one, at each fraction that has it."""
    scores = _scores(source)
    for (other, fraction), of_other in scores.items():
        if other != init and (init, fraction) in scores:
            yield run_test(other, fraction, scores[init, fraction] - of_other)


def gains(source: Source) -> Iterator[Gain]:
    """Of all starts of a comparison, by fraction, the smallest first."""
    scores = _scores(source)
    for (init, fraction), of_init in scores.items():
        if init != BASELINE:
            yield Gain(source, run_test(init, fraction, of_init - scores[BASELINE, fraction]))


def _scores(source: Source) -> dict[tuple[str, float], pd.DataFrame]:
    """Average Dice, 0 to 1, by start and fraction, of each run and case."""
    table = RESULTS / source.table
    if "mean" not in pd.read_csv(table, nrows=0):
        cells = read_results(table).groupby(["init", "fraction"], sort=False)
        return {cell: case_scores(rows, "dice") for cell, rows in sorted(cells, key=lambda item: item[0][1])}
    means = pd.read_csv(table).query("segmenter_padding == 'zeros'").assign(fold=0, case="all")
    means["dice"] = means["mean"] / 100
    return {(init, source.fraction): case_scores(rows, "dice") for init, rows in means.groupby("init", sort=False)}


def _points(test: RunTest) -> str:
    return f"{100 * test.interval.mean:+.1f} [{100 * test.interval.low:+.1f}, {100 * test.interval.high:+.1f}]"


def draw(found: list[Gain], path: Path) -> Path:
    """Means, intervals and single runs, a block for each comparison and fraction."""
    places = list(dict.fromkeys(gain.place for gain in found))
    figure = new_figure(8.5, 1.2 + 0.22 * len(found) + 0.3 * len(places))
    axes = figure.subplots()
    names = list(dict.fromkeys(gain.test.init for gain in found))
    row, ticks = 0.0, []
    for place in places:
        axes.text(0.0, row, place, transform=axes.get_yaxis_transform(), fontsize=8, weight="bold", va="center")
        row += 1.1
        for gain in (gain for gain in found if gain.place == place):
            _draw_gain(axes, gain.test, row, looks(names)[gain.test.init].colour)
            ticks.append((row, gain.test.init))
            row += 1
        row += 0.5
    axes.axvline(0, color="0.5", linewidth=0.8)
    axes.set_yticks([place for place, _ in ticks], [name for _, name in ticks], fontsize=8)
    axes.set_ylim(row, -0.8)
    axes.set_xlabel("average Dice minus that of random weights, points; dots: runs; bars: 95 % intervals over runs")
    axes.grid(alpha=0.3, axis="x")
    axes.spines[["top", "right", "left"]].set_visible(False)
    return save(figure, path)


def _draw_gain(axes: Axes, test: RunTest, row: float, colour: str) -> None:
    mean, low, high = (100 * value for value in (test.interval.mean, test.interval.low, test.interval.high))
    axes.plot([low, high], [row, row], color=colour, linewidth=2.2, solid_capstyle="butt")
    axes.plot(
        [100 * value for value in test.differences], [row - 0.3] * len(test.differences), ".", color="0.2", markersize=4
    )
    axes.plot([mean], [row], "|", color="black", markersize=9, markeredgewidth=1.8)


if __name__ == "__main__":
    main()
