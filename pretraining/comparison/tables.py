"""The tables of a report, as columns of text."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import pandas as pd

from nnunetv2_pgl.errors import counted
from nnunetv2_pgl.trainers.plans import RANDOM
from pretraining.comparison.figures import percent, scans
from pretraining.comparison.results import fractions_of, select
from pretraining.comparison.statistics import LEVEL, MIN_RUNS, Interval, RunTest, case_scores, interval, run_means
from pretraining.comparison.study import Study

NONE = "\u2013"
_MAX_COLUMNS = 12  # of values in one table of all classes; with more, each measure has its own


class Best(str):
    """The text of a cell with the best value of its column, printed in bold."""


class Column(NamedTuple):
    """A column of a table, whose first one names the rows."""

    name: str
    cells: list[str]

    @property
    def is_numeric(self) -> bool:
        """Whether all cells start like a number, or say that there is none."""
        return all(re.match(r"[-+\u2212]?\d|[<\u2013]|$", cell) for cell in self.cells)


class Measure(NamedTuple):
    """A column of the results, how it is shown (times a factor, with a unit), and whether a larger value is better."""

    column: str
    title: str
    unit: str = "%"
    factor: float = 100
    larger: bool = True

    def text(self, value: float) -> str:
        """With two digits after the point."""
        return NONE if math.isnan(value) else f"{self.factor * value:.2f}"


DICE, IOU, SURFACE_DICE = Measure("dice", "Dice"), Measure("iou", "IoU"), Measure("surface_dice", "surface Dice")
HD, HD95 = Measure("hd", "HD", "mm", 1, False), Measure("hd95", "HD95", "mm", 1, False)


def averages_table(results: pd.DataFrame, study: Study, fraction: float) -> list[Column]:
    """Averages over the classes with intervals, difference to the baseline, missed structures; a row per init."""
    of_init = {init: select(results, init, fraction) for init in study.inits}
    runs = [str(len(rows[["fold", "seed"]].drop_duplicates())) for rows in of_init.values()]
    columns = [Column("init", list(study.inits)), Column("runs", runs)]
    for measure in (DICE, IOU, HD, HD95, SURFACE_DICE):
        scores = {init: case_scores(rows, measure.column) for init, rows in of_init.items()}
        intervals = [interval(run_means(values)) for values in scores.values()]
        texts = [_with_limits(found, measure.text) for found in intervals]
        tolerance = f" at {study.tolerance_mm:g} mm" if measure is SURFACE_DICE else ""
        cells = _best_marked([found.mean for found in intervals], texts, measure)
        columns.append(Column(f"{measure.title}{tolerance}, {measure.unit}", cells))
        if measure is DICE and RANDOM in study.inits:
            gains = {init: interval(run_means(values - scores[RANDOM])) for init, values in scores.items()}
            cells = [NONE if init == RANDOM else points_of(gain) for init, gain in gains.items()]
            columns.append(Column(f"difference to {RANDOM}, Dice points", cells))
    return [*columns, Column("missed", [_missed(rows) for rows in of_init.values()])]


def _with_limits(found: Interval, text: Callable[[float], str]) -> str:
    limits = "" if math.isnan(found.low) else f" [{text(found.low)}, {text(found.high)}]"
    return f"{text(found.mean)}{limits}"


def points_of(found: Interval) -> str:
    """Mean and limits of a difference, in Dice points."""
    return _with_limits(found, _points)


def _points(value: float) -> str:
    """A difference of Dice in points, that is in percent; nan is a dash."""
    return NONE if math.isnan(value) else f"{100 * value:+.2f}"


def _best_marked(values: Iterable[float], texts: Iterable[str], measure: Measure) -> list[str]:
    """The texts; that of the best value, and of all that look the same, is marked if there are others."""
    shown = [measure.text(value) for value in values]
    known = {text for text in shown if text != NONE}
    best = (max if measure.larger else min)(known, key=float) if len(known) > 1 else None
    return [Best(text) if mean == best else text for text, mean in zip(texts, shown, strict=True)]


def _missed(rows: pd.DataFrame) -> str:
    there = rows[rows["truth_voxels"] > 0]
    return NONE if rows.empty else f"{there['missed'].sum()} of {len(there)}"


def class_tables(results: pd.DataFrame, study: Study, fraction: float) -> list[list[Column]]:
    """Dice, IoU and HD of each class and on average, then averages of HD95, surface Dice, and missed structures."""
    of_init = {init: select(results, init, fraction) for init in study.inits}
    names: list[str | None] = [*study.classes, *([None] if len(study.classes) > 1 else [])]

    def column(measure: Measure, name: str | None) -> Column:
        means = [run_means(case_scores(rows, measure.column, name)).mean() for rows in of_init.values()]
        where = "average" if name is None and len(study.classes) > 1 else name
        title = measure.title if where is None else f"{measure.title} {where}"
        return Column(title, _best_marked(means, map(measure.text, means), measure))

    parts = [[column(measure, name) for name in names] for measure in (DICE, IOU, HD)]
    averages = [column(HD95, None), column(SURFACE_DICE, None)]
    averages.append(Column("missed", [_missed(rows) for rows in of_init.values()]))
    if 3 * len(names) + 2 <= _MAX_COLUMNS:
        parts = [[*parts[0], *parts[1], *parts[2], *averages]]
    else:
        parts.append(averages)
    return [[Column("init", list(study.inits)), *part] for part in parts]


def runs_table(results: pd.DataFrame, study: Study, fraction: float) -> list[Column]:
    """Average Dice of each run, a row per run, in brackets the difference to the baseline of the same run."""
    scores = {init: case_scores(select(results, init, fraction), "dice") for init in study.inits}
    means = pd.DataFrame({init: values.mean(axis="columns") for init, values in scores.items()}).sort_index()
    columns = [Column("run", [f"fold {fold}, seed {seed}" for fold, seed in means.index])]
    for init in study.inits:
        cells = means[init].map(DICE.text)
        if RANDOM in study.inits and init != RANDOM:
            cells += (means[init] - means[RANDOM]).map(lambda gain: "" if math.isnan(gain) else f" ({_points(gain)})")
        columns.append(Column(init, cells.tolist()))
    return columns


def _labels(tests: Sequence[RunTest], results: pd.DataFrame) -> list[Column]:
    labels = [f"{percent(test.fraction)} ({scans(results, test.fraction)})" for test in tests]
    return [Column("labels", labels), Column("against", [test.init for test in tests])]


def tests_table(tests: Sequence[RunTest], results: pd.DataFrame, reference: str) -> list[Column]:
    """One row per test: over runs, and what runs of this kind it would take where there is no verdict."""
    return [
        *_labels(tests, results),
        Column("difference, Dice points", [points_of(test.interval) for test in tests]),
        Column("by run", [", ".join(map(_points, test.differences)) or NONE for test in tests]),
        Column("p", [p_text(test.p) for test in tests]),
        Column("p after Holm", [p_text(test.holm_p) for test in tests]),
        Column(f"{reference} is", [verdict(test) for test in tests]),
        Column("runs it takes", [_needed(test) for test in tests]),
    ]


def tests_over_cases_table(tests: Sequence[RunTest], results: pd.DataFrame) -> list[Column]:
    """The tests over cases: these trained networks on further cases."""
    return [
        *_labels(tests, results),
        Column("difference, Dice points", [_points(test.interval.mean) for test in tests]),
        Column("cases", [str(test.cases) for test in tests]),
        Column("p over cases", [p_text(test.case_p) for test in tests]),
    ]


def p_text(p: float) -> str:
    """A p value; nan is a dash."""
    return NONE if math.isnan(p) else "< 0.0001" if p < 0.0001 else f"{p:.4f}" if abs(p - LEVEL) > 5e-5 else f"{p:.6f}"


def verdict(test: RunTest) -> str:
    """What a test says about the reference, in words."""
    runs = len(test.differences)
    if not runs:
        return "not compared: no run and case in common"
    if runs < MIN_RUNS:
        return f"no verdict: {counted(runs, 'run')}, it takes at least {MIN_RUNS}"
    if test.decided:
        return "better" if test.interval.mean > 0 else "worse"
    corrected = " after Holm's correction" if test.agree and test.interval.excludes_zero else ""
    above = {0: "none of", runs: "all"}.get(test.above, f"{test.above} of")
    return f"undecided{corrected}, above in {above} {runs} runs"


def _needed(test: RunTest) -> str:
    """How many runs would do, where these do not."""
    if test.decided or not test.differences:
        return NONE
    if len(test.differences) < 2:
        return f"at least {MIN_RUNS}"
    return "more than 100" if test.runs_needed is None else f"about {test.runs_needed}"


def counts_table(results: pd.DataFrame, study: Study) -> list[Column] | None:
    """Missed structures, empty truths and spurious predictions, by fraction and init; None if there are none."""
    empty = results["truth_voxels"] == 0
    if not (results["missed"] | empty).any():
        return None
    table = results.assign(empty=empty, spurious=empty & (results["predicted_voxels"] > 0))
    pairs = [(f, i) for f in fractions_of(results) for i in study.inits]
    cells = [(fraction, init, rows) for fraction, init in pairs if not (rows := select(table, init, fraction)).empty]
    return [
        Column("labels", [percent(fraction) for fraction, _, _ in cells]),
        Column("init", [init for _, init, _ in cells]),
        Column("missed", [_missed(rows) for _, _, rows in cells]),
        Column("empty truth", [f"{rows['empty'].sum()} of {len(rows)}" for _, _, rows in cells]),
        Column("spurious", [f"{rows['spurious'].sum()} of {rows['empty'].sum()}" for _, _, rows in cells]),
    ]


def times_table(study: Study) -> list[Column] | None:
    """Mean and sum of the runs' times; None if no time is known."""
    table = pd.DataFrame([(run.fraction, study.inits.index(run.init), run.seconds) for run in study.runs])
    if table.empty or table[2].isna().all():
        return None
    of_start = table.dropna().groupby([0, 1])[2]
    return [
        Column("labels", [percent(fraction) for fraction, _ in of_start.groups]),
        Column("init", [study.inits[place] for _, place in of_start.groups]),
        Column("runs", of_start.count().astype(str).tolist()),
        Column("mean time", of_start.mean().map(_duration).tolist()),
        Column("total", of_start.sum().map(_duration).tolist()),
    ]


def _duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
