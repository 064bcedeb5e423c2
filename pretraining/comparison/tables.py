"""The tables of a report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pretraining.comparison.appearance import percent, scans
from pretraining.comparison.document import Cell, Table, table
from pretraining.comparison.results import CaseResult, ResultSet, Run
from pretraining.comparison.statistics import (
    LEAST_RUNS,
    LEVEL,
    Grid,
    Interval,
    RunTest,
    difference,
    interval,
    value_grid,
)
from pretraining.comparison.story import BASELINE, Story

NONE = "\u2013"
_MOST_COLUMNS = 12  # of values in one table of all classes; with more, each measure has its own


@dataclass(frozen=True)
class Measure:
    """How a measure is shown: by its title, times a factor; larger or smaller is better."""

    field: str
    title: str
    unit: str
    factor: float
    larger: bool

    def text(self, value: float) -> str:
        """With two digits after the point."""
        return NONE if math.isnan(value) else f"{self.factor * value:.2f}"

    def interval_text(self, value: Interval) -> str:
        """Mean and limits."""
        if math.isnan(value.low):
            return self.text(value.mean)
        return f"{self.text(value.mean)} [{self.text(value.low)}, {self.text(value.high)}]"


DICE = Measure("dice", "Dice", "%", 100, True)
IOU = Measure("iou", "IoU", "%", 100, True)
HD = Measure("hd", "HD", "mm", 1, False)
HD95 = Measure("hd95", "HD95", "mm", 1, False)


def surface_dice(tolerance_mm: float) -> Measure:
    """Named with its tolerance."""
    return Measure("surface_dice", f"surface Dice at {tolerance_mm:g} mm", "%", 100, True)


def averages_table(results: ResultSet, story: Story, fraction: float) -> Table:
    """Averages over the classes with intervals, difference to the baseline, missed structures; a row per init."""
    measures = (DICE, IOU, HD, HD95, surface_dice(story.tolerance_mm))
    columns: list[Sequence[str | Cell]] = [_interval_column(results, story, fraction, m) for m in measures]
    names = [f"{measure.title}, {measure.unit}" for measure in measures]
    if BASELINE in story.inits:
        names.insert(1, f"difference to {BASELINE}, Dice points")
        columns.insert(1, [_gain(results, init, fraction) for init in story.inits])
    columns.append([_missed(results.rows(init, fraction)) for init in story.inits])
    runs = [str(len({row.run for row in results.rows(init, fraction)})) for init in story.inits]
    rows = list(zip(story.inits, runs, *columns, strict=True))
    return table(("init", "runs", *names, "missed"), rows)


def _interval_column(results: ResultSet, story: Story, fraction: float, measure: Measure) -> list[Cell]:
    intervals = [interval(_grid(results, init, fraction, measure, None)) for init in story.inits]
    texts = [measure.interval_text(i) for i in intervals]
    return _best_in_bold([i.mean for i in intervals], texts, measure)


def _grid(results: ResultSet, init: str, fraction: float, measure: Measure, class_name: str | None) -> Grid:
    return value_grid(results.rows(init, fraction), measure.field, class_name)


def _best_in_bold(values: Sequence[float], texts: Sequence[str], measure: Measure) -> list[Cell]:
    """The best value, and all that look the same, in bold, if there are others."""
    shown = [measure.text(value) for value in values]
    known = [text for text in shown if text != NONE]
    best = (max if measure.larger else min)(known, key=float) if len(set(known)) > 1 else None
    return [Cell(text, bold=text_of_mean == best) for text, text_of_mean in zip(texts, shown, strict=True)]


def _gain(results: ResultSet, init: str, fraction: float) -> str:
    ours, baseline = (_grid(results, name, fraction, DICE, None) for name in (init, BASELINE))
    gain = interval(difference(ours, baseline))
    if init == BASELINE or math.isnan(gain.mean):
        return NONE
    limits = "" if math.isnan(gain.low) else f" [{_points(gain.low)}, {_points(gain.high)}]"
    return f"{_points(gain.mean)}{limits}"


def _points(value: float) -> str:
    """A difference of Dice in points, that is per cent; nan is a dash."""
    return NONE if math.isnan(value) else f"{100 * value:+.2f}"


def _missed(rows: Sequence[CaseResult]) -> str:
    there = [row for row in rows if not row.empty]
    return f"{sum(row.missed for row in there)} of {len(there)}" if rows else NONE


def class_tables(results: ResultSet, story: Story, fraction: float) -> list[Table]:
    """Dice, IoU and HD of each class and on average, then averages of HD95, surface Dice, and missed structures."""
    places: list[str | None] = [*story.classes]
    if len(places) > 1:
        places.append(None)
    wanted = [[(measure, place) for place in places] for measure in (DICE, IOU, HD)]
    ends: list[tuple[Measure, str | None]] = [(HD95, None), (surface_dice(story.tolerance_mm), None)]
    if 3 * len(places) + 2 <= _MOST_COLUMNS:
        return [_mean_table(results, story, fraction, [*wanted[0], *wanted[1], *wanted[2], *ends], missed=True)]
    tables = [_mean_table(results, story, fraction, columns, missed=False) for columns in wanted]
    return [*tables, _mean_table(results, story, fraction, ends, missed=True)]


def _mean_table(
    results: ResultSet, story: Story, fraction: float, wanted: Sequence[tuple[Measure, str | None]], missed: bool
) -> Table:
    names, columns = [], []
    for measure, place in wanted:
        means = [interval(_grid(results, init, fraction, measure, place)).mean for init in story.inits]
        columns.append(_best_in_bold(means, [measure.text(mean) for mean in means], measure))
        where = "average" if place is None and len(story.classes) > 1 else place
        title = measure.title.split(" at ")[0]
        names.append(title if where is None else f"{title} {where}")
    if missed:
        names.append("missed")
        columns.append([Cell(_missed(results.rows(init, fraction))) for init in story.inits])
    return table(("init", *names), list(zip(story.inits, *columns, strict=True)))


def runs_table(results: ResultSet, story: Story, fraction: float) -> Table:
    """Average Dice of each run, a row per run, in brackets the difference to the baseline of the same run."""
    grids = {init: _grid(results, init, fraction, DICE, None) for init in story.inits}
    runs = sorted({run for grid in grids.values() for run in grid.runs})
    means = {init: dict(zip(grid.runs, grid.run_means, strict=True)) for init, grid in grids.items()}
    rows = []
    for run in runs:
        rows.append([run_text(run), *(_value_and_gain(means, init, run) for init in story.inits)])
    return table(("run", *story.inits), rows)


def _value_and_gain(means: Mapping[str, Mapping[Run, float]], init: str, run: Run) -> str:
    value = means[init].get(run, math.nan)
    gain = value - means.get(BASELINE, {}).get(run, math.nan)
    text = DICE.text(value)
    return text if init == BASELINE or math.isnan(gain) else f"{text} ({_points(gain)})"


def run_text(run: Run) -> str:
    """Fold and seed in words."""
    return f"fold {run[0]}, seed {run[1]}"


def _labels(test: RunTest, results: ResultSet) -> str:
    return f"{percent(test.fraction)} ({scans(results.training_cases(test.fraction))})"


def tests_table(tests: Sequence[RunTest], results: ResultSet, reference: str) -> Table:
    """One row per test: over runs, and what runs of this kind it would take where there is no verdict."""
    rows = []
    for test in tests:
        by_run = ", ".join(_points(value) for value in test.differences) or NONE
        p_values = [p_text(test.p), p_text(test.holm_p)]
        rows.append(
            [_labels(test, results), test.init, interval_of(test), by_run, *p_values, verdict(test), _needed(test)]
        )
    names = ("labels", "against", "difference, Dice points", "by run", "p", "p after Holm")
    return table((*names, f"{reference} is", "runs it takes"), rows)


def cases_table(tests: Sequence[RunTest], results: ResultSet) -> Table:
    """The tests over cases: these trained networks on further cases."""
    rows = [
        [
            _labels(test, results),
            test.init,
            _points(test.interval.mean),
            str(test.cases),
            p_text(test.case_p),
        ]
        for test in tests
    ]
    return table(("labels", "against", "difference, Dice points", "cases", "p over cases"), rows)


def interval_of(test: RunTest) -> str:
    """Difference with its interval over runs."""
    found = test.interval
    limits = "" if math.isnan(found.low) else f" [{_points(found.low)}, {_points(found.high)}]"
    return f"{_points(found.mean)}{limits}"


def p_text(p: float) -> str:
    """A p value; nan is a dash."""
    return NONE if math.isnan(p) else "< 0.0001" if p < 0.0001 else f"{p:.4f}" if abs(p - LEVEL) > 5e-5 else f"{p:.6f}"


def verdict(test: RunTest) -> str:
    """What a test says about the reference, in words."""
    runs = len(test.differences)
    if not runs:
        return "not compared: no run and case in common"
    if runs < LEAST_RUNS:
        return f"no verdict: {runs} run{'s' if runs > 1 else ''}, it takes at least {LEAST_RUNS}"
    if test.decided:
        return "better" if test.interval.mean > 0 else "worse"
    corrected = " after Holm's correction" if test.agree and test.interval.excludes_zero else ""
    if test.above == 0:
        return f"undecided{corrected}, above in none of {runs} runs"
    return f"undecided{corrected}, above in {'all' if test.above == runs else f'{test.above} of'} {runs} runs"


def _needed(test: RunTest) -> str:
    """How many runs would do, where these do not."""
    if test.decided or not test.differences:
        return NONE
    if len(test.differences) < 2:
        return f"at least {LEAST_RUNS}"
    return "more than 100" if test.runs_needed is None else f"about {test.runs_needed}"


def counts_table(results: ResultSet, story: Story) -> Table:
    """Missed structures, empty truths and spurious predictions, over runs, cases and classes."""
    rows = []
    for fraction in results.fractions:
        for init in story.inits:
            cell = results.rows(init, fraction)
            if cell:
                empty, spurious = sum(row.empty for row in cell), sum(row.spurious for row in cell)
                rows.append(
                    [percent(fraction), init, _missed(cell), f"{empty} of {len(cell)}", f"{spurious} of {empty}"]
                )
    return table(("labels", "init", "missed", "empty truth", "spurious"), rows)


def times_table(story: Story) -> Table | None:
    """Mean and sum of the runs' times; None if no time is known."""
    rows = []
    for fraction in sorted({run.fraction for run in story.runs}):
        for init in story.inits:
            times = [
                r.seconds for r in story.runs if (r.init, r.fraction) == (init, fraction) and r.seconds is not None
            ]
            if times:
                mean = sum(times) / len(times)
                rows.append([percent(fraction), init, str(len(times)), duration(mean), duration(sum(times))])
    return table(("labels", "init", "runs", "mean time", "total"), rows) if rows else None


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
